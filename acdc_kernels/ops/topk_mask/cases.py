"""Cases of ``topk_mask`` that every backend passes: sizes around vectors, bytes and chunks; values; strides."""

from __future__ import annotations

import math
from collections.abc import Callable

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


def weights(shapes: str, values: str, dtype: torch.dtype, layout: str = "contiguous", seed: int = 0) -> list[Tensor]:
    """The weights of one case."""
    g = torch.Generator().manual_seed(seed)
    return [LAYOUTS[layout](VALUES[values](shape, g).to(dtype)) for shape in SHAPES[shapes]]


def budgets(numel: int) -> list[int]:
    """All-pruned, one kept, 1%, 10%, half, all but one, all-kept."""
    return sorted({k for k in (0, 1, numel // 100, numel // 10, numel // 2, numel - 1, numel) if 0 <= k <= numel})
