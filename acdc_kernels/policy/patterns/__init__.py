"""Patterns: which shapes of zeros are allowed.

One file a pattern, with its written form ``FORM`` and ``parse(text) -> Pattern | None``; ``_KNOWN`` lists them.
"""

from __future__ import annotations

from . import block, n_m, transposable, unstructured
from .base import Pattern

__all__ = ["Pattern", "parse_pattern"]

_KNOWN = (unstructured, n_m, transposable, block)


def parse_pattern(text: str) -> Pattern:
    """The pattern that ``text`` names. Raises ValueError, naming the known forms, if there is none."""
    if isinstance(text, str):
        for module in _KNOWN:
            if (pattern := module.parse(text)) is not None:
                return pattern
    forms = [repr(module.FORM) for module in _KNOWN]
    raise ValueError(f"pattern must be {', '.join(forms[:-1])} or {forms[-1]}, got {text!r}")
