"""What sparse kernels of the CPU don't take, whatever the layer: to the layer's own product go inputs like these."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

__all__ = ["obstacle", "obstacle_in_graph"]


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
