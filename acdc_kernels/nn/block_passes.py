"""The forward and backward of a linear layer whose kept weights are large blocks, each product by the kernel of a run.

They compute in the dtype of ``x``, as torch's own product does: where the weight has another (autocast), sparse kernels
take its kept blocks, gathered and cast at once, and dense ones the whole weight cast. Else they read the weight itself.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..ops.block_linear.contract import block_linear_backward_op, block_linear_op
from ..ops.values.contract import gather_blocks_op
from .product import MASK_CHANGED
from .running import Run

__all__ = ["block_backward", "block_forward", "blocks_for"]


def blocks_for(run: Run, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """What sparse kernels take as values: the whole weight, or its kept blocks where they have to be cast."""
    return weight if weight.dtype == dtype else gather_blocks_op(weight, *run.where[:2], dtype)


def block_forward(
    run: Run, x: Tensor, weight: Tensor, bias: Tensor | None, values: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """(y, the weight in x's dtype if the product was dense). values: of ``blocks_for``, where the forward is sparse."""
    if bias is not None:
        bias = bias.to(x.dtype)
    if run.sparse_forward:
        return block_linear_op(x, values, *run.where[:2], bias, run.forward_config), None
    matrix = weight.to(x.dtype)
    return linear(x, matrix, bias), matrix


def block_backward(
    run: Run | None,
    grad: Tensor,
    x: Tensor | None,
    values: Tensor | None,
    weight: Tensor | None,
    dtype: torch.dtype,
    need_input: bool,
    need_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of input and weight, the latter in ``dtype``, the weight's.

    values: where the input gradient is sparse; weight, in any dtype: where it is dense; x: for the weight gradient. run
    None: both dense.
    """
    if run is not None and run.topology.outlived_mask():
        raise RuntimeError(f"sparse_linear: backward must find the mask of its forward, but {MASK_CHANGED}")
    grad_x = grad_weight = None
    sparse_input = need_input and run is not None and run.sparse_input
    sparse_weight = need_weight and run is not None and run.sparse_weight
    if need_input and not sparse_input:
        grad_x = grad @ weight.to(grad.dtype)
    if need_weight and not sparse_weight:
        rows = grad.shape[-1]
        grad_weight = (grad.reshape(-1, rows).t() @ x.reshape(-1, x.shape[-1])).to(dtype)
    if sparse_input or sparse_weight:
        one, other = block_linear_backward_op(
            grad,
            x if sparse_weight else grad.new_empty(0),
            values if sparse_input else grad.new_empty(0),
            *run.where[:2],
            sparse_input,
            sparse_weight,
            True,
            dtype,
            run.input_config,
            run.weight_config,
        )
        if sparse_input:
            grad_x = one
        if sparse_weight:
            grad_weight = other
    return grad_x, grad_weight
