"""The masks that AC/DC's published code would make: for comparing runs with it, not for speed or memory.

It keeps the weights whose score is *strictly greater* than the k-th largest, so one fewer than asked, and fewer still
on ties: score = |w| + 1e-4 in the weights' dtype, k = ceil(n (1 - sparsity)). Sparsity 0 keeps everything.

Source: ``policies/pruners.py`` (UnstructuredMagnitudePruner, MagnitudePruner) and ``percentile`` of the code that
accompanies Peste et al. 2021, arXiv 2106.12379.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..mask_bits import pack_mask


@torch.no_grad()
def paper_code_masks(weights: Sequence[Tensor], sparsity: float, scope: str) -> list[Tensor]:
    """Bits of each weight, with one threshold for all (``"global"``) or one for each (``"layer"``)."""
    if sparsity == 0:
        return [pack_mask(torch.ones(w.shape, dtype=torch.bool, device=w.device)) for w in weights]
    scores = [w.abs() + 1e-4 for w in weights]
    if scope == "global":
        thresholds = [_threshold(torch.cat([score.reshape(-1) for score in scores]), sparsity)] * len(weights)
    else:
        thresholds = [_threshold(score.reshape(-1), sparsity) for score in scores]
    return [pack_mask(score > threshold) for score, threshold in zip(scores, thresholds, strict=True)]


def _threshold(scores: Tensor, sparsity: float) -> Tensor:
    return torch.topk(scores, math.ceil(scores.numel() * (1 - sparsity)))[0][-1]
