"""Bundles: how the kept weights of a linear layer lie in memory on a CPU, and the index that its products walk.

A weight is ``[rows, cols]`` (outputs, inputs), cut into *panels* of P consecutive rows and *blocks* of B consecutive
columns. ``values`` holds panel after panel, in a panel block after block, and exactly the kept weights: no padding.

Format ``"bundles"`` (pattern ``unstructured``), in one panel and block, with k the number of weights that a row keeps
there: the rows are sorted by k, largest first, ties by row; four consecutive ones are a *bundle* (rows missing in the
last one have k = 0), and ``steps`` is the k of its fourth row. The values of a bundle: for t < steps, for its rows
0..3, the t-th kept weight of the row; then what is left of row 0, of row 1, of row 2. So a kernel does four rows a
step with four sums in registers, and the sort leaves little for the rest.

Format ``"bundles-4x1"`` (pattern ``block:4x1``): a bundle is a group of four consecutive rows, which keep the same
columns; groups are sorted within panel and block by k, ties by row, and nothing is left over. Its values are blocks:
``[kept / 4, 4, 1]``.

The transposed weight, for the input gradient, has an index of the same kind (``t_``) into the same values. With
``block:4x1`` its entries are (column, group), and each stands for four consecutive values.

``meta`` is (rows, cols, kept, P, B, transposed P, transposed B); ``index`` holds ten tensors on the weight's device:

=================  ===========================  ====================================================================
0 bits             uint8 [ceil(n / 8)]          the mask that the topology was built from
1 rank             int64 [ceil(n / 4096) + 1]   kept weights before row-major element 4096 i; last: kept
2 position         int32 [kept]                 k-th kept weight in row-major order -> its place in values
3 bundles          int16 [n_bundles, 8]         rows 0..3 within the panel (a missing row is P), steps, rests 0..2;
                                                in the order panel, block, bundle
4 starts           int64 [panels * blocks + 1]  first value of (panel, block)
5 offsets          int16 [kept]                 (column within the block) * 64; with 4x1 [kept / 4]: one a step
6 t_bundles        as 3                         of the transposed weight
7 t_starts         as 4                         of the transposed weight; with 4x1: first entry
8 t_offsets        as 5                         of the transposed weight; with 4x1 one an entry: (first row of the
                                                group within the block) * 64
9 t_permutation    int32, as 8                  entry of the transposed order -> its place in values; with 4x1: the
                                                number of its block
=================  ===========================  ====================================================================
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .mask_bits import mask_bytes

UNSTRUCTURED = "bundles"
BLOCKS_4X1 = "bundles-4x1"
FORMATS = {"unstructured": UNSTRUCTURED, "block:4x1": BLOCKS_4X1}  # pattern -> format

RANK_STEP = 4096
OFFSET_SCALE = 64
PANEL_ROWS = 512
LARGEST_PANEL = LARGEST_BLOCK = 512  # offsets are int16
LARGEST_KEPT = 2**31 - 1  # places are int32
DENSE_ABOVE = (
    0.07  # density above which blocks are smaller, so that their columns of an input tile stay in the L1 cache
)


def choose_meta(rows: int, cols: int, kept: int) -> tuple[int, ...]:
    """The sizes of panels and blocks for a weight, as ``meta``."""
    block = 256 if kept > DENSE_ABOVE * rows * cols else 512
    return rows, cols, kept, PANEL_ROWS, block, PANEL_ROWS, block


def _side_sizes(rows: int, cols: int, panel: int, block: int) -> tuple[int, int]:
    """(bundles, panels * blocks) of one side."""
    panels, blocks = (rows + panel - 1) // panel, (cols + block - 1) // block
    bundles = rows // panel * (panel // 4) + (rows % panel + 3) // 4
    return bundles * blocks, panels * blocks


def index_layout(meta: Sequence[int], format: str) -> list[tuple[list[int], torch.dtype]]:
    """Shape and dtype of each of the ten index tensors; host arithmetic only."""
    rows, cols, kept, panel, block, t_panel, t_block = meta
    bundles, cells = _side_sizes(rows, cols, panel, block)
    t_bundles, t_cells = _side_sizes(cols, rows, t_panel, t_block)
    entries = kept // 4 if format == BLOCKS_4X1 else kept
    return [
        ([mask_bytes(rows * cols)], torch.uint8),
        ([(rows * cols + RANK_STEP - 1) // RANK_STEP + 1], torch.int64),
        ([kept], torch.int32),
        ([bundles, 8], torch.int16),
        ([cells + 1], torch.int64),
        ([entries], torch.int16),
        ([t_bundles, 8], torch.int16),
        ([t_cells + 1], torch.int64),
        ([entries], torch.int16),
        ([entries], torch.int32),
    ]
