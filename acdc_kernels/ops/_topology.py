"""What the ops that take a topology share: checks of their arguments."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..formats.topology import Topology
from .distributed import is_sharded


def check_topology(op: str, topology: object) -> None:
    """Raise unless it is a topology of its mask as the mask is now."""
    if not isinstance(topology, Topology):
        raise TypeError(f"{op}: topology must be a Topology, got {type(topology).__name__}")
    if topology.outlived_mask():
        raise ValueError(
            f"{op}: topology must be of the mask as it is now, got one built before the mask was changed in place;"
            f" compress again"
        )


def check_backward_alone(op: str, *tensors: object) -> None:
    """Raise where anything but ``backward`` would differentiate ``op``: it has no other derivatives."""
    if torch.compiler.is_compiling():
        return
    if torch._C._are_functorch_transforms_active():
        how = "a transform of torch.func (vmap, grad, jvp, ...)"
    elif forward_ad._current_level >= 0 and any(
        isinstance(t, Tensor) and forward_ad.unpack_dual(t).tangent is not None for t in tensors
    ):
        how = "forward mode (a tangent)"
    else:
        return
    raise RuntimeError(f"{op}: derivatives must be asked for by backward or torch.autograd.grad, got {how}")


def check_tensor(op: str, name: str, tensor: object, dtypes: tuple[torch.dtype, ...], device: torch.device) -> None:
    """Raise unless it is an ordinary tensor of one of ``dtypes`` on ``device``, the topology's."""
    if not isinstance(tensor, Tensor) or tensor.dtype not in dtypes or tensor.layout != torch.strided:
        got = type(tensor).__name__
        if isinstance(tensor, Tensor):
            got = f"{tensor.dtype}" if tensor.layout == torch.strided else f"{tensor.dtype} ({tensor.layout})"
        raise TypeError(f"{op}: {name} must be {' or '.join(map(str, dtypes))}, got {got}")
    if is_sharded(tensor):
        raise TypeError(f"{op}: {name} must be a plain tensor, got a DTensor; pass its local part")
    if tensor.device != device:
        raise ValueError(f"{op}: {name} must be on {device} as the topology, got {tensor.device}")


def check_values(op: str, values: object, topology: Topology, dtypes: tuple[torch.dtype, ...]) -> None:
    """Raise unless ``values`` has one element for each weight that the topology keeps."""
    check_tensor(op, "values", values, dtypes, topology.bits.device)
    if values.shape != topology.values_shape and values.shape != (topology.kept,):
        raise ValueError(
            f"{op}: values must have shape {list(topology.values_shape)}, one element a kept weight of the topology,"
            f" got {list(values.shape)}"
        )
