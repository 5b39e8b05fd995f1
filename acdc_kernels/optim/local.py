"""The part of a DTensor that lies on this rank; plain tensors as they are.

Told by their ``to_local``: torch.distributed.tensor is never imported here.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_PLAIN = frozenset((torch.nn.Parameter, Tensor))


def is_plain(tensor: Tensor) -> bool:
    """Whether it has no other tensor inside, through which it could be written to."""
    return type(tensor) in _PLAIN


def local_tensor(tensor: Tensor) -> Tensor:
    """The tensor that a kernel reads and writes."""
    return tensor if type(tensor) in _PLAIN or not hasattr(tensor, "to_local") else tensor.to_local()


def local_tensors(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [t if type(t) in _PLAIN else local_tensor(t) for t in tensors]


def local_grads(params: Iterable[Tensor], grads: Iterable[Tensor]) -> list[Tensor]:
    """The gradients, laid out over the ranks as their parameters are."""
    return [g if type(g) in _PLAIN else _local_grad(p, g) for p, g in zip(params, grads, strict=True)]


def _local_grad(param: Tensor, grad: Tensor) -> Tensor:
    if hasattr(grad, "placements") and grad.placements != param.placements:
        grad = grad.redistribute(param.device_mesh, param.placements)
    return local_tensor(grad)
