"""Cases of ``topk_mask`` that every backend passes: sizes around vectors, bytes and chunks; values; strides."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "scalar": ((),),
    "one_element": ((1,),),
    "one_row": ((1, 1000),),
    "empty_only": ((0,), (0, 4)),
    "empty_among_others": ((3,), (5, 0, 3), (0,), (9,)),
    "around_a_byte": ((7,), (8,), (9,)),
    "around_a_vector": ((15,), (16,), (17,), (31,), (32,), (33,), (63,), (65,)),
    "awkward": ((1000,), (63, 5), (33, 17)),
    "convolutions": ((16, 3, 3, 3), (32, 16, 1, 1), (10, 33)),
    "around_a_chunk": ((16383,), (16384,), (16385,)),
    "bracketed": ((300, 1001), (40000,), (7,)),
}


def _normal(shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=g, dtype=torch.float64)


def _ties(shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    return (_normal(shape, g) * 2).round()


def _constant(shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    return torch.full(shape, -0.25, dtype=torch.float64)


def _signed_zeros(shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    x = torch.zeros(shape, dtype=torch.float64)
    return torch.where(torch.rand(shape, generator=g) < 0.5, -x, x)


def _mostly_zero(shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    return _normal(shape, g) * (torch.rand(shape, generator=g) < 0.05)


def _denormal(shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    return _normal(shape, g) * 1e-40


def _tiny_half(shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    return _normal(shape, g) * 1e-7


def _non_finite(shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    x, where = _normal(shape, g), torch.rand(shape, generator=g)
    x[where < 0.02] = math.nan
    x[(where >= 0.02) & (where < 0.04)] = math.inf
    x[(where >= 0.04) & (where < 0.06)] = -math.inf
    x[(where >= 0.06) & (where < 0.08)] = -math.nan
    return x


def _unequal_scales(shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    return _normal(shape, g) * float(torch.rand((), generator=g) * 10)


VALUES: dict[str, Callable[[tuple[int, ...], torch.Generator], Tensor]] = {
    "normal": _normal,
    "ties": _ties,
    "constant": _constant,
    "signed_zeros": _signed_zeros,
    "mostly_zero": _mostly_zero,
    "denormal": _denormal,
    "tiny_half": _tiny_half,
    "non_finite": _non_finite,
    "unequal_scales": _unequal_scales,
}

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.transpose(0, -1) if x.dim() > 1 else x,
    "every_other": lambda x: torch.stack((x, torch.full_like(x, math.inf)), -1)[..., 0],
    "unaligned": lambda x: torch.cat((x.new_zeros(1), x.flatten()))[1:].view(x.shape),
    "channels_last": lambda x: x.to(memory_format=torch.channels_last) if x.dim() == 4 else x,
    "expanded": lambda x: x[:1].expand_as(x) if x.dim() > 1 and len(x) else x,
}


def weights(
    shapes: str,
    values: str,
    dtype: torch.dtype,
    layout: str = "contiguous",
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> list[Tensor]:
    """The weights of one case: the same numbers on every device."""
    return _weights(SHAPES[shapes], values, dtype, layout, seed, device)


def _weights(
    shapes: Sequence[tuple[int, ...]], values: str, dtype: torch.dtype, layout: str, seed: int, device: object
) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [LAYOUTS[layout](VALUES[values](shape, g).to(dtype).to(device)) for shape in shapes]


def budgets(numel: int) -> list[int]:
    """All-pruned, one kept, 1%, 10%, half, all but one, all-kept."""
    return sorted({k for k in (0, 1, numel // 100, numel // 10, numel // 2, numel - 1, numel) if 0 <= k <= numel})


# Awkward for a structured pattern: rows that end inside a byte, one group a row, odd kernels, few and many groups.
PATTERNS: dict[str, dict[str, tuple[tuple[int, ...], ...]]] = {
    "2:4": {
        "linear": ((1, 4), (3, 4), (5, 12), (7, 1000), (0, 4), (33, 36)),
        "convolutions": ((3, 4, 3, 3), (5, 8, 1, 1), (2, 4, 7), (3, 12, 2, 2), (2, 4, 5, 7, 2)),
        "many": ((130, 516), (40, 16, 3, 3)),
    },
    "1:4": {"linear": ((3, 4), (7, 1000)), "convolutions": ((3, 4, 3, 3), (2, 4, 7)), "many": ((130, 516),)},
    "3:4": {"linear": ((3, 4), (7, 20)), "convolutions": ((3, 4, 3, 3), (1, 4, 65))},
    "1:2": {"linear": ((3, 2), (7, 50)), "convolutions": ((3, 6, 3, 3), (1, 2, 33)), "many": ((131, 514),)},
    "2:8": {"linear": ((3, 8), (5, 24)), "convolutions": ((3, 8, 3, 3), (1, 16, 17)), "many": ((130, 520),)},
    "4:8": {"linear": ((3, 8), (5, 24)), "convolutions": ((3, 8, 3, 3), (1, 16, 17)), "many": ((130, 520),)},
    "7:8": {"linear": ((3, 8), (5, 24)), "convolutions": ((3, 8, 3, 3),)},
    "2:5": {"linear": ((3, 5), (7, 15)), "convolutions": ((3, 5, 3, 3), (2, 10, 2)), "many": ((131, 515),)},
    "3:16": {"linear": ((3, 16), (7, 48)), "convolutions": ((3, 16, 3, 3),)},
    "5:700": {"linear": ((3, 700),), "convolutions": ((2, 700, 2), (1, 700, 13))},
    "2:4-transposable": {
        "linear": ((4, 4), (8, 12), (4, 1000), (0, 4), (12, 36)),
        "convolutions": ((4, 4, 3, 3), (8, 8, 1, 1), (4, 8, 7), (4, 4, 131), (8, 4, 2, 2)),
        "many": ((132, 260), (20, 16, 3, 3)),
    },
    "block:4x1": {
        "linear": ((4, 1), (8, 3), (12, 33), (4, 0), (16, 100)),
        "convolutions": ((4, 3, 3, 3), (8, 5, 1, 1), (4, 4, 7)),
        "many": ((132, 257), (40, 16, 3, 3)),
    },
    "block:1x2": {
        "linear": ((1, 2), (3, 2), (7, 34)),
        "convolutions": ((3, 4, 3, 3), (1, 2, 65), (5, 6, 1, 1)),
        "many": ((131, 514),),
    },
    "block:1x1": {"linear": ((3, 3), (1, 65)), "convolutions": ((3, 3, 3, 3),)},
    "block:2x3": {"linear": ((2, 3), (6, 33)), "convolutions": ((4, 3, 3, 3), (2, 9, 5)), "many": ((130, 513),)},
    "block:4x4": {"linear": ((4, 4), (12, 36)), "convolutions": ((4, 8, 3, 3),), "many": ((132, 516),)},
    "block:1x8": {"linear": ((1, 8), (5, 24)), "convolutions": ((3, 8, 3, 3),)},
    "block:8x16": {"linear": ((8, 16), (24, 48)), "convolutions": ((8, 16, 3, 3),), "many": ((128, 512),)},
    "block:3x40": {"linear": ((3, 40), (6, 120)), "convolutions": ((3, 40, 3),)},
}


def pattern_weights(
    pattern: str,
    shapes: str,
    values: str,
    dtype: torch.dtype,
    layout: str = "contiguous",
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> list[Tensor]:
    """The weights of one case of a structured pattern: the same numbers on every device."""
    return _weights(PATTERNS[pattern][shapes], values, dtype, layout, seed, device)
