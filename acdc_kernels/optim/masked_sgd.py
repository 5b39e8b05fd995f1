"""``MaskedSGD``: ``torch.optim.SGD`` whose masked weights stay at exactly +0.0, in one fused pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from torch.optim.sgd import sgd

from ..ops.masked_sgd.contract import masked_sgd_op
from .base import MaskedOptimizer
from .local import local_tensors


class MaskedSGD(MaskedOptimizer, torch.optim.SGD):
    r"""Drop-in replacement of :class:`torch.optim.SGD` with masks.

    With no masks it gives torch's numbers; ``opt.masks[p] = bits`` (see :func:`acdc_kernels.pack_mask`) sets the
    masked weights of ``p`` and their momentum to +0.0 at once, and keeps them there after every step, whatever the
    gradient holds. Weights, gradient, momentum and mask bits are read once and written once a step, all parameters in
    one call. For a DTensor the bits are those of its local shard.

    Args:
        params, lr, momentum, dampening, weight_decay, nesterov, maximize: as :class:`torch.optim.SGD`; a tensor ``lr``
            of any real dtype is read by the kernel at each step, and counts as the number that it holds.
        foreach, fused: accepted and kept in the param groups; the update is always fused.
        differentiable: must be False.
        state_dtype: torch.float32: the momentum of bfloat16 and float16 parameters is float32; None: momentum has the
            dtype of its parameter, as torch's.

    GradScaler hands its scale over: gradients are unscaled within the step, and a step with an infinite gradient
    changes nothing. (Where that is found on an accelerator at a parameter's very first step, its momentum starts at
    zero in place of the next gradient.)

    ``state_dict`` is torch's, plus ``"masks"`` (parameter index -> bits) when there are any; torch's loads here (and
    clears the masks) and this one loads into torch's.

    Raises:
        ValueError: ``differentiable=True``, another ``state_dtype``, and what torch's constructor raises.

    Source: ``torch.optim.SGD``; the masked update of AC/DC (Peste et al. 2021, arXiv 2106.12379, algorithm 1).
    """

    _param_sized = ("momentum_buffer",)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
            maximize=maximize,
            foreach=foreach,
            differentiable=differentiable,
            fused=fused,
        )
        self._start(state_dtype)

    def _native_step(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        if group["momentum"] == 0:
            self._update(group, params, grads, [], True)
            return
        buffers = [self.state[p].get("momentum_buffer") for p in params]
        fresh = [i for i, buffer in enumerate(buffers) if buffer is None]
        if fresh:
            # A step that is skipped on the device leaves them as they are made here.
            make = torch.empty_like if self._found_inf is None else torch.zeros_like
            made = [self._new_state(params[i], make) for i in fresh]
            self._update(group, [params[i] for i in fresh], [grads[i] for i in fresh], made, True)
            for i, buffer in zip(fresh, made, strict=True):  # only now do they hold anything
                self.state[params[i]]["momentum_buffer"] = buffer
            later = [i for i, buffer in enumerate(buffers) if buffer is not None]
            params, grads, buffers = ([values[i] for i in later] for values in (params, grads, buffers))
        if params:
            self._update(group, params, grads, buffers, False)

    def _update(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], buffers: list[Tensor], first_step: bool
    ) -> None:
        hyper = (
            group["momentum"],
            group["dampening"],
            float(group["weight_decay"]),
            group["nesterov"],
            group["maximize"],
            first_step,
        )
        self._launch(masked_sgd_op, group["lr"], hyper, params, grads, [buffers])

    def _torch_step(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        buffers = [self.state[p].get("momentum_buffer") for p in params]
        # A mask needs a dense momentum, and torch can't add that to a sparse gradient.
        dense = [p in self._masks or (b is not None and not b.is_sparse) for p, b in zip(params, buffers, strict=True)]
        grads = [g.to_dense() if d else g for g, d in zip(grads, dense, strict=True)]
        sgd(
            params,
            grads,
            buffers,
            has_sparse_grad=any(g.is_sparse for g in grads),
            foreach=False,
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
        )
        if group["momentum"] != 0:
            for p, buf in zip(params, buffers, strict=True):
                self.state[p]["momentum_buffer"] = buf

    @torch.no_grad()
    def reset_momentum(self) -> None:
        """Set every momentum buffer to zero, in place."""
        buffers = [s["momentum_buffer"] for s in self.state.values() if s.get("momentum_buffer") is not None]
        if buffers:
            torch._foreach_zero_(local_tensors(buffers))
