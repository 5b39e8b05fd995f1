"""The products of a linear layer with the kept weights alone."""

from __future__ import annotations

import torch
from torch import Tensor

from ...formats.bundles import Topology
from . import contract


def sparse_linear(x: Tensor, values: Tensor, topology: Topology, bias: Tensor | None = None) -> Tensor:
    """``y = x W^T + bias``."""
    save = torch.is_grad_enabled() and values.requires_grad
    index, meta, format = topology.index, topology.meta, topology.format
    return contract.sparse_linear_op(x, values, index, meta, format, bias, save, False)[0]
