"""Schemas and fakes of ``roofline_read`` and ``roofline_update_``."""

from __future__ import annotations

import torch
from torch import Tensor

from .._registry import register
from . import reference


def _fake_read(tensors: list[Tensor]) -> Tensor:
    return tensors[0].new_empty((), dtype=torch.uint8)


def _fake_update(params: list[Tensor], grads: list[Tensor], buffers: list[Tensor], masks: list[Tensor]) -> None:
    return None


roofline_read_op = register("roofline_read", "(Tensor[] tensors) -> Tensor", reference.roofline_read, _fake_read)
roofline_update_op = register(
    "roofline_update_",
    "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] buffers, Tensor[] masks) -> ()",
    reference.roofline_update_,
    _fake_update,
    ("params", "buffers"),
)
