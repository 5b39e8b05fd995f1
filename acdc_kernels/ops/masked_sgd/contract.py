"""Schema and fake of ``masked_sgd_``."""

from __future__ import annotations

from typing import Any

from .._registry import register
from . import reference


def _fake(*args: Any) -> None:
    return None


masked_sgd_op = register(
    "masked_sgd_",
    "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, Tensor?[] masks, float lr, float momentum,"
    " float dampening, float weight_decay, bool nesterov, bool maximize, bool first_step, Tensor? lr_tensor,"
    " Tensor? grad_scale, Tensor? found_inf, bool[] zeros_kept=[]) -> ()",
    reference.masked_sgd_,
    _fake,
    ("params", "momentum_buffers"),
    triton=(__package__, "masked_sgd_"),
)
