"""What packing, unpacking and applying mask bits mean, in plain torch, on any device."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def pack_mask(mask: Tensor) -> Tensor:
    flat = mask.reshape(-1).to(torch.uint8)
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % 8)).view(-1, 8)
    return (padded << torch.arange(8, dtype=torch.uint8, device=mask.device)).sum(1, dtype=torch.uint8)


def unpack_mask(bits: Tensor, shape: list[int]) -> Tensor:
    each = (bits.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8, device=bits.device)) & 1
    return each.view(-1)[: math.prod(shape)].to(torch.bool).reshape(shape)


def apply_mask_(tensors: list[Tensor], masks: list[Tensor]) -> None:
    for tensor, bits in zip(tensors, masks, strict=True):
        tensor.masked_fill_(~unpack_mask(bits, list(tensor.shape)), 0.0)
