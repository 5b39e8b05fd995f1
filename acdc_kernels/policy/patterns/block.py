"""Whole blocks of R x C weights are kept or pruned."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .base import Pattern, axis_misfit, numbers

FORM = "block:RxC"


@dataclass(frozen=True, kw_only=True)
class Block(Pattern):
    """Blocks of ``rows`` along dim 0 and ``columns`` along dim 1, at one kernel position."""

    rows: int
    columns: int

    def misfit(self, shape: Sequence[int]) -> str | None:
        return axis_misfit(shape, self.rows, self.columns)


def parse(text: str) -> Pattern | None:
    """The pattern, if ``text`` is "block:" and two numbers; ValueError unless both are from 1 to LARGEST."""
    match = re.fullmatch(r"block:([0-9]+)x([0-9]+)", text)
    if match is None:
        return None
    rows, columns = numbers(match)
    if rows < 1 or columns < 1 or text != f"block:{rows}x{columns}":
        raise ValueError(f"pattern 'block:RxC' must have R and C of at least 1, such as 'block:4x1', got {text!r}")
    return Block(text, default_sparsity=0.9, unit=rows * columns, structured=True, rows=rows, columns=columns)
