"""What ``masked_sgd_`` means, in plain torch: ``torch.optim.SGD``'s update, then masked positions at +0.0.

float32 and float64 follow torch's order of roundings, so that without masks the numbers are torch's to the bit.
16-bit dtypes are computed in float32 and rounded once, when parameter and momentum are stored.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..mask_bits.reference import unpack_mask


def masked_sgd_(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor],
    masks: list[Tensor | None],
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    first_step: bool,
) -> None:
    for i, (param, grad, bits) in enumerate(zip(params, grads, masks, strict=True)):
        compute = torch.float32 if param.dtype in (torch.bfloat16, torch.float16) else param.dtype
        p, g = param.to(compute), grad.to(compute)
        if maximize:
            g = -g
        if weight_decay != 0:
            g = g.add(p, alpha=weight_decay)
        masked = None if bits is None else ~unpack_mask(bits, list(param.shape))
        if momentum != 0:
            stored = momentum_buffers[i]
            buf = g.clone() if first_step else stored.to(compute).mul(momentum).add(g, alpha=1 - dampening)
            g = g.add(buf, alpha=momentum) if nesterov else buf
            stored.copy_(buf)
            if masked is not None:
                stored.masked_fill_(masked, 0.0)
        param.copy_(p.add(g, alpha=-lr))
        if masked is not None:
            param.masked_fill_(masked, 0.0)
