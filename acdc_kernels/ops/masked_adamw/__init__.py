"""AdamW under masks, over a whole model in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._update import check_scalars, check_tensors, check_zeros_kept
from . import contract


def _check_steps(params: list[Tensor], steps: list[Tensor]) -> None:
    if len(steps) != len(params):
        raise ValueError(f"masked_adamw_: steps must have one entry a parameter ({len(params)}), got {len(steps)}")
    for i, step in enumerate(steps):
        if step.dtype != torch.float32 or step.numel() != 1 or step.device != params[i].device:
            raise ValueError(
                f"masked_adamw_: steps[{i}] must be torch.float32 of one element on {params[i].device},"
                f" got {step.dtype} {list(step.shape)} on {step.device}"
            )


def _check_hyper(beta1: float, beta2: float, eps: float) -> None:
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"masked_adamw_: {name} must be in [0, 1), got {beta}")
    if not eps >= 0.0:
        raise ValueError(f"masked_adamw_: eps must be at least 0, got {eps}")


@torch.no_grad()
def masked_adamw_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    max_exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    masks: Sequence[Tensor | None],
    *,
    lr: float | Tensor,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    amsgrad: bool = False,
    maximize: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    zeros_kept: Sequence[bool] = (),
) -> None:
    r"""One step of AdamW on the kept weights; masked weights and their state become exactly +0.0.

    With :math:`g` the gradient divided by ``grad_scale`` (negated for ``maximize``), :math:`\gamma` the learning rate,
    :math:`\lambda` the weight decay, :math:`t` the step after it was increased by one and :math:`k` the mask:

    .. math::
        m &\leftarrow k \odot (\beta_1 m + (1 - \beta_1) g) \\
        v &\leftarrow k \odot (\beta_2 v + (1 - \beta_2) g^2) \qquad
            (\hat v \leftarrow k \odot \max(\hat v, v) \text{ for amsgrad, and in place of } v \text{ below}) \\
        p &\leftarrow k \odot \Bigl((1 - \gamma \lambda) p - \frac{\gamma}{1 - \beta_1^t}
            \frac{m}{\sqrt{v} / \sqrt{1 - \beta_2^t} + \epsilon}\Bigr)

    :math:`k \odot x` writes +0.0 where the bit is 0, whatever x holds, NaN and Inf included. Without masks, float32
    and float64 give ``torch.optim.AdamW``'s numbers; 16-bit dtypes are computed in float32 and rounded once when
    stored.

    Args:
        params: float32, float64, bfloat16 or float16, any shapes and strides, on one device; written to.
        grads: for each parameter its gradient: same shape and dtype; not written to.
        exp_avgs, exp_avg_sqs: for each parameter m and v: same shape, written to; of its dtype, or float32 for a
            16-bit parameter.
        max_exp_avg_sqs: the largest v so far, as v; empty unless ``amsgrad``.
        steps: for each parameter how many steps it has had: float32, one element; increased by one.
        masks: for each parameter its bits, uint8 ``[(n + 7) // 8]``, or None for a dense parameter.
        lr: a number, or a tensor of one element on the CPU or the parameters' device, read by the kernel.
        grad_scale: what the gradients were multiplied by, a tensor of one element; None: 1.
        found_inf: a tensor of one element; where it is not zero, nothing changes at all, ``steps`` included.
        zeros_kept: for each parameter whether the caller vouches that it and its state are +0.0 wherever its mask is 0:
            where a GPU can tell from the mask alone, it then neither reads nor writes them. Empty: for none.

    Raises:
        TypeError, ValueError: lists of different lengths, shapes or dtypes that differ, mixed devices, a mask of the
            wrong length, a beta outside [0, 1), a negative ``eps``. Nothing was changed then.

    Source: ``torch.optim.AdamW``; Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2; Reddi et al. 2018 for
    amsgrad; the masked update of AC/DC (Peste et al. 2021, arXiv 2106.12379, algorithm 1).
    """
    params, grads, masks, steps = list(params), list(grads), list(masks), list(steps)
    avgs, squares, largest = list(exp_avgs), list(exp_avg_sqs), list(max_exp_avg_sqs)
    if largest and not amsgrad:
        raise ValueError(f"masked_adamw_: max_exp_avg_sqs must be empty unless amsgrad, got {len(largest)}")
    states = {"exp_avgs": avgs, "exp_avg_sqs": squares, **({"max_exp_avg_sqs": largest} if amsgrad else {})}
    check_tensors("masked_adamw_", params, grads, states, masks)
    zeros_kept = check_zeros_kept("masked_adamw_", params, zeros_kept)
    _check_steps(params, steps)
    _check_hyper(beta1, beta2, eps)
    lr_tensor = lr if isinstance(lr, Tensor) else None
    check_scalars("masked_adamw_", params[0].device, lr=lr_tensor, grad_scale=grad_scale, found_inf=found_inf)
    contract.masked_adamw_op(
        params,
        grads,
        avgs,
        squares,
        largest,
        steps,
        masks,
        0.0 if lr_tensor is not None else lr,
        beta1,
        beta2,
        eps,
        weight_decay,
        amsgrad,
        maximize,
        lr_tensor,
        grad_scale,
        found_inf,
        zeros_kept,
    )
