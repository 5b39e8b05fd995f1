"""What ``topk_mask`` means, in plain torch, on any device and any floating dtype: one stable sort of the magnitudes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..mask_bits.reference import pack_mask


def _keep_largest(flat: Tensor, keep: int) -> Tensor:
    # torch sorts NaN as the largest value, and a stable sort gives ties to the lowest index.
    order = torch.sort(flat.abs(), descending=True, stable=True).indices[:keep]
    kept = torch.zeros(flat.shape, dtype=torch.bool, device=flat.device)
    kept[order] = True
    return kept


def topk_mask(weights: list[Tensor], keep: list[int], pattern: str) -> tuple[list[Tensor], Tensor]:
    flats = [w.detach().reshape(-1) for w in weights]
    if len(keep) == len(weights):
        kept = [_keep_largest(flat, k) for flat, k in zip(flats, keep, strict=True)]
    else:
        kept = list(_keep_largest(torch.cat(flats), keep[0]).split([flat.numel() for flat in flats]))
    nan_count = torch.stack([flat.isnan().sum() for flat in flats])
    return [pack_mask(k) for k in kept], nan_count
