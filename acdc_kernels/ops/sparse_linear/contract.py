"""Schemas, fakes, gradients and FLOP counts of ``sparse_linear`` and ``sparse_linear_backward``."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from .._registry import register
from . import reference

NO_DOUBLE_BACKWARD = "sparse_linear: double backward is not supported: its gradients have no gradients of their own"


def _fake(x: Tensor, values: Tensor, index: list[Tensor], meta: list[int], *others: Any) -> tuple[Tensor, Tensor]:
    *_, save, _fp16 = others
    size = reference.tiles_size(reference.samples_of(x.shape), meta[1])
    return x.new_empty((*x.shape[:-1], meta[0])), x.new_empty((size if save else 0,))


def _fake_backward(grad: Tensor, x: Tensor, packed: bool, values: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    _, meta, _, need_input, need_values = others
    grad_x = grad.new_empty((*grad.shape[:-1], meta[1]) if need_input else (0,))
    return grad_x, values.new_empty(values.shape if need_values else (0,))


def _flops(x: Any, values: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * math.prod(x[:-1]) * math.prod(values)


def _backward_flops(grad: Any, x: Any, packed: bool, values: Any, *others: Any, **kwargs: Any) -> int:
    *_, need_input, need_values = others
    return 2 * math.prod(grad[:-1]) * math.prod(values) * (need_input + need_values)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, values, index, ctx.meta, ctx.format, _, ctx.packed, _ = inputs
    ctx.set_materialize_grads(False)
    # The weight gradient alone needs the input.
    saved = (output[1] if ctx.packed else x,) if ctx.needs_input_grad[1] else ()
    ctx.save_for_backward(values, *index, *saved)
    ctx.indices = len(index)


def bias_gradient(grad: Tensor) -> Tensor:
    return grad.reshape(math.prod(grad.shape[:-1]), grad.shape[-1]).sum(0)


def _backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    need_input, need_values, need_bias = (ctx.needs_input_grad[i] and grad is not None for i in (0, 1, 5))
    grad_x = grad_values = grad_bias = None
    if need_input or need_values:
        values, *rest = ctx.saved_tensors
        index, x = rest[: ctx.indices], rest[ctx.indices] if need_values else grad
        grad_x, grad_values = sparse_linear_backward_op(
            grad, x, need_values and ctx.packed, values, index, ctx.meta, ctx.format, need_input, need_values
        )
    if need_bias:
        grad_bias = bias_gradient(grad)
    return (
        *(grad_x if need_input else None, grad_values if need_values else None, [None] * ctx.indices),
        *(None, None, grad_bias, None, None),
    )


def _no_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    return None


def _no_double_backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    raise RuntimeError(NO_DOUBLE_BACKWARD)


sparse_linear_op = register(
    "sparse_linear",
    "(Tensor x, Tensor values, Tensor[] index, SymInt[] meta, str format, Tensor? bias, bool save, bool fp16)"
    " -> (Tensor y, Tensor tiles)",
    reference.sparse_linear,
    _fake,
    backward=_backward,
    setup_context=_setup,
    flops=_flops,
)
sparse_linear_backward_op = register(
    "sparse_linear_backward",
    "(Tensor grad, Tensor x, bool packed, Tensor values, Tensor[] index, SymInt[] meta, str format, bool need_input,"
    " bool need_values) -> (Tensor grad_x, Tensor grad_values)",
    reference.sparse_linear_backward,
    _fake_backward,
    backward=_no_double_backward,
    setup_context=_no_setup,
    flops=_backward_flops,
)
