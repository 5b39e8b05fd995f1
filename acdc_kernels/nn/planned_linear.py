"""``planned_linear``, the opaque op that a linear layer's product is in a compiled model, and its backward.

It finds the product by its handle: neither the choice of kernels nor the lengths of an index, which change at every
phase, are part of the graph.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..ops._registry import register
from ..ops.sparse_linear.reference import samples_of, tiles_size
from ..ops.values.contract import gather_values_op
from .linear_passes import NO_DOUBLE_BACKWARD, bias_gradient, linear_backward, linear_forward
from .product import Product, version_of
from .running import Run, RunningProduct

__all__ = ["planned_linear_backward_op", "planned_linear_op"]


def _planned_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, handle: Tensor, save: bool, input_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``y = x W^T + b`` as the product with this handle computes it now; with ``save`` also what its backward needs.

    Returns (y, tiles, record): tiles has its size whether it is written or not; record is int64 [2], the product's
    generation and whether tiles was written.
    """
    product = RunningProduct.by_handle(handle, weight)
    run = None
    if product is not None:
        product.compiled = True
        if product.observing and save:
            product.note_input(x, input_gradient)
        run = None if product.observing else product.run_for(x, bias)
        if save:
            product.aside = run if type(run) is str else ""
    if type(run) is not Run:
        y, packed, generation = linear(x, weight, bias), False, -1
        tiles = x.new_empty(0)
    else:
        packed, generation = save and run.sparse_forward and run.sparse_weight, product.generation
        keep = input_gradient and run.sparse_input
        y, tiles, values = linear_forward(run, x, weight, bias, packed, keep)
        product.gathered = (version_of(product.weight), values) if keep else None
    if not packed:
        tiles = x.new_empty(_tiles_size(x) if save else 0)
    return y, tiles, torch.tensor([generation, packed], dtype=torch.int64, device="cpu")


def _planned_linear_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    tiles: Tensor,
    record: Tensor,
    handle: Tensor,
    need_input: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of input and weight; [0] where not needed. Dense unless the forward was of this generation."""
    product = RunningProduct.by_handle(handle, weight)
    generation, packed = record.tolist()
    run = product.run if product is not None and product.generation == generation else None
    values = None
    if run is not None and need_input and run.sparse_input:
        gathered, product.gathered = product.gathered, None
        if gathered is not None and gathered[0] == version_of(product.weight):
            values = gathered[1]
        else:
            values = gather_values_op(weight, *run.where)
    packed = bool(packed) and run is not None
    grads = linear_backward(run, grad, tiles if packed else x, packed, values, weight, need_input, need_weight)
    return tuple(grad.new_empty(0) if g is None else g.contiguous() for g in grads)


def _tiles_size(x: Tensor) -> int:
    return tiles_size(samples_of(x.shape), x.shape[-1])


def _fake_planned(
    x: Tensor, weight: Tensor, bias: Tensor | None, handle: Tensor, save: bool, input_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    y, tiles = x.new_empty((*x.shape[:-1], weight.shape[0])), x.new_empty(_tiles_size(x) if save else 0)
    return y, tiles, x.new_empty(2, dtype=torch.int64)


def _fake_planned_backward(grad: Tensor, x: Tensor, weight: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    *_, need_input, need_weight = others
    return grad.new_empty(x.shape if need_input else (0,)), grad.new_empty(weight.shape if need_weight else (0,))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _, handle, _, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, output[1], output[2], handle)


def _planned_gradients(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    need_input, need_weight, need_bias = (need and grad is not None for need in ctx.needs_input_grad[:3])
    grad_x = grad_weight = None
    if need_input or need_weight:
        grad_x, grad_weight = planned_linear_backward_op(grad, *ctx.saved_tensors, need_input, need_weight)
    return (
        grad_x if need_input else None,
        grad_weight if need_weight else None,
        bias_gradient(grad) if need_bias else None,
        *(None, None, None),
    )


def _refuse(ctx: Any, *grads: Any) -> None:
    raise RuntimeError(NO_DOUBLE_BACKWARD)


def _run_of(handle: Tensor) -> Run | None:
    product = Product.of(handle)
    return product.run if isinstance(product, RunningProduct) else None


def _flops(x: Tensor, weight: Tensor, bias: Any, handle: Tensor, *others: Any, **kwargs: Any) -> int:
    run = _run_of(handle)
    kept = weight.numel() if run is None or not run.sparse_forward else run.topology.kept
    return 2 * math.prod(x.shape[:-1]) * kept


def _backward_flops(grad: Tensor, x: Tensor, weight: Tensor, *others: Any, **kwargs: Any) -> int:
    *_, handle, need_input, need_weight = others
    run, dense = _run_of(handle), weight.numel()
    of_input = dense if run is None or not run.sparse_input else run.topology.kept
    of_weight = dense if run is None or not run.sparse_weight else run.topology.kept
    return 2 * math.prod(grad.shape[:-1]) * (need_input * of_input + need_weight * of_weight)


planned_linear_op = register(
    "planned_linear",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor handle, bool save, bool input_gradient)"
    " -> (Tensor y, Tensor tiles, Tensor record)",
    _planned_linear,
    _fake_planned,
    backward=_planned_gradients,
    setup_context=_setup,
    raw_flops=_flops,
    composed=True,
)
planned_linear_backward_op = register(
    "planned_linear_backward",
    "(Tensor grad, Tensor x, Tensor weight, Tensor tiles, Tensor record, Tensor handle, bool need_input,"
    " bool need_weight) -> (Tensor grad_x, Tensor grad_weight)",
    _planned_linear_backward,
    _fake_planned_backward,
    backward=_refuse,
    setup_context=lambda ctx, inputs, output: None,
    raw_flops=_backward_flops,
    composed=True,
)
