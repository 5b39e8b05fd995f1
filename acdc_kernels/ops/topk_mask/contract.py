"""Schema and fake of ``topk_mask``: ``keep`` has one entry (a budget for all) or one a weight; none where the pattern
itself decides."""

from __future__ import annotations

import torch
from torch import Tensor

from ...formats.mask_bits import mask_bytes
from .._registry import register
from . import reference


def _fake(weights: list[Tensor], keep: list[int], pattern: str) -> tuple[list[Tensor], Tensor]:
    masks = [w.new_empty((mask_bytes(w.numel()),), dtype=torch.uint8) for w in weights]
    return masks, weights[0].new_empty((len(weights),), dtype=torch.int64)


topk_mask_op = register(
    "topk_mask",
    "(Tensor[] weights, SymInt[] keep, str pattern) -> (Tensor[] masks, Tensor nan_count)",
    reference.topk_mask,
    _fake,
)
