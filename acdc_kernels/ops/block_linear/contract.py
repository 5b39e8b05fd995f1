"""Schemas, fakes, gradients and FLOP counts of ``block_linear`` and ``block_linear_backward``.

``values`` are the kept blocks ``[blocks, R, C]`` (or flat), or the whole weight ``[rows, cols]`` (2 dimensions), of
which only kept blocks are read. ``x``, ``values``, ``grad`` and ``bias`` have one dtype; products are summed in float32
at least. With ``whole`` the weight gradient is dense, +0.0 where nothing is kept, else it is ``[blocks, R, C]``; it has
``dtype``. What isn't needed is ``[0]``. A ``config`` names how a kernel goes about it (``configs``); empty: what suits
the shapes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._registry import register
from ..sparse_linear.contract import NO_DOUBLE_BACKWARD, bias_gradient
from . import reference


def _fake(x: Tensor, values: Tensor, index: list[Tensor], meta: list[int], bias: Tensor | None, config: str) -> Tensor:
    return x.new_empty((*x.shape[:-1], meta[0]))


def _fake_backward(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    index: list[Tensor],
    meta: list[int],
    need_input: bool,
    need_weight: bool,
    whole: bool,
    dtype: torch.dtype,
    input_config: str,
    weight_config: str,
) -> tuple[Tensor, Tensor]:
    rows, cols, kept, r, c = meta
    shape = ((rows, cols) if whole else (kept // (r * c), r, c)) if need_weight else (0,)
    grad_x = grad.new_empty((*grad.shape[:-1], cols) if need_input else (0,))
    return grad_x, grad.new_empty(shape, dtype=dtype)


def _flops(x: Any, values: Any, index: Any, meta: list[int], *args: Any, **kwargs: Any) -> int:
    return 2 * math.prod(x[:-1]) * meta[2]


def _backward_flops(grad: Any, x: Any, values: Any, index: Any, meta: list[int], *others: Any, **kwargs: Any) -> int:
    need_input, need_weight = others[:2]
    return 2 * math.prod(grad[:-1]) * meta[2] * (need_input + need_weight)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, index, ctx.meta, _, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.shape, ctx.dtype, ctx.indices = values.shape, values.dtype, len(index)
    ctx.save_for_backward(values, *index, *((x,) if ctx.needs_input_grad[1] else ()))


def _backward(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
    need_input, need_values, need_bias = (ctx.needs_input_grad[i] and grad is not None for i in (0, 1, 4))
    grad_x = grad_values = None
    if need_input or need_values:
        values, *rest = ctx.saved_tensors
        index, x = rest[: ctx.indices], rest[ctx.indices] if need_values else grad
        whole = len(ctx.shape) == 2
        grad_x, grad_values = block_linear_backward_op(
            grad, x, values, index, ctx.meta, need_input, need_values, whole, ctx.dtype, "", ""
        )
    return (
        grad_x if need_input else None,
        grad_values.view(ctx.shape) if need_values else None,
        [None] * ctx.indices,
        None,
        bias_gradient(grad) if need_bias else None,
        None,
    )


def _no_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    return None


def _no_double_backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    raise RuntimeError(NO_DOUBLE_BACKWARD)


block_linear_op = register(
    "block_linear",
    "(Tensor x, Tensor values, Tensor[] index, SymInt[] meta, Tensor? bias, str config) -> Tensor",
    reference.block_linear,
    _fake,
    backward=_backward,
    setup_context=_setup,
    flops=_flops,
    triton=(__package__, "block_linear"),
)
block_linear_backward_op = register(
    "block_linear_backward",
    "(Tensor grad, Tensor x, Tensor values, Tensor[] index, SymInt[] meta, bool need_input, bool need_weight,"
    " bool whole, ScalarType dtype, str input_config, str weight_config) -> (Tensor grad_x, Tensor grad_weight)",
    reference.block_linear_backward,
    _fake_backward,
    backward=_no_double_backward,
    setup_context=_no_setup,
    flops=_backward_flops,
    triton=(__package__, "block_linear_backward"),
)
