"""2:4 along the input axis and along the output axis at once, so that a weight and its transpose both are 2:4."""

from __future__ import annotations

from collections.abc import Sequence

from .base import Pattern, axis_misfit

FORM = "2:4-transposable"


class Transposable(Pattern):
    """Two kept in every row and in every column of every 4x4 tile of dim 0 x dim 1, at one kernel position."""

    def misfit(self, shape: Sequence[int]) -> str | None:
        return axis_misfit(shape, 4, 4)

    def kept(self, numel: int, sparsity: float) -> int:
        """numel / 2, whatever the sparsity."""
        return numel // 2


def parse(text: str) -> Pattern | None:
    """The pattern, if ``text`` names it."""
    return Transposable(text, default_sparsity=0.5, fixed=True, structured=True) if text == FORM else None
