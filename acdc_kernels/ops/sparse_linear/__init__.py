"""The products of a linear layer with its kept weights alone: forward, input gradient and weight gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from ...formats.bundles import Topology
from .._topology import check_backward_alone, check_tensor, check_topology, check_values
from . import contract

DTYPES = (torch.float32,)


def sparse_linear(x: Tensor, values: Tensor, topology: Topology, bias: Tensor | None = None) -> Tensor:
    r"""``torch.nn.functional.linear`` with a weight of which only the kept elements take part.

    .. math:: y_{n,r} = b_r + \sum_{(r, c) \text{ kept}} W_{r,c}\, x_{n,c}

    A weight that isn't kept takes no part at all: Inf and NaN in ``x`` reach only those outputs that keep a weight for
    them. Differentiable once in ``x``, ``values`` and ``bias``: only kept weights take part in the gradients too.

    Args:
        x: ``[..., inputs]``, float32, any strides; no leading dimensions, and leading dimensions of 0, are fine.
        values: ``[kept]`` as :func:`acdc_kernels.compress` returns them (blocks may be flat), float32.
        topology: the one that these values were made with: those of another are in another order.
        bias: ``[outputs]``, float32, any strides; None: no bias.

    Returns:
        ``[..., outputs]``, contiguous, float32.

    Raises:
        TypeError, ValueError: another dtype, shape or device; a topology whose mask was changed in place since.
        RuntimeError: in backward, if gradients of the gradients are asked for; under a transform of ``torch.func``, or
            with a tangent of forward mode.
    """
    check_topology("sparse_linear", topology)
    check_backward_alone("sparse_linear", x, values, bias)
    device = topology.bits.device
    check_tensor("sparse_linear", "x", x, DTYPES, device)
    if x.dim() == 0 or x.shape[-1] != topology.cols:
        raise ValueError(
            f"sparse_linear: x must have shape [..., {topology.cols}] (the topology's inputs), got {list(x.shape)}"
        )
    check_values("sparse_linear", values, topology, DTYPES)
    if bias is not None:
        check_tensor("sparse_linear", "bias", bias, DTYPES, device)
        if bias.shape != (topology.rows,):
            raise ValueError(
                f"sparse_linear: bias must have shape [{topology.rows}] (the topology's outputs),"
                f" got {list(bias.shape)}"
            )
    flat = values.reshape(-1).contiguous()
    save = torch.is_grad_enabled() and values.requires_grad  # packed once, used again by the weight gradient
    index, meta, format = topology.index, topology.meta, topology.format
    return contract.sparse_linear_op(x, flat, index, meta, format, bias, save, False)[0]
