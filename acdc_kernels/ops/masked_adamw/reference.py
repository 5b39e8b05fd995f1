"""What ``masked_adamw_`` means, in plain torch: ``torch.optim.AdamW``'s update, then masked positions at +0.0.

float32 and float64 follow the order of roundings of torch's own loop; bias corrections are float64. 16-bit dtypes are
computed in float32 and rounded once, when parameter and state are stored. Nothing here reads a device tensor on the
host. ``zeros_kept`` allows a kernel to leave out what changes nothing; all is written here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._update import compute_dtype, gradient, masked_positions, scalar, store


def _sqrt(x: Tensor) -> Tensor:
    # On a CPU torch leaves float32 roots to a library that is one unit off in a sixth of them.
    return x.double().sqrt().float() if x.dtype == torch.float32 and x.device.type == "cpu" else x.sqrt()


def _power(base: float, step: Tensor) -> Tensor | float:
    # The C library's power where that costs no wait: torch's own differs from it in the last bit.
    return base ** step.item() if step.device.type == "cpu" else torch.pow(base, step.double().reshape(()))


def masked_adamw_(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    masks: list[Tensor | None],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    amsgrad: bool,
    maximize: bool,
    lr_tensor: Tensor | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    zeros_kept: Sequence[bool] = (),
) -> None:
    rate = scalar(lr if lr_tensor is None else lr_tensor, params[0].device)
    for i, (param, grad, bits) in enumerate(zip(params, grads, masks, strict=True)):
        compute = compute_dtype(param)
        p, g = param.to(compute), gradient(grad, compute, maximize, grad_scale)
        masked = masked_positions(bits, param)
        step = steps[i] + 1
        correction1, correction2 = (1 - _power(beta, step) for beta in (beta1, beta2))
        p = p * (1 - rate * weight_decay)
        avg = exp_avgs[i].to(compute).lerp(g, 1 - beta1)
        square = exp_avg_sqs[i].to(compute).mul(beta2).addcmul(g, g, value=1 - beta2)
        largest = torch.maximum(max_exp_avg_sqs[i].to(compute), square) if amsgrad else square
        denominator = _sqrt(largest) / correction2**0.5 + eps
        moved = p + avg * -(rate / correction1) / denominator
        store(steps[i], step, None, found_inf)
        store(exp_avgs[i], avg, masked, found_inf)
        store(exp_avg_sqs[i], square, masked, found_inf)
        if amsgrad:
            store(max_exp_avg_sqs[i], largest, masked, found_inf)
        store(param, moved, masked, found_inf)
