"""What the products of kept blocks mean, in plain torch: a sum over the kept weights and nothing else.

A weight that isn't kept takes no part, so Inf and NaN in the other factor don't meet its zero. Sums of 16-bit numbers
are taken in float32 and rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

_AT_ONCE = 1 << 24  # products of a block and its samples that are held at a time


def samples_of(shape: torch.Size | list[int]) -> int:
    return math.prod(shape[:-1])


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def blocks_of(weight: Tensor, index: list[Tensor], meta: list[int]) -> Tensor:
    """``[blocks, R, C]`` of values, given as blocks, flat, or as the whole weight ``[rows, cols]``."""
    rows, cols, _, r, c = meta
    if weight.dim() != 2:
        return weight.reshape(-1, r, c)
    return weight.reshape(rows // r, r, cols // c, c).transpose(1, 2)[index[3].long(), index[2].long()]


def _shares(index: list[Tensor], n: int, side: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """(places in values, block rows, block columns), so many blocks at a time that memory stays bounded."""
    step = max(_AT_ONCE // max(n * side, 1), 1)
    for first in range(0, index[3].numel(), step):
        share = slice(first, first + step)
        yield share, index[3][share].long(), index[2][share].long()


def block_linear(
    x: Tensor, values: Tensor, index: list[Tensor], meta: list[int], bias: Tensor | None, config: str
) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return _forward(x, values, index, meta, bias)


def _forward(x: Tensor, values: Tensor, index: list[Tensor], meta: list[int], bias: Tensor | None) -> Tensor:
    rows, cols, _, r, c = meta
    n, wide = samples_of(x.shape), _wide(x.dtype)
    inputs = x.reshape(n, cols // c, c).transpose(0, 1).to(wide)
    blocks = blocks_of(values, index, meta).to(wide)
    y = inputs.new_zeros((rows // r, n, r))
    for share, at_row, at_column in _shares(index, n, max(r, c)):
        y.index_add_(0, at_row, inputs[at_column] @ blocks[share].transpose(1, 2))
    y = y.transpose(0, 1).reshape(n, rows)
    if bias is not None:
        y = y + bias.to(wide)
    return y.to(x.dtype).reshape(*x.shape[:-1], rows).clone(memory_format=torch.contiguous_format)


def block_linear_backward(
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
    with torch.autocast(grad.device.type, enabled=False):
        return _backward(grad, x, values, index, meta, need_input, need_weight, whole, dtype)


def _backward(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    index: list[Tensor],
    meta: list[int],
    need_input: bool,
    need_weight: bool,
    whole: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    rows, cols, _, r, c = meta
    n, wide = samples_of(grad.shape), _wide(grad.dtype)
    grads = grad.reshape(n, rows // r, r).transpose(0, 1).to(wide)
    grad_x, grad_weight = grad.new_empty((0,)), grad.new_empty((0,), dtype=dtype)
    if need_input:
        blocks = blocks_of(values, index, meta).to(wide)
        of_input = grads.new_zeros((cols // c, n, c))
        for share, at_row, at_column in _shares(index, n, max(r, c)):
            of_input.index_add_(0, at_column, grads[at_row] @ blocks[share])
        grad_x = of_input.transpose(0, 1).to(grad.dtype).reshape(*grad.shape[:-1], cols)
        grad_x = grad_x.clone(memory_format=torch.contiguous_format)
    if need_weight:
        inputs = x.reshape(n, cols // c, c).transpose(0, 1).to(wide)
        of_blocks = grads.new_zeros((index[3].numel(), r, c))
        for share, at_row, at_column in _shares(index, n, max(r, c)):
            of_blocks[share] = grads[at_row].transpose(1, 2) @ inputs[at_column]
        grad_weight = of_blocks.to(dtype)
        if whole:
            dense = grad_weight.new_zeros((rows // r, cols // c, r, c))
            dense[index[3].long(), index[2].long()] = grad_weight
            grad_weight = dense.transpose(1, 2).reshape(rows, cols).clone(memory_format=torch.contiguous_format)
    return grad_x, grad_weight
