"""Patterns: which shapes of zeros are allowed.

One file a pattern, with its written form ``FORM`` and ``parse(text) -> Pattern | None``; ``_KNOWN`` lists them.
"""

from __future__ import annotations

from . import unstructured
from .base import Pattern

__all__ = ["Pattern", "parse_pattern"]

_KNOWN = (unstructured,)


def parse_pattern(text: str) -> Pattern:
    """The pattern that ``text`` names. Raises ValueError, naming the known forms, if there is none."""
    for module in _KNOWN:
        if (pattern := module.parse(text)) is not None:
            return pattern
    raise ValueError(f"pattern must be {' or '.join(repr(module.FORM) for module in _KNOWN)}, got {text!r}")
