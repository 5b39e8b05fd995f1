"""Schema and fake of ``masked_adamw_``."""

from __future__ import annotations

from typing import Any

from .._registry import register
from . import reference


def _fake(*args: Any) -> None:
    return None


masked_adamw_op = register(
    "masked_adamw_",
    "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs,"
    " Tensor(d!)[] max_exp_avg_sqs, Tensor(e!)[] steps, Tensor?[] masks, float lr, float beta1, float beta2, float eps,"
    " float weight_decay, bool amsgrad, bool maximize, Tensor? lr_tensor, Tensor? grad_scale, Tensor? found_inf,"
    " bool[] zeros_kept=[]) -> ()",
    reference.masked_adamw_,
    _fake,
    ("params", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "steps"),
    triton=(__package__, "masked_adamw_"),
)
