"""What the sparse products of a linear layer mean, in plain torch: a sum over the kept weights and nothing else.

A weight that isn't kept takes no part, so Inf and NaN in the other factor don't meet its zero. Samples are the last
dimension inside, as in the kernels' tiles.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..values.reference import kept_positions

TILE = 32  # samples; the last tile has 16 where that is enough
_AT_ONCE = 1 << 24  # products held at a time


def samples_of(shape: torch.Size | list[int]) -> int:
    return math.prod(shape[:-1])


def padded(n: int) -> int:
    """How many samples the tiles of n have."""
    return (n + 15) // 16 * 16


def tiles_size(n: int, cols: int) -> int:
    """Elements of the tiles of n samples."""
    return cols * padded(n)


def _tiles(n: int) -> tuple[int, int]:
    """How many tiles of 32 samples, and how many samples (0 or 16) the one after them has."""
    return divmod(padded(n), TILE)


def pack(x: Tensor) -> Tensor:
    """The samples ``[N, cols]`` as tiles ``[cols][32]``, or 16 for the last; flat, missing samples 0."""
    n, cols = x.shape
    tiles, last = _tiles(n)
    samples = x.new_zeros((tiles * TILE + last, cols))
    samples[:n] = x
    whole = samples[: tiles * TILE].view(tiles, TILE, cols).transpose(1, 2)
    return torch.cat((whole.reshape(-1), samples[tiles * TILE :].t().reshape(-1)))


def unpack(packed: Tensor, n: int, cols: int) -> Tensor:
    """The samples ``[N, cols]`` of :func:`pack`."""
    tiles, last = _tiles(n)
    whole, rest = packed.split((tiles * TILE * cols, last * cols))
    x = whole.view(tiles, cols, TILE).transpose(1, 2).reshape(tiles * TILE, cols)
    return torch.cat((x, rest.view(cols, last).t()))[:n]


def _kept(values: Tensor, index: list[Tensor], meta: list[int], n: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(row, column, place in values) of the kept weights, a share at a time."""
    row, col = kept_positions(index[0], meta[0], meta[1])
    step = max(_AT_ONCE // max(n, 1), 1)
    return zip(row.split(step), col.split(step), index[2].long().split(step), strict=True)


def sparse_linear(
    x: Tensor,
    values: Tensor,
    index: list[Tensor],
    meta: list[int],
    format: str,
    bias: Tensor | None,
    save: bool,
    fp16: bool,
) -> tuple[Tensor, Tensor]:
    rows, cols = meta[0], meta[1]
    n = samples_of(x.shape)
    samples = x.reshape(n, cols)
    tiles = pack(samples) if save else x.new_empty((0,))
    if fp16:
        samples, values = samples.half().to(x.dtype), values.half().to(x.dtype)
    inputs, y = samples.t().contiguous(), x.new_zeros((rows, n))
    for row, col, place in _kept(values, index, meta, n):
        y.index_add_(0, row, values[place].unsqueeze(1) * inputs[col])
    if bias is not None:
        y += bias.unsqueeze(1)
    return y.t().reshape(*x.shape[:-1], rows).clone(memory_format=torch.contiguous_format), tiles


def sparse_linear_backward(
    grad: Tensor,
    x: Tensor,
    packed: bool,
    values: Tensor,
    index: list[Tensor],
    meta: list[int],
    format: str,
    need_input: bool,
    need_values: bool,
) -> tuple[Tensor, Tensor]:
    rows, cols = meta[0], meta[1]
    n = samples_of(grad.shape)
    grads = grad.reshape(n, rows).t().contiguous()
    grad_x = grad.new_zeros((cols, n)) if need_input else grad.new_empty((0,))
    grad_values = values.new_empty(values.shape) if need_values else values.new_empty((0,))
    if need_values:
        inputs = (unpack(x, n, cols) if packed else x.reshape(n, cols)).t().contiguous()
    for row, col, place in _kept(values, index, meta, n):
        if need_input:
            grad_x.index_add_(0, col, values[place].unsqueeze(1) * grads[row])
        if need_values:
            grad_values[place] = (grads[row] * inputs[col]).sum(1)
    if need_input:
        grad_x = grad_x.t().reshape(*grad.shape[:-1], cols).clone(memory_format=torch.contiguous_format)
    return grad_x, grad_values
