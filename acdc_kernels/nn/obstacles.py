"""What sparse kernels don't take, whatever the layer: to the layer's own product go inputs like these.

``obstacle`` is about kernels of the CPU for float32; ``dtype_for`` about those that compute as torch's products do, in
the dtype of autocast or of their factors.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

__all__ = ["dtype_for", "dtype_in_graph", "obstacle", "obstacle_in_graph", "without_autocast"]


def obstacle_in_graph(x: Tensor) -> bool:
    """While a graph is traced: whether it must have the layer's own product, for any number of samples."""
    return (
        torch.compiler.is_exporting()
        or x.device.type != "cpu"
        or x.dtype != torch.float32
        or torch.is_autocast_enabled("cpu")
        or _transformed()
    )


def _transformed() -> bool:
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


# What torch.compiler.assume_constant_result does, which would import the compiler: half a second, for everybody.
_transformed._dynamo_marked_constant = True


def obstacle(x: Tensor) -> str | None:
    """Why sparse kernels don't take x; None if they do."""
    if x.dtype is not torch.float32:
        return f"the inputs are {x.dtype}"
    if (type(x) is not Tensor and type(x) is not Parameter) or not x.is_cpu or x.layout is not torch.strided:
        return f"the inputs are {type(x).__name__} on {x.device.type}"
    if torch.is_autocast_enabled("cpu"):
        return f"autocast to {torch.get_autocast_dtype('cpu')}"
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0 or torch.jit.is_tracing():
        return "transforms of torch.func"
    return None


_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def dtype_for(x: Tensor, weight: Tensor) -> torch.dtype | str:
    """What the product of x by weight is computed in; why sparse kernels don't take x."""
    device = weight.device
    if (type(x) is not Tensor and type(x) is not Parameter) or x.device != device or x.layout is not torch.strided:
        return f"the inputs are {type(x).__name__} on {x.device.type}"
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0 or torch.jit.is_tracing():
        return "transforms of torch.func"
    if torch.is_autocast_enabled(device.type) and x.dtype in _DTYPES:
        dtype = torch.get_autocast_dtype(device.type)
        return dtype if dtype in _DTYPES else f"autocast to {dtype}"
    return x.dtype if x.dtype is weight.dtype and x.dtype in _DTYPES else f"the inputs are {x.dtype}"


def dtype_in_graph(x: Tensor, weight: Tensor, bias: Tensor | None) -> torch.dtype | None:
    """While a graph is traced: what the product is computed in, or None if it must be the layer's own, for any x."""
    others = (weight,) if bias is None else (weight, bias)
    if torch.compiler.is_exporting() or _transformed() or any(t.device != x.device for t in others):
        return None
    if any(t.dtype not in _DTYPES for t in (x, *others)):
        return None
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        return dtype if dtype in _DTYPES else None
    return x.dtype if all(t.dtype == x.dtype for t in others) else None


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """In it products compute in the dtype that their factors have."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()
