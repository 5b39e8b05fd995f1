"""Of each m consecutive weights along the input axis, n are kept."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .base import Pattern, axis_misfit, numbers

FORM = "n:m"


@dataclass(frozen=True, kw_only=True)
class NofM(Pattern):
    """n kept in every group of m along dim 1, at one kernel position: the one sparsity is 1 - n/m."""

    n: int
    m: int

    def misfit(self, shape: Sequence[int]) -> str | None:
        return axis_misfit(shape, 1, self.m)

    def kept(self, numel: int, sparsity: float) -> int:
        """n * numel / m, whatever the sparsity."""
        return numel // self.m * self.n


def parse(text: str) -> Pattern | None:
    """The pattern, if ``text`` is two numbers with a colon between them; ValueError unless 1 <= n < m <= LARGEST."""
    match = re.fullmatch(r"([0-9]+):([0-9]+)", text)
    if match is None:
        return None
    n, m = numbers(match)
    if not 1 <= n < m or text != f"{n}:{m}":
        raise ValueError(f"pattern 'n:m' must be two numbers with 1 <= n < m, such as '2:4', got {text!r}")
    return NofM(text, default_sparsity=1 - n / m, fixed=True, structured=True, n=n, m=m)
