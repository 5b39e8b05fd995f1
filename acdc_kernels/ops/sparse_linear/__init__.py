"""The products of a linear layer with its kept weights alone: forward, input gradient and weight gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...formats.blocks import BLOCKS
from ...formats.topology import Topology
from .._gradients import asked_for, below_autograd, once
from .._topology import check_backward_alone, check_tensor, check_topology, check_values
from ..block_linear.contract import block_linear_backward_op, block_linear_op
from . import contract

DTYPES = (torch.float32,)
BLOCK_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def sparse_linear(x: Tensor, values: Tensor, topology: Topology, bias: Tensor | None = None) -> Tensor:
    r"""``torch.nn.functional.linear`` with a weight of which only the kept elements take part.

    .. math:: y_{n,r} = b_r + \sum_{(r, c) \text{ kept}} W_{r,c}\, x_{n,c}

    A weight that isn't kept takes no part at all: Inf and NaN in ``x`` reach only those outputs that keep a weight for
    them. Differentiable once in ``x``, ``values`` and ``bias``: only kept weights take part in the gradients too.

    All tensors have one dtype: float32, and with large blocks (``"block:RxC"``, R and C of 32, 64 or 128) bfloat16 or
    float16 too. Large blocks follow what torch does with its dense product: under autocast they compute in its dtype,
    and on a GPU float32 goes through TF32 if torch's setting for matrix products says so.

    Args:
        x: ``[..., inputs]``, any strides; no leading dimensions, and leading dimensions of 0, are fine.
        values: ``[kept]`` as :func:`acdc_kernels.compress` returns them (blocks may be flat).
        topology: the one that these values were made with: those of another are in another order.
        bias: ``[outputs]``, any strides; None: no bias.

    Returns:
        ``[..., outputs]``, contiguous, of the same dtype.

    Raises:
        TypeError, ValueError: another dtype, shape or device; a topology whose mask was changed in place since.
        RuntimeError: in backward, if gradients of the gradients are asked for; under a transform of ``torch.func``, or
            with a tangent of forward mode.
    """
    check_topology("sparse_linear", topology)
    check_backward_alone("sparse_linear", x, values, bias)
    device, dtypes = topology.bits.device, DTYPES
    if topology.format == BLOCKS:
        x, values, bias = _autocast(device.type, x, values, bias)
        dtypes = BLOCK_DTYPES
    check_tensor("sparse_linear", "x", x, dtypes, device)
    dtypes = (x.dtype,)
    if x.dim() == 0 or x.shape[-1] != topology.cols:
        raise ValueError(
            f"sparse_linear: x must have shape [..., {topology.cols}] (the topology's inputs), got {list(x.shape)}"
        )
    check_values("sparse_linear", values, topology, dtypes)
    if bias is not None:
        check_tensor("sparse_linear", "bias", bias, dtypes, device)
        if bias.shape != (topology.rows,):
            raise ValueError(
                f"sparse_linear: bias must have shape [{topology.rows}] (the topology's outputs),"
                f" got {list(bias.shape)}"
            )
    flat = values.reshape(-1).contiguous()
    if topology.format == BLOCKS:
        if torch.compiler.is_compiling():
            return block_linear_op(x, flat, topology.index, topology.meta, bias, "")
        return _BlockLinear.apply(x, flat, bias, topology)
    if torch.compiler.is_compiling():
        save = torch.is_grad_enabled() and values.requires_grad
        return contract.sparse_linear_op(x, flat, *_where(topology), bias, save, False)[0]
    return _SparseLinear.apply(x, flat, bias, topology)


def _autocast(device_type: str, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors as torch's own product would take them under autocast; as they are without."""
    if not torch.is_autocast_enabled(device_type):
        return tensors
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(t.to(dtype) if isinstance(t, Tensor) and t.dtype in BLOCK_DTYPES else t for t in tensors)


def _where(topology: Topology) -> tuple[Any, ...]:
    return topology.index, topology.meta, topology.format


class _SparseLinear(torch.autograd.Function):
    """The op and its gradient as they are registered, in eager mode: without the time that custom ops take there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, topology: Topology) -> Tensor:
        save = ctx.needs_input_grad[1]  # the input, packed once, for the weight gradient
        with below_autograd():
            y, tiles = contract.sparse_linear_op(x, values, *_where(topology), bias, save, False)
        ctx.topology = topology
        ctx.save_for_backward(values, tiles if save else None)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, tiles = ctx.saved_tensors
        if ctx.topology.outlived_mask():
            raise RuntimeError("sparse_linear: backward must find the mask of its forward, but it was changed in place")
        need_input, need_values, need_bias = asked_for(ctx)
        need_values = need_values and tiles is not None
        grads = None, None, contract.bias_gradient(grad) if need_bias else None
        with below_autograd():
            if need_input or need_values:
                source = tiles if need_values else grad
                of_input, of_values = contract.sparse_linear_backward_op(
                    grad, source, need_values, values, *_where(ctx.topology), need_input, need_values
                )
                grads = of_input if need_input else None, of_values if need_values else None, grads[2]
        if torch.is_grad_enabled():
            grads = once(grads, contract.NO_DOUBLE_BACKWARD)
        return *grads, None


class _BlockLinear(torch.autograd.Function):
    """The same for large blocks: the input itself is kept, as torch's own product keeps it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, topology: Topology) -> Tensor:
        ctx.topology = topology
        need_input, need_values = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if need_values else None, values if need_input or need_values else None)
        with below_autograd():
            return block_linear_op(x, values, topology.index, topology.meta, bias, "")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, values = ctx.saved_tensors
        topology = ctx.topology
        if topology.outlived_mask():
            raise RuntimeError("sparse_linear: backward must find the mask of its forward, but it was changed in place")
        need_input, need_values, need_bias = asked_for(ctx)
        need_values = need_values and x is not None
        grads = None, None, contract.bias_gradient(grad) if need_bias else None
        with below_autograd():
            if need_input or need_values:
                source, wanted = x if need_values else grad, (need_input, need_values, False)
                of_input, of_values = block_linear_backward_op(
                    grad, source, values, topology.index, topology.meta, *wanted, values.dtype, "", ""
                )
                of_values = of_values.view(-1)
                grads = of_input if need_input else None, of_values if need_values else None, grads[2]
        if torch.is_grad_enabled():
            grads = once(grads, contract.NO_DOUBLE_BACKWARD)
        return *grads, None
