"""Schema and fake of ``magnitude_histogram``: ``base`` has one entry (a row for all weights) or one a weight."""

from __future__ import annotations

import torch
from torch import Tensor

from .._registry import register
from . import reference

MOST_BITS = 12  # of a key that one histogram tells apart


def _fake(weights: list[Tensor], base: Tensor, width: int, shift: int) -> Tensor:
    return weights[0].new_empty((base.numel(), (1 << (width - shift)) + 1), dtype=torch.int64)


magnitude_histogram_op = register(
    "magnitude_histogram",
    "(Tensor[] weights, Tensor base, int width, int shift) -> Tensor",
    reference.magnitude_histogram,
    _fake,
)
