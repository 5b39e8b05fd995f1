"""``MaskedAdamW``: ``torch.optim.AdamW`` whose masked weights stay at exactly +0.0, in one fused pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.optimizer import ParamsT

from ..ops.masked_adamw.contract import masked_adamw_op
from .base import MaskedOptimizer
from .local import local_tensors


class MaskedAdamW(MaskedOptimizer, torch.optim.AdamW):
    r"""Drop-in replacement of :class:`torch.optim.AdamW` with masks.

    With no masks it gives torch's numbers; ``opt.masks[p] = bits`` (see :func:`acdc_kernels.pack_mask`) sets the
    masked weights of ``p`` and their state to +0.0 at once, and keeps them there after every step, whatever the
    gradient holds. Weights, gradient, state and mask bits are read once and written once a step, all parameters in one
    call. For a DTensor the bits are those of its local shard.

    Args:
        params, lr, betas, eps, weight_decay, amsgrad, maximize: as :class:`torch.optim.AdamW`; tensor ``betas`` are
            read on the host, a tensor ``lr`` of any real dtype by the kernel at each step. It counts as the number that
            it holds, as with torch's ``fused=True``; torch's loop computes :math:`1 - lr \cdot weight\_decay` in the
            dtype of ``lr``, which float64 parameters can tell from float32.
        foreach, fused: accepted and kept in the param groups; the update is always fused.
        capturable: kept in the param groups. A step never reads the device on the host, so it can always be captured in
            a CUDA graph (with a tensor ``lr`` on the device, if it shall change); on a CPU, where torch's eager loop
            refuses it, it means nothing.
        differentiable: must be False.
        state_dtype: torch.float32: the state of bfloat16 and float16 parameters is float32; None: state has the dtype
            of its parameter, as torch's.

    ``state[p]["step"]`` is always float32 on the device of ``p``, as with torch's ``fused=True``. GradScaler hands its
    scale over: gradients are unscaled within the step, and a step with an infinite gradient changes nothing.

    ``state_dict`` is torch's, plus ``"masks"`` (parameter index -> bits) when there are any; torch's loads here (and
    clears the masks) and this one loads into torch's.

    Raises:
        ValueError: ``differentiable=True``, another ``state_dtype``, and what torch's constructor raises.
        RuntimeError: a sparse gradient, or one of another dtype than its parameter, at ``step``; nothing was changed
            then. (torch refuses both too.)

    Source: ``torch.optim.AdamW``; Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2; the masked update of AC/DC
    (Peste et al. 2021, arXiv 2106.12379, algorithm 1).
    """

    _param_sized = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )
        self._start(state_dtype)

    def _states(self, group: dict[str, Any], params: list[Tensor]) -> list[list[Tensor]]:
        """exp_avg, exp_avg_sq, max_exp_avg_sq (empty unless amsgrad) and step of ``params``, made where missing."""
        states = [self.state[p] for p in params]
        for p, state in zip(params, states, strict=True):
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                for name in self._param_sized[: 3 if group["amsgrad"] else 2]:
                    state[name] = self._new_state(p, torch.zeros_like)
        return [
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [s["max_exp_avg_sq"] for s in states] if group["amsgrad"] else [],
            [s["step"] for s in states],
        ]

    def _native_step(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        beta1, beta2 = group["betas"]
        hyper = (
            float(beta1),
            float(beta2),
            group["eps"],
            float(group["weight_decay"]),
            group["amsgrad"],
            group["maximize"],
        )
        self._launch(masked_adamw_op, group["lr"], hyper, params, grads, self._states(group, params))

    def _check_others(self, params: list[Tensor]) -> None:
        if any(p.grad.layout != torch.strided for p in params):
            raise RuntimeError("MaskedAdamW does not support sparse gradients, please consider SparseAdam instead")
        for p in params:
            if p.grad.dtype != p.dtype:
                raise RuntimeError(
                    f"MaskedAdamW: the gradient of the parameter of shape {list(p.shape)} must be {p.dtype} as the "
                    f"parameter, got {p.grad.dtype}"
                )

    def _torch_step(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        avgs, squares, largest, steps = self._states(group, params)
        adamw(
            params,
            grads,
            avgs,
            squares,
            largest,
            steps,
            foreach=False,
            capturable=group["capturable"] and all(p.device.type != "cpu" for p in params),
            has_complex=any(p.is_complex() for p in params),
            amsgrad=group["amsgrad"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for p in (p for group in self.param_groups for p in group["params"]):
            values = self.state.get(p, {})
            if "step" in values:  # torch keeps it on the CPU, or as a float64 or a number, depending on its options
                values["step"] = torch.as_tensor(values["step"], dtype=torch.float32, device=p.device)

    @torch.no_grad()
    def reset_momentum(self) -> None:
        """Set both moments, their maximum and the step count of every parameter to zero, in place."""
        names = (*self._param_sized, "step")
        state = [s[name] for s in self.state.values() for name in names if name in s]
        if state:
            torch._foreach_zero_(local_tensors(state))
