"""The forward and backward of a linear layer, ``y = x W^T + b``, each of their products by the kernel of a run."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear

from ..ops.sparse_linear.contract import NO_DOUBLE_BACKWARD as OPS_REASON
from ..ops.sparse_linear.contract import sparse_linear_backward_op, sparse_linear_op
from ..ops.values.contract import gather_values_op, scatter_values_op
from .product import FP16, MASK_CHANGED
from .running import Run

__all__ = ["NO_DOUBLE_BACKWARD", "bias_gradient", "linear_backward", "linear_forward"]

NO_DOUBLE_BACKWARD = f"{OPS_REASON}; make the Sparsifier with kernels='dense'"


def linear_forward(
    run: Run, x: Tensor, weight: Tensor, bias: Tensor | None, save: bool, keep: bool
) -> tuple[Tensor, ...]:
    """(y, tiles, values): tiles are empty unless ``save``, values None unless sparse or to ``keep``."""
    values = gather_values_op(weight, *run.where) if run.sparse_forward or keep else None
    if run.sparse_forward:
        return *sparse_linear_op(x, values, *run.where, bias, save, run.forward == FP16), values
    return linear(x, weight, bias), x.new_empty(0), values


def linear_backward(
    run: Run | None,
    grad: Tensor,
    x: Tensor | None,
    packed: bool,
    values: Tensor | None,
    weight: Tensor | None,
    need_input: bool,
    need_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of input and weight. x: the input, or its tiles if ``packed``; run None: both dense."""
    if run is not None and run.topology.outlived_mask():
        raise RuntimeError(f"sparse_linear: backward must find the mask of its forward, but {MASK_CHANGED}")
    grad_x = grad_weight = None
    sparse_input, sparse_weight = need_input, need_weight
    if run is None or not run.sparse_input:
        sparse_input = False
        if need_input:
            grad_x = grad @ weight
    if run is None or not run.sparse_weight:
        sparse_weight = False
        if need_weight:
            rows = grad.shape[-1]
            grad_weight = grad.reshape(-1, rows).t() @ x.reshape(-1, x.shape[-1])
    if sparse_input or sparse_weight:
        if values is None:  # the weight gradient alone: they say only how many there are
            values = grad.new_empty(run.topology.kept)
        source = x if sparse_weight else grad
        one, other = sparse_linear_backward_op(
            grad, source, packed and sparse_weight, values, *run.where, sparse_input, sparse_weight
        )
        if sparse_input:
            grad_x = one
        if sparse_weight:
            grad_weight = scatter_values_op(other, *run.where)
    return grad_x, grad_weight


def bias_gradient(grad: Tensor) -> Tensor:
    return (grad if grad.dim() == 2 else grad.reshape(-1, grad.shape[-1])).sum(0)
