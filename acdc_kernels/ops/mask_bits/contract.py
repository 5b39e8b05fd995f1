"""Schemas and fakes of ``pack_mask``, ``unpack_mask`` and ``apply_mask_``."""

from __future__ import annotations

import torch
from torch import Tensor

from ...formats.mask_bits import mask_bytes
from .._registry import register
from . import reference


def _fake_pack(mask: Tensor) -> Tensor:
    return mask.new_empty((mask_bytes(mask.numel()),), dtype=torch.uint8)


def _fake_unpack(bits: Tensor, shape: list[int]) -> Tensor:
    return bits.new_empty(shape, dtype=torch.bool)


def _fake_apply(tensors: list[Tensor], masks: list[Tensor]) -> None:
    return None


pack_mask_op = register("pack_mask", "(Tensor mask) -> Tensor", reference.pack_mask, _fake_pack)
unpack_mask_op = register("unpack_mask", "(Tensor bits, SymInt[] shape) -> Tensor", reference.unpack_mask, _fake_unpack)
apply_mask_op = register(
    "apply_mask_", "(Tensor(a!)[] tensors, Tensor[] masks) -> ()", reference.apply_mask_, _fake_apply, ("tensors",)
)
