"""SGD with momentum under masks, over a whole model in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...formats.mask_bits import check_bits
from ..dtypes import FLOAT_DTYPES
from . import contract


def _check(
    params: list[Tensor], grads: list[Tensor], buffers: list[Tensor], masks: list[Tensor | None], momentum: float
) -> None:
    if not params:
        raise ValueError("masked_sgd_: params must have at least one tensor, got an empty list")
    for name, values in (
        ("grads", grads),
        ("masks", masks),
        *((("momentum_buffers", buffers),) if momentum != 0 else ()),
    ):
        if len(values) != len(params):
            raise ValueError(f"masked_sgd_: {name} must have one entry a parameter ({len(params)}), got {len(values)}")
    if momentum == 0 and buffers:
        raise ValueError(f"masked_sgd_: momentum_buffers must be empty when momentum is 0, got {len(buffers)}")
    for i, param in enumerate(params):
        if not isinstance(param, Tensor) or param.dtype not in FLOAT_DTYPES:
            got = param.dtype if isinstance(param, Tensor) else type(param).__name__
            raise TypeError(f"masked_sgd_: params[{i}] must be float32, float64, bfloat16 or float16, got {got}")
        if param.device != params[0].device:
            raise ValueError(f"masked_sgd_: params[{i}] must be on {params[0].device} as params[0], got {param.device}")
        for name, values in (("grads", grads), ("momentum_buffers", buffers)):
            if not values:
                continue
            other = values[i]
            if other.shape != param.shape or other.dtype != param.dtype or other.device != param.device:
                raise ValueError(
                    f"masked_sgd_: {name}[{i}] must be {param.dtype} {list(param.shape)} on {param.device}"
                    f" as params[{i}], got {other.dtype} {list(other.shape)} on {other.device}"
                )
        if masks[i] is not None:
            check_bits(f"masked_sgd_: masks[{i}]", masks[i], param.numel(), param.device)


@torch.no_grad()
def masked_sgd_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    masks: Sequence[Tensor | None],
    *,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    first_step: bool = False,
) -> None:
    r"""One step of SGD on the kept weights; masked weights and their momentum become exactly +0.0.

    With :math:`g` the gradient (negated for ``maximize``), :math:`\lambda` the weight decay, :math:`\mu` the momentum,
    :math:`\tau` the dampening, :math:`\gamma` the learning rate and :math:`m` the mask:

    .. math::
        g &\leftarrow g + \lambda p \\
        b &\leftarrow m \odot (\mu b + (1 - \tau) g) \qquad (b \leftarrow m \odot g \text{ on the first step}) \\
        p &\leftarrow m \odot (p - \gamma\, b) \qquad (g + \mu b \text{ in place of } b \text{ for Nesterov})

    :math:`m \odot x` writes +0.0 where the bit is 0, whatever x holds, NaN and Inf included. Without masks, float32
    and float64 give ``torch.optim.SGD``'s numbers; 16-bit dtypes are computed in float32 and rounded once when stored.

    Args:
        params: float32, float64, bfloat16 or float16, any shapes and strides, on one device; written to.
        grads: for each parameter its gradient: same shape and dtype; not written to.
        momentum_buffers: for each parameter its momentum, same shape and dtype, written to; empty when ``momentum``
            is 0.
        masks: for each parameter its bits, uint8 ``[(n + 7) // 8]``, or None for a dense parameter.
        first_step: the buffers hold nothing yet, and become the gradient.

    Raises:
        TypeError, ValueError: lists of different lengths, shapes or dtypes that differ, mixed devices, a mask of the
            wrong length. Nothing was changed then.

    Source: ``torch.optim.SGD``; the masked update of AC/DC (Peste et al. 2021, arXiv 2106.12379, algorithm 1).
    """
    params, grads, buffers, masks = list(params), list(grads), list(momentum_buffers), list(masks)
    _check(params, grads, buffers, masks, momentum)
    contract.masked_sgd_op(
        params, grads, buffers, masks, lr, momentum, dampening, weight_decay, nesterov, maximize, first_step
    )
