"""What ``magnitude_histogram`` means, in plain torch, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16}


def keys(weight: Tensor) -> Tensor:
    """Magnitudes as integers that are ordered as they are, every NaN just above Inf: int64, flat."""
    integer = _INTEGERS[weight.dtype.itemsize]
    inf = int(torch.tensor(float("inf"), dtype=weight.dtype).view(integer))
    bits = weight.detach().reshape(-1).view(integer) & torch.iinfo(integer).max
    return bits.clamp_(max=inf + 1).to(torch.int64)


def magnitude_histogram(weights: list[Tensor], base: Tensor, width: int, shift: int) -> Tensor:
    bins = 1 << (width - shift)
    counts = base.new_zeros(base.numel(), bins + 1)
    for i, weight in enumerate(weights):
        row = i if base.numel() > 1 else 0
        at = ((keys(weight) - base[row]) >> shift).clamp(-1, bins)  # -1: below the interval
        counts[row] += torch.bincount(at + 1, minlength=bins + 2)[1:]
    return counts
