"""``planned_block_linear``, the opaque op that the product of large blocks is in a compiled model, and its backward.

As ``planned_linear``: it finds the product by its handle, so that the choice of kernels is no part of the graph. It
computes in the dtype of its input, whatever the weight's: under autocast the graph casts the input alone.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..ops._registry import register
from .block_passes import block_backward, block_forward, blocks_for
from .linear_passes import NO_DOUBLE_BACKWARD, bias_gradient
from .obstacles import without_autocast
from .product import version_of
from .running import Run, RunningProduct

__all__ = ["planned_block_linear_backward_op", "planned_block_linear_op"]


def _planned(
    x: Tensor, weight: Tensor, bias: Tensor | None, handle: Tensor, save: bool, input_gradient: bool
) -> tuple[Tensor, Tensor]:
    """``y = x W^T + b`` as the product with this handle computes it now, and the generation of its run, -1 if dense.

    ``save``: a backward may follow. The generation is int64 [1] on the CPU, where reading it waits for nothing.
    """
    product, run = RunningProduct.by_handle(handle, weight), None
    if product is not None:
        product.compiled = True
        if product.observing and save:
            product.note_input(x, input_gradient)
        run = None if product.observing else product.run_for(x, bias)
        if save:
            product.aside = run if type(run) is str else ""
    with without_autocast(x.device.type):
        if type(run) is not Run:
            y = linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
            return y, torch.tensor([-1], dtype=torch.int64, device="cpu")
        keep = input_gradient and run.sparse_input
        values = blocks_for(run, weight, x.dtype) if run.sparse_forward or keep else None
        y, _ = block_forward(run, x, weight, bias, values)
        product.gathered = (version_of(product.weight), values) if keep and values is not weight else None
    return y, torch.tensor([product.generation], dtype=torch.int64, device="cpu")


def _planned_backward(
    grad: Tensor, x: Tensor, weight: Tensor, record: Tensor, handle: Tensor, need_input: bool, need_weight: bool
) -> tuple[Tensor, Tensor]:
    """The gradients of input and weight; [0] where not needed. Dense unless the forward was of this generation."""
    product = RunningProduct.by_handle(handle, weight)
    run = product.run if product is not None and product.generation == int(record) else None
    values = None
    with without_autocast(grad.device.type):
        if run is not None and need_input and run.sparse_input:
            gathered, product.gathered = product.gathered, None
            same = gathered is not None and gathered[0] == version_of(product.weight)
            values = gathered[1] if same and gathered[1].dtype == grad.dtype else blocks_for(run, weight, grad.dtype)
        grads = block_backward(run, grad, x, values, weight, weight.dtype, need_input, need_weight)
    empty = grad.new_empty(0), grad.new_empty(0, dtype=weight.dtype)
    return tuple(none if g is None else g.contiguous() for g, none in zip(grads, empty, strict=True))


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, handle: Tensor, save: bool, input_gradient: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty((*x.shape[:-1], weight.shape[0])), torch.empty(1, dtype=torch.int64, device="cpu")


def _fake_backward(grad: Tensor, x: Tensor, weight: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    *_, need_input, need_weight = others
    of_weight = grad.new_empty(weight.shape if need_weight else (0,), dtype=weight.dtype)
    return grad.new_empty(x.shape if need_input else (0,)), of_weight


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, handle, _, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(x, weight, output[1], handle)


def _gradients(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    need_input, need_weight, need_bias = (need and grad is not None for need in ctx.needs_input_grad[:3])
    grad_x = grad_weight = None
    if need_input or need_weight:
        grad_x, grad_weight = planned_block_linear_backward_op(grad, *ctx.saved_tensors, need_input, need_weight)
    return (
        grad_x if need_input else None,
        grad_weight if need_weight else None,
        bias_gradient(grad).to(ctx.bias_dtype) if need_bias else None,
        *(None, None, None),
    )


def _refuse(ctx: Any, *grads: Any) -> None:
    raise RuntimeError(NO_DOUBLE_BACKWARD)


def _run_of(handle: Tensor) -> Run | None:
    product = RunningProduct.of(handle)
    return product.run if isinstance(product, RunningProduct) else None


def _flops(x: Tensor, weight: Tensor, bias: Any, handle: Tensor, *others: Any, **kwargs: Any) -> int:
    run = _run_of(handle)
    kept = weight.numel() if run is None or not run.sparse_forward else run.topology.kept
    return 2 * math.prod(x.shape[:-1]) * kept


def _backward_flops(grad: Tensor, x: Tensor, weight: Tensor, *others: Any, **kwargs: Any) -> int:
    _, handle, need_input, need_weight = others
    run, dense = _run_of(handle), weight.numel()
    of_input = dense if run is None or not run.sparse_input else run.topology.kept
    of_weight = dense if run is None or not run.sparse_weight else run.topology.kept
    return 2 * math.prod(grad.shape[:-1]) * (need_input * of_input + need_weight * of_weight)


planned_block_linear_op = register(
    "planned_block_linear",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor handle, bool save, bool input_gradient)"
    " -> (Tensor y, Tensor record)",
    _planned,
    _fake,
    backward=_gradients,
    setup_context=_setup,
    raw_flops=_flops,
    composed=True,
)
planned_block_linear_backward_op = register(
    "planned_block_linear_backward",
    "(Tensor grad, Tensor x, Tensor weight, Tensor record, Tensor handle, bool need_input, bool need_weight)"
    " -> (Tensor grad_x, Tensor grad_weight)",
    _planned_backward,
    _fake_backward,
    backward=_refuse,
    setup_context=lambda ctx, inputs, output: None,
    raw_flops=_backward_flops,
    composed=True,
)
