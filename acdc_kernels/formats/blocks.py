"""Blocks: how the kept weights of a linear layer lie in memory under ``block:RxC`` with large blocks, and their index.

A weight is ``[rows, cols]`` (outputs, inputs), cut into ``rows / R`` block rows and ``cols / C`` block columns. A block
is kept or pruned as a whole, so the index has an entry a block, and a product of blocks runs on matrix units.
``values`` is ``[blocks, R, C]``: the kept blocks in row-major order of their places, each row-major inside.

The transposed weight, for the input gradient, has an index of its own into the same values. ``order`` and ``t_order``
say with which block rows and columns to begin: those that take longest.

``meta`` is (rows, cols, kept, R, C) with R and C of 32, 64 or 128; ``index`` holds nine tensors on the weight's device:

=============  =======================  ==============================================================================
0 bits         uint8 [ceil(n / 8)]      the mask that the topology was built from
1 starts       int32 [rows / R + 1]     first block of each block row; last: how many there are
2 columns      int32 [blocks]           block column of each block
3 rows         int32 [blocks]           block row of each block
4 order        int32 [rows / R]         block rows, those with most blocks first, ties by row
5 t_starts     int32 [cols / C + 1]     first entry of each block column
6 t_rows       int32 [blocks]           block row of each entry; entries are sorted by column, then by row
7 t_blocks     int32 [blocks]           which block of values each entry is
8 t_order      int32 [cols / C]         block columns, those with most entries first, ties by column
=============  =======================  ==============================================================================
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from .mask_bits import mask_bytes

BLOCKS = "blocks"
SIDES = (32, 64, 128)  # of blocks: multiples of what matrix units take, and of the 8 weights of a byte of the mask


def block_sides(pattern: str) -> tuple[int, int] | None:
    """(R, C) of a pattern that this format stores; None of any other."""
    found = re.fullmatch(r"block:([1-9]\d*)x([1-9]\d*)", pattern)
    if found is None:
        return None
    rows, columns = int(found[1]), int(found[2])
    return (rows, columns) if rows in SIDES and columns in SIDES else None


def index_layout(meta: Sequence[int]) -> list[tuple[list[int], torch.dtype]]:
    """Shape and dtype of each of the nine index tensors; host arithmetic only."""
    rows, cols, kept, r, c = meta
    blocks, block_rows, block_columns = kept // (r * c), rows // r, cols // c
    sizes = (block_rows + 1, blocks, blocks, block_rows, block_columns + 1, blocks, blocks, block_columns)
    return [([mask_bytes(rows * cols)], torch.uint8), *(([size], torch.int32) for size in sizes)]


def torn_block(bits: Tensor, rows: int, cols: int, r: int, c: int) -> tuple[int, int] | None:
    """The first (block row, block column) of which a mask keeps some weights but not all; None if there is none."""
    if bits.numel() == 0:
        return None
    of_blocks = bits.view(rows // r, r, cols // c, c // 8)
    first = of_blocks[:, :1, :, :1]
    torn = (of_blocks != first).any(3).any(1) | ((first != 0) & (first != 255)).view(rows // r, cols // c)
    if not bool(torn.any()):
        return None
    row, column = torn.nonzero()[0].tolist()
    return row, column


def build_index(bits: Tensor, rows: int, cols: int, r: int, c: int) -> list[Tensor]:
    """``index`` without the mask itself, which keeps whole blocks. Waits for a GPU: the number of blocks is a shape."""
    kept = bits.view(rows // r, r, cols // c, c // 8)[:, 0, :, 0] != 0
    at_row, at_column = kept.nonzero().unbind(1)
    by_column = (at_column * max(rows // r, 1) + at_row).sort()
    counts, t_counts = kept.sum(1), kept.sum(0)

    def starts(count: Tensor) -> Tensor:
        return torch.cat((count.new_zeros(1), count.cumsum(0)))

    index = (
        *(starts(counts), at_column, at_row, counts.sort(descending=True, stable=True).indices),
        *(starts(t_counts), at_row[by_column.indices], by_column.indices),
        t_counts.sort(descending=True, stable=True).indices,
    )
    return [t.to(torch.int32) for t in index]
