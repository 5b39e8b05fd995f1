"""Schema and fake of ``masked_sgd_``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._registry import register
from . import reference


def _fake(*args: Any) -> None:
    return None


masked_sgd_op = register(
    "masked_sgd_",
    "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, Tensor?[] masks, float lr, float momentum,"
    " float dampening, float weight_decay, bool nesterov, bool maximize, bool first_step) -> ()",
    reference.masked_sgd_,
    _fake,
    ("params", "momentum_buffers"),
)


def launch_masked_sgd(params: list[Tensor], grads: list[Tensor], buffers: list[Tensor], *rest: Any) -> None:
    """The op as an optimizer calls it at every step: without gradients, and at a sixth of the overhead.

    In eager mode it goes below the layer where torch moves the version counters of custom ops one by one, from Python,
    and moves them itself in one call.
    """
    if torch.compiler.is_compiling():
        masked_sgd_op(params, grads, buffers, *rest)
        return
    with torch._C._AutoDispatchBelowADInplaceOrView():
        masked_sgd_op(params, grads, buffers, *rest)
    torch.autograd.graph.increment_version([*params, *buffers])
