"""Blocks, grids of them, masks and samples of the products of blocks; layouts are those of ``ops.values.cases``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...formats.blocks import SIDES

BLOCKS: tuple[tuple[int, int], ...] = tuple((r, c) for r in SIDES for c in SIDES)

SMALL: tuple[tuple[int, int], ...] = ((32, 32), (64, 32), (32, 128))

# Block rows and columns of a weight.
GRIDS: tuple[tuple[int, int], ...] = ((1, 1), (1, 4), (3, 1), (2, 3), (3, 4), (0, 2), (2, 0), (0, 0))

# Around tiles of 16 to 256 samples.
SAMPLES = (0, 1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257)


def _one(grid: tuple[int, int], g: torch.Generator) -> Tensor:
    return (torch.arange(grid[0] * grid[1]) == grid[0] * grid[1] // 2).view(grid)


def _ragged(grid: tuple[int, int], g: torch.Generator) -> Tensor:
    """Of each row one block more than of the row before."""
    return torch.arange(grid[1]).view(1, -1) <= torch.arange(grid[0]).view(-1, 1)


def _empty(grid: tuple[int, int], g: torch.Generator) -> Tensor:
    """Every second row and column empty, the first ones among them."""
    return (torch.arange(grid[0]).view(-1, 1) % 2 == 1) & (torch.arange(grid[1]).view(1, -1) % 2 == 1)


MASKS: dict[str, Callable[[tuple[int, int], torch.Generator], Tensor]] = {
    "all kept": lambda grid, g: torch.ones(grid, dtype=torch.bool),
    "all pruned": lambda grid, g: torch.zeros(grid, dtype=torch.bool),
    "one kept": _one,
    "half": lambda grid, g: torch.rand(grid, generator=g) < 0.5,
    "ragged": _ragged,
    "empty rows and columns": _empty,
    "few columns": lambda grid, g: (torch.arange(grid[1]).view(1, -1) % 3 == 1).expand(grid),
}


def mask(grid: tuple[int, int], block: tuple[int, int], name: str, seed: int = 0) -> Tensor:
    """A boolean mask of the weight's shape that keeps whole blocks."""
    kept = MASKS[name](grid, torch.Generator().manual_seed(seed)).contiguous()
    return kept.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)


def _wider(weight: Tensor) -> Tensor:
    return torch.nn.functional.pad(weight, (8, 24), value=torch.nan)[:, 8 : 8 + weight.shape[1]]


def _odd_rows(weight: Tensor) -> Tensor:
    return torch.nn.functional.pad(weight, (0, 3), value=torch.nan)[:, : weight.shape[1]]


def _unaligned(weight: Tensor) -> Tensor:
    return torch.cat((weight.new_full((1,), torch.nan), weight.flatten()))[1:].view(weight.shape)


# How a whole weight lies in memory.
WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t,
    "wider rows": _wider,
    "rows of an odd stride": _odd_rows,
    "unaligned": _unaligned,
    "transposed": lambda t: t.t().contiguous().t(),
}
