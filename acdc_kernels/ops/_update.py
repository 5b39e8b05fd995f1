"""What the masked updates share: checks of their arguments, the parts of their references, and the launch of a step."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..formats.mask_bits import check_bits
from ._registry import has_kernel, register
from .dtypes import FLOAT_DTYPES
from .mask_bits.reference import unpack_mask

HALF_DTYPES = (torch.bfloat16, torch.float16)


def check_tensors(
    op: str,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    states: dict[str, Sequence[Tensor]],
    masks: Sequence[Tensor | None],
) -> None:
    """Raise unless every list has one entry a parameter and every entry fits its parameter.

    A state has its parameter's dtype, or float32 where the parameter has 16 bits; all states of one parameter agree.
    """
    if not params:
        raise ValueError(f"{op}: params must have at least one tensor, got an empty list")
    for name, values in (("grads", grads), ("masks", masks), *states.items()):
        if len(values) != len(params):
            raise ValueError(f"{op}: {name} must have one entry a parameter ({len(params)}), got {len(values)}")
    for i, param in enumerate(params):
        if not isinstance(param, Tensor) or param.dtype not in FLOAT_DTYPES:
            got = param.dtype if isinstance(param, Tensor) else type(param).__name__
            raise TypeError(f"{op}: params[{i}] must be float32, float64, bfloat16 or float16, got {got}")
        if param.device != params[0].device:
            raise ValueError(f"{op}: params[{i}] must be on {params[0].device} as params[0], got {param.device}")
        first = next((values[i].dtype for values in states.values()), param.dtype)
        state_dtype = torch.float32 if first == torch.float32 and param.dtype in HALF_DTYPES else param.dtype
        for name, values in (("grads", grads), *states.items()):
            other, dtype = values[i], param.dtype if name == "grads" else state_dtype
            if other.shape != param.shape or other.dtype != dtype or other.device != param.device:
                raise ValueError(
                    f"{op}: {name}[{i}] must be {dtype} {list(param.shape)} on {param.device}"
                    f" as params[{i}], got {other.dtype} {list(other.shape)} on {other.device}"
                )
        if masks[i] is not None:
            check_bits(f"{op}: masks[{i}]", masks[i], param.numel(), param.device)


def check_scalars(op: str, device: torch.device, **scalars: Tensor | None) -> None:
    """Raise unless each is None or a floating-point tensor of one element on ``device`` (``lr`` may be on the CPU)."""
    for name, value in scalars.items():
        if value is None:
            continue
        if not isinstance(value, Tensor) or value.dtype not in FLOAT_DTYPES:
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{op}: {name} must be a floating-point tensor, got {got}")
        if value.numel() != 1:
            raise ValueError(f"{op}: {name} must have one element, got {value.numel()}")
        if value.device != device and not (name == "lr" and value.device.type == "cpu"):
            raise ValueError(f"{op}: {name} must be on {device} as params[0], got {value.device}")


def check_zeros_kept(op: str, params: Sequence[Tensor], zeros_kept: Sequence[bool]) -> list[bool]:
    """``zeros_kept`` as the op takes it; raises ValueError unless it has one entry a parameter, or none."""
    if zeros_kept and len(zeros_kept) != len(params):
        raise ValueError(f"{op}: zeros_kept must have one entry a parameter ({len(params)}), got {len(zeros_kept)}")
    return [bool(kept) for kept in zeros_kept]


def compute_dtype(param: Tensor) -> torch.dtype:
    """16-bit parameters are computed in float32."""
    return torch.float32 if param.dtype in HALF_DTYPES else param.dtype


def scalar(value: Tensor | float, device: torch.device) -> Tensor | float:
    """A number, or a float64 tensor without dimensions on ``device``: what a reference multiplies by."""
    return value.detach().reshape(()).to(device, torch.float64) if isinstance(value, Tensor) else value


def gradient(grad: Tensor, dtype: torch.dtype, maximize: bool, grad_scale: Tensor | None) -> Tensor:
    """The gradient as it is computed with: unscaled after it was widened, and negated for ``maximize``."""
    g = grad.to(dtype)
    if grad_scale is not None:
        g = g / grad_scale.reshape(()).to(dtype)
    return -g if maximize else g


def store(old: Tensor, new: Tensor, masked: Tensor | None, found_inf: Tensor | None) -> None:
    """Write ``new`` over ``old``, +0.0 where ``masked``; all of ``old`` stays where ``found_inf`` is not zero."""
    if masked is not None:
        new = new.masked_fill(masked, 0.0)
    if found_inf is not None:
        new = torch.where(found_inf.reshape(()) != 0, old, new.to(old.dtype))
    old.copy_(new)


def masked_positions(bits: Tensor | None, param: Tensor) -> Tensor | None:
    return None if bits is None else ~unpack_mask(bits, list(param.shape))


_skips_kept_zeros = register(
    "skips_kept_zeros",
    "(Tensor param) -> bool",
    lambda param: False,
    lambda param: False,
    composed=True,
    triton=(f"{__package__}.masked_sgd", "skips_kept_zeros"),
)


@functools.cache
def skips_kept_zeros(device_type: str) -> bool:
    """Whether ``zeros_kept`` saves an update anything on this kind of device."""
    return has_kernel(_skips_kept_zeros, device_type)


def launch(op: torch._ops.OpOverload, written: Iterable[Tensor], *args: Any) -> None:
    """An update as an optimizer calls it at every step: without gradients, and at a sixth of the overhead.

    In eager mode it goes below the layer where torch moves the version counters of custom ops one by one, from Python,
    and moves those of ``written`` itself in one call.
    """
    if torch.compiler.is_compiling():
        op(*args)
        return
    with torch._C._AutoDispatchBelowADInplaceOrView():
        op(*args)
    torch.autograd.graph.increment_version(written)
