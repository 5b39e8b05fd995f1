"""Random numbers that depend on (seed, epoch, sample) alone, and the usual augmentation of small images by batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


_STEP = 0x9E3779B97F4A7C15
_MULTIPLY = (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))


def _shifted(bits: Tensor, by: int) -> Tensor:
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _mixed(bits: Tensor) -> Tensor:
    """SplitMix64's output function (Steele, Lea & Flood, 2014) on int64, which wraps around."""
    bits = (bits ^ _shifted(bits, 30)) * _MULTIPLY[0]
    bits = (bits ^ _shifted(bits, 27)) * _MULTIPLY[1]
    return bits ^ _shifted(bits, 31)


def random_bits(seed: int, epoch: int, indices: Tensor, draws: int) -> Tensor:
    """int64 [n, draws] in [0, 2**31): row i is a pure function of `seed`, `epoch` and indices[i]."""
    state = _mixed(torch.tensor([_signed((seed + 1) * _STEP % (1 << 64))]))
    state = _mixed(_mixed(state + epoch) + indices)
    return _shifted(_mixed(state[:, None] + torch.arange(1, draws + 1) * _signed(_STEP)), 33)


def crop_and_flip(images: Tensor, seed: int, epoch: int, indices: Tensor, padding: int = 4) -> Tensor:
    """Each image padded with zeros, cropped back to its size at a random place, and mirrored half of the time.

    `images` [B, H, W, C] of any dtype; the result has their shape. `indices` [B] says which sample each is.
    """
    height, width = images.shape[1:3]
    bits = random_bits(seed, epoch, indices, 3)
    top, left, flip = bits[:, 0] % (2 * padding + 1), bits[:, 1] % (2 * padding + 1), bits[:, 2] % 2 == 1
    rows = top[:, None] + torch.arange(height)
    columns = torch.where(flip[:, None], torch.arange(width - 1, -1, -1), torch.arange(width)) + left[:, None]
    padded = F.pad(images, (0, 0, padding, padding, padding, padding))
    return padded[torch.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]]
