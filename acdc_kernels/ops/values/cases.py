"""Shapes, masks and layouts of topologies: around bundles of 4, blocks of 256 and 512, panels of 512, ranks of 4096."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SHAPES: tuple[tuple[int, int], ...] = (
    *((1, 1), (1, 7), (9, 1), (1, 600), (600, 1), (3, 5), (4, 4), (5, 3), (7, 33)),
    *((0, 5), (5, 0), (0, 0)),
    *((63, 65), (64, 64), (64, 63)),  # a rank of 4096 elements, and one below and above
    *((255, 257), (256, 256), (257, 255), (511, 31), (512, 16), (513, 17)),
    *((31, 511), (16, 512), (17, 513), (515, 514), (1025, 40), (40, 1026)),
)

GROUPED_SHAPES: tuple[tuple[int, int], ...] = (
    *((4, 1), (4, 7), (8, 3), (12, 16), (600, 1), (4, 600), (0, 5), (8, 0)),
    *((64, 64), (252, 257), (256, 255), (260, 33), (508, 31), (512, 16), (516, 17)),
    *((16, 511), (16, 513), (516, 514), (1028, 40), (40, 1026)),
)


def _ragged(shape: tuple[int, int], g: torch.Generator) -> Tensor:
    """Rows and columns from empty to full."""
    rows, cols = torch.rand((shape[0], 1), generator=g) ** 3, torch.rand((1, shape[1]), generator=g) ** 2
    return torch.rand(shape, generator=g) < rows + cols


def _few_rows(shape: tuple[int, int], g: torch.Generator) -> Tensor:
    """Every fifth row full, all others empty."""
    return (torch.arange(shape[0]).view(-1, 1) % 5 == 2).expand(shape)


def _few_columns(shape: tuple[int, int], g: torch.Generator) -> Tensor:
    return (torch.arange(shape[1]).view(1, -1) % 7 == 3).expand(shape)


def _share(density: float) -> Callable[[tuple[int, int], torch.Generator], Tensor]:
    return lambda shape, g: torch.rand(shape, generator=g) < density


MASKS: dict[str, Callable[[tuple[int, int], torch.Generator], Tensor]] = {
    "one in a hundred": _share(0.01),
    "a twentieth": _share(0.05),
    "a tenth": _share(0.1),
    "half": _share(0.5),
    "nine tenths": _share(0.9),
    "all kept": lambda shape, g: torch.ones(shape, dtype=torch.bool),
    "all pruned": lambda shape, g: torch.zeros(shape, dtype=torch.bool),
    "one kept": lambda shape, g: (torch.arange(shape[0] * shape[1]) == shape[0] * shape[1] // 2).view(shape),
    "ragged": _ragged,
    "few rows": _few_rows,
    "few columns": _few_columns,
}

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t,
    "transposed": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "every other": lambda t: torch.stack((t, torch.full_like(t, torch.nan)), -1)[..., 0],
    "wider rows": lambda t: torch.nn.functional.pad(t, (3, 5), value=torch.nan)[..., 3 : 3 + t.shape[-1]],
    "unaligned": lambda t: torch.cat((t.new_full((1,), torch.nan), t.flatten()))[1:].view(t.shape),
}


def mask(shape: tuple[int, int], name: str, pattern: str = "unstructured", seed: int = 0) -> Tensor:
    """A boolean mask ``shape``; with blocks, of as many rows of groups, each four times."""
    g = torch.Generator().manual_seed(seed)
    if pattern == "block:4x1":
        return MASKS[name]((shape[0] // 4, shape[1]), g).repeat_interleave(4, 0)
    return MASKS[name](shape, g).contiguous()


PATTERN_SHAPES: tuple[tuple[str, tuple[int, int]], ...] = (
    *(("unstructured", shape) for shape in SHAPES),
    *(("block:4x1", shape) for shape in GROUPED_SHAPES),
)
