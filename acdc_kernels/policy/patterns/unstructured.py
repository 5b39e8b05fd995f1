"""Zeros anywhere."""

from __future__ import annotations

from .base import Pattern

FORM = "unstructured"


def parse(text: str) -> Pattern | None:
    """The pattern, if ``text`` names it. Sparsity 0.9 unless asked otherwise, as in most of the paper's tables."""
    return Pattern(text, default_sparsity=0.9) if text == FORM else None
