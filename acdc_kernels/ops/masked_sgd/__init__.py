"""SGD with momentum under masks, over a whole model in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._update import check_scalars, check_tensors, check_zeros_kept
from . import contract


@torch.no_grad()
def masked_sgd_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    masks: Sequence[Tensor | None],
    *,
    lr: float | Tensor,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    first_step: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    zeros_kept: Sequence[bool] = (),
) -> None:
    r"""One step of SGD on the kept weights; masked weights and their momentum become exactly +0.0.

    With :math:`g` the gradient divided by ``grad_scale`` (negated for ``maximize``), :math:`\lambda` the weight decay,
    :math:`\mu` the momentum, :math:`\tau` the dampening, :math:`\gamma` the learning rate and :math:`m` the mask:

    .. math::
        g &\leftarrow g + \lambda p \\
        b &\leftarrow m \odot (\mu b + (1 - \tau) g) \qquad (b \leftarrow m \odot g \text{ on the first step}) \\
        p &\leftarrow m \odot (p - \gamma\, b) \qquad (g + \mu b \text{ in place of } b \text{ for Nesterov})

    :math:`m \odot x` writes +0.0 where the bit is 0, whatever x holds, NaN and Inf included. Without masks, float32
    and float64 give ``torch.optim.SGD``'s numbers; 16-bit dtypes are computed in float32 and rounded once when stored.

    Args:
        params: float32, float64, bfloat16 or float16, any shapes and strides, on one device; written to.
        grads: for each parameter its gradient: same shape and dtype; not written to.
        momentum_buffers: for each parameter its momentum, same shape, written to; of its dtype, or float32 for a
            16-bit parameter. Empty when ``momentum`` is 0.
        masks: for each parameter its bits, uint8 ``[(n + 7) // 8]``, or None for a dense parameter.
        lr: a number, or a tensor of one element on the CPU or the parameters' device, read by the kernel.
        first_step: the buffers hold nothing yet, and become the gradient.
        grad_scale: what the gradients were multiplied by, a tensor of one element; None: 1.
        found_inf: a tensor of one element; where it is not zero, nothing changes at all.
        zeros_kept: for each parameter whether the caller vouches that it and its state are +0.0 wherever its mask is 0:
            where a GPU can tell from the mask alone, it then neither reads nor writes them. Empty: for none.

    Raises:
        TypeError, ValueError: lists of different lengths, shapes or dtypes that differ, mixed devices, a mask of the
            wrong length. Nothing was changed then.

    Source: ``torch.optim.SGD``; the masked update of AC/DC (Peste et al. 2021, arXiv 2106.12379, algorithm 1).
    """
    params, grads, buffers, masks = list(params), list(grads), list(momentum_buffers), list(masks)
    if momentum == 0 and buffers:
        raise ValueError(f"masked_sgd_: momentum_buffers must be empty when momentum is 0, got {len(buffers)}")
    states = {"momentum_buffers": buffers} if momentum != 0 else {}
    check_tensors("masked_sgd_", params, grads, states, masks)
    zeros_kept = check_zeros_kept("masked_sgd_", params, zeros_kept)
    lr_tensor = lr if isinstance(lr, Tensor) else None
    check_scalars("masked_sgd_", params[0].device, lr=lr_tensor, grad_scale=grad_scale, found_inf=found_inf)
    contract.masked_sgd_op(
        params,
        grads,
        buffers,
        masks,
        0.0 if lr_tensor is not None else lr,
        momentum,
        dampening,
        weight_decay,
        nesterov,
        maximize,
        first_step,
        lr_tensor,
        grad_scale,
        found_inf,
        zeros_kept,
    )
