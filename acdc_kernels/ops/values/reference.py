"""What a topology is, and gathering and scattering through it, in plain torch; the layout is in ``formats.bundles``.

The index is integers throughout, so every backend gives these bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...formats.bundles import BLOCKS_4X1, OFFSET_SCALE, RANK_STEP
from ..mask_bits.reference import unpack_mask


def kept_positions(bits: Tensor, rows: int, cols: int) -> tuple[Tensor, Tensor]:
    """Row and column of every kept weight, in row-major order: int64 [kept] each."""
    flat = unpack_mask(bits, [rows * cols]).nonzero().view(-1)
    return flat // max(cols, 1), flat % max(cols, 1)


def _exclusive_sum(counts: Tensor) -> Tensor:
    """int64 [len + 1]: the sum of all entries before each one, and at the end of all."""
    return torch.cat((counts.new_zeros(1, dtype=torch.int64), counts.cumsum(0)))


def _rank(row: Tensor, col: Tensor, rows: int, cols: int) -> Tensor:
    """Kept weights before every 4096th, and at the end all: int64 [ceil(rows * cols / 4096) + 1]."""
    chunks = (rows * cols + RANK_STEP - 1) // RANK_STEP
    return _exclusive_sum(torch.bincount((row * cols + col) // RANK_STEP, minlength=chunks))


def _kept(op: str, index: list[Tensor], meta: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Row, column and place in values of every kept weight.

    Raises unless as many weights are kept in every run of 4096 as when the index was built.
    """
    rows, cols = meta[0], meta[1]
    row, col = kept_positions(index[0], rows, cols)
    if not torch.equal(_rank(row, col, rows, cols), index[1]):
        raise ValueError(
            f"{op}: index must be of the mask as it is now, got one whose bits were changed since it was built;"
            " compress again"
        )
    return row, col, index[2].long()


def _side(
    row: Tensor, col: Tensor, rows: int, cols: int, panel: int, block: int, per_group: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One side: (place of each entry, bundles, starts, offsets) for entries sorted by row and then by column.

    ``per_group``: rows are groups of four with one entry a step; rows and panel count groups, and so do the places.
    """
    panels, blocks = (rows + panel - 1) // panel, (cols + block - 1) // block
    lanes = 1 if per_group else 4
    cell = row * blocks + col // block
    count = torch.bincount(cell, minlength=rows * blocks)
    nth = torch.arange(cell.numel(), device=cell.device) - _exclusive_sum(count)[cell]  # within its row and block

    # A row that isn't there has -1 and comes after every row that is.
    padded = count.new_full((panels * panel, blocks), -1)
    padded[:rows] = count.view(rows, blocks)
    cells = padded.view(panels, panel, blocks).transpose(1, 2).contiguous()
    ordered, order = cells.sort(dim=2, descending=True, stable=True)
    ranks = torch.arange(panel, device=row.device).expand(cells.shape)
    stands = torch.empty_like(order).scatter_(2, order, ranks)  # of each row among the sorted ones
    order = order.masked_fill(ordered < 0, panel)
    k = ordered.clamp(min=0).view(-1, lanes)

    members = order.view(-1, lanes)
    steps = k[:, -1:]
    rest = k[:, :-1] - steps
    if per_group:
        members = members * 4 + torch.arange(4, device=row.device)
        rest = rest.new_zeros((len(steps), 3))
    # The last panel may have fewer bundles than the others.
    there = torch.arange(panels * blocks * (panel // lanes), device=row.device).view(panels, blocks, panel // lanes)
    size = torch.full((panels,), panel // lanes, device=row.device)
    if rows % panel:
        size[-1] = (rows % panel + lanes - 1) // lanes
    there = (there % (panel // lanes) < size.view(-1, 1, 1)).view(-1)
    bundles = torch.cat((members, steps, rest), 1)[there].to(torch.int16)

    first = _exclusive_sum(k.sum(1))
    starts = first[torch.arange(panels * blocks + 1, device=row.device) * (panel // lanes)]

    stands = stands[row // panel, col // block, row % panel]
    bundle = (row // panel * blocks + col // block) * (panel // lanes) + stands // lanes
    lane = stands % lanes
    taken = steps.view(-1)[bundle]
    if per_group:
        place = first[bundle] + nth
    else:
        before = torch.cat((rest.new_zeros((len(rest), 1)), rest.cumsum(1)), 1)[bundle, lane]
        place = first[bundle] + torch.where(nth < taken, nth * 4 + lane, taken * 3 + before + nth)
    offsets = torch.empty_like(place, dtype=torch.int16)
    offsets[place] = (col % block * OFFSET_SCALE).to(torch.int16)
    return place, bundles, starts, offsets


def build_bundles(bits: Tensor, meta: list[int], format: str) -> list[Tensor]:
    rows, cols, kept, panel, block, t_panel, t_block = meta
    row, col = kept_positions(bits, rows, cols)
    if row.numel() != kept:
        raise ValueError(f"build_bundles: bits must have as many ones as meta says ({kept}), got {row.numel()}")
    rank = _rank(row, col, rows, cols)

    if format == BLOCKS_4X1:
        head = row % 4 == 0
        group, column = row[head] // 4, col[head]
        place, bundles, starts, offsets = _side(group, column, rows // 4, cols, panel // 4, block, True)
        of_element = torch.empty((rows // 4, cols), dtype=torch.int64, device=bits.device)
        of_element[group, column] = place
        position = of_element[row // 4, col] * 4 + row % 4
        starts = starts * 4
        t_row, t_col, t_value = column, group * 4, place
    else:
        place, bundles, starts, offsets = _side(row, col, rows, cols, panel, block, False)
        position = place
        t_row, t_col, t_value = col, row, place

    order = t_row.sort(stable=True).indices  # by column, then by row
    t_place, t_bundles, t_starts, t_offsets = _side(t_row[order], t_col[order], cols, rows, t_panel, t_block, False)
    t_permutation = torch.empty_like(t_place, dtype=torch.int32)
    t_permutation[t_place] = t_value[order].to(torch.int32)
    return [rank, position.to(torch.int32), bundles, starts, offsets, t_bundles, t_starts, t_offsets, t_permutation]


def gather_values(weight: Tensor, index: list[Tensor], meta: list[int], format: str) -> Tensor:
    row, col, place = _kept("gather_values", index, meta)
    values = weight.new_empty((meta[2],))
    values[place] = weight[row, col]
    return values


def scatter_values(values: Tensor, index: list[Tensor], meta: list[int], format: str) -> Tensor:
    row, col, place = _kept("scatter_values", index, meta)
    weight = values.new_zeros((meta[0], meta[1]))
    weight[row, col] = values[place]
    return weight


def gather_blocks(weight: Tensor, index: list[Tensor], meta: list[int], dtype: torch.dtype) -> Tensor:
    rows, cols, _, r, c = meta
    blocks = weight.reshape(rows // r, r, cols // c, c).transpose(1, 2)
    return blocks[index[3].long(), index[2].long()].to(dtype).contiguous()


def scatter_blocks(values: Tensor, index: list[Tensor], meta: list[int]) -> Tensor:
    rows, cols, _, r, c = meta
    blocks = values.new_zeros((rows // r, cols // c, r, c))
    blocks[index[3].long(), index[2].long()] = values.view(-1, r, c)
    return blocks.transpose(1, 2).reshape(rows, cols)
