"""What ``masked_sgd_`` means, in plain torch: ``torch.optim.SGD``'s update, then masked positions at +0.0.

float32 and float64 follow torch's order of roundings, so that without masks the numbers are torch's to the bit.
16-bit dtypes are computed in float32 and rounded once, when parameter and momentum are stored. Nothing here reads a
device tensor on the host. ``zeros_kept`` allows a kernel to leave out what changes nothing; all is written here.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .._update import compute_dtype, gradient, masked_positions, scalar, store


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
    lr_tensor: Tensor | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    zeros_kept: Sequence[bool] = (),
) -> None:
    rate = scalar(lr if lr_tensor is None else lr_tensor, params[0].device)
    for i, (param, grad, bits) in enumerate(zip(params, grads, masks, strict=True)):
        compute = compute_dtype(param)
        p, g = param.to(compute), gradient(grad, compute, maximize, grad_scale)
        if weight_decay != 0:
            g = g.add(p, alpha=weight_decay)
        masked = masked_positions(bits, param)
        if momentum != 0:
            stored = momentum_buffers[i]
            buf = g.clone() if first_step else stored.to(compute).mul(momentum).add(g, alpha=1 - dampening)
            g = g.add(buf, alpha=momentum) if nesterov else buf
            store(stored, buf, masked, found_inf)
        moved = p.addcmul(g, -rate.to(compute)) if isinstance(rate, Tensor) else p.add(g, alpha=-rate)
        store(param, moved, masked, found_inf)
