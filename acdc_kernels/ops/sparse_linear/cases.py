"""Samples, layouts and numbers of the sparse products; shapes and masks are those of ``ops.values.cases``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..values.cases import LAYOUTS as MATRIX_LAYOUTS

# Around vectors of 4, 8 and 16, and tiles of 32 of which the last may have 16.
SAMPLES = (0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 97, 128, 131)

LEADING: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (3, 0, 2), (2, 3), (1, 5, 1), (3, 1, 2, 7))

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    **MATRIX_LAYOUTS,
    "one sample repeated": lambda t: t[:1].expand_as(t),
    "one number repeated": lambda t: t[:1, :1].expand_as(t),
    "every third sample": lambda t: torch.repeat_interleave(t, 3, 0)[::3],
}

NUMBERS: dict[str, Callable[[tuple[int, ...], torch.Generator], Tensor]] = {
    "normal": lambda shape, g: torch.randn(shape, generator=g),
    "integers": lambda shape, g: torch.randint(-8, 9, shape, generator=g).float(),  # every sum is exact
    "denormal": lambda shape, g: torch.randn(shape, generator=g) * 1e-39,
    "tiny": lambda shape, g: torch.randn(shape, generator=g) * 1e-20,  # products of two are denormal
    "huge": lambda shape, g: torch.randn(shape, generator=g) * 1e17,
    "zeros": lambda shape, g: torch.randn(shape, generator=g) * (torch.rand(shape, generator=g) < 0.5),
}
