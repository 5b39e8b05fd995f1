"""Schemas, fakes and gradients of what takes kept weights out of a dense weight and puts them back.

Kernels on a GPU wait for nothing, so they can't raise for what a mask holds; they read and write nothing beside their
tensors, whatever it is. Who calls ``build_bundles`` there counts the mask and compares the rows of groups before.
``gather_values`` and ``scatter_values`` give NaN where the others raise, for each run of 4096 weights of which another
number is kept than when the index was built. ``gather_blocks``, which can change the dtype on the way, and
``scatter_blocks`` are for format ``"blocks"``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...formats.bundles import index_layout
from .._registry import register
from . import reference


def _fake_build(bits: Tensor, meta: list[int], format: str) -> list[Tensor]:
    return [bits.new_empty(shape, dtype=dtype) for shape, dtype in index_layout(meta, format)[1:]]


def _fake_gather(weight: Tensor, index: list[Tensor], meta: list[int], format: str) -> Tensor:
    return weight.new_empty((meta[2],))


def _fake_scatter(values: Tensor, index: list[Tensor], meta: list[int], format: str) -> Tensor:
    return values.new_empty((meta[0], meta[1]))


def _keep_index(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, index, ctx.meta, ctx.format = inputs
    ctx.save_for_backward(*index)


def _gather_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    index = list(ctx.saved_tensors)
    return scatter_values_op(grad.contiguous(), index, ctx.meta, ctx.format), [None] * len(index), None, None


def _scatter_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    index = list(ctx.saved_tensors)
    return gather_values_op(grad, index, ctx.meta, ctx.format), [None] * len(index), None, None


def _fake_gather_blocks(weight: Tensor, index: list[Tensor], meta: list[int], dtype: torch.dtype) -> Tensor:
    _, _, kept, r, c = meta
    return weight.new_empty((kept // (r * c), r, c), dtype=dtype)


def _fake_scatter_blocks(values: Tensor, index: list[Tensor], meta: list[int]) -> Tensor:
    return values.new_empty((meta[0], meta[1]))


def _keep_blocks(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    source, index, ctx.meta = inputs[:3]
    ctx.dtype = source.dtype
    ctx.save_for_backward(*index)


def _gather_blocks_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    index = list(ctx.saved_tensors)
    values = grad.to(ctx.dtype).reshape(-1)
    return scatter_blocks_op(values, index, ctx.meta), [None] * len(index), None, None


def _scatter_blocks_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    index = list(ctx.saved_tensors)
    return gather_blocks_op(grad, index, ctx.meta, ctx.dtype).view(-1), [None] * len(index), None


build_bundles_op = register(
    "build_bundles",
    "(Tensor bits, SymInt[] meta, str format) -> Tensor[]",
    reference.build_bundles,
    _fake_build,
)
gather_values_op = register(
    "gather_values",
    "(Tensor weight, Tensor[] index, SymInt[] meta, str format) -> Tensor",
    reference.gather_values,
    _fake_gather,
    backward=_gather_backward,
    setup_context=_keep_index,
)
scatter_values_op = register(
    "scatter_values",
    "(Tensor values, Tensor[] index, SymInt[] meta, str format) -> Tensor",
    reference.scatter_values,
    _fake_scatter,
    backward=_scatter_backward,
    setup_context=_keep_index,
)
gather_blocks_op = register(
    "gather_blocks",
    "(Tensor weight, Tensor[] index, SymInt[] meta, ScalarType dtype) -> Tensor",
    reference.gather_blocks,
    _fake_gather_blocks,
    backward=_gather_blocks_backward,
    setup_context=_keep_blocks,
    triton=(__package__, "gather_blocks"),
)
scatter_blocks_op = register(
    "scatter_blocks",
    "(Tensor values, Tensor[] index, SymInt[] meta) -> Tensor",
    reference.scatter_blocks,
    _fake_scatter_blocks,
    backward=_scatter_blocks_backward,
    setup_context=_keep_blocks,
    triton=(__package__, "scatter_blocks"),
)
