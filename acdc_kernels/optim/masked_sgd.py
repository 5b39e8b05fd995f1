"""``MaskedSGD``: ``torch.optim.SGD`` whose masked weights stay at exactly +0.0, in one fused pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from torch.optim.sgd import sgd

from ..ops.dtypes import FLOAT_DTYPES
from ..ops.masked_sgd.contract import launch_masked_sgd
from .masks import Masks


class MaskedSGD(torch.optim.SGD):
    r"""Drop-in replacement of :class:`torch.optim.SGD` with masks.

    With no masks it gives torch's numbers; ``opt.masks[p] = bits`` (see :func:`acdc_kernels.pack_mask`) sets the
    masked weights of ``p`` and their momentum to +0.0 at once, and keeps them there after every step, whatever the
    gradient holds. Weights, gradient, momentum and mask bits are read once and written once a step, all parameters in
    one call.

    Args:
        params, lr, momentum, dampening, weight_decay, nesterov, maximize: as :class:`torch.optim.SGD`.
        foreach, fused: accepted and kept in the param groups; the update is always fused.
        differentiable: must be False.
        state_dtype: None: momentum has the dtype of its parameter, as torch's.

    ``state_dict`` is torch's, plus ``"masks"`` (parameter index -> bits) when there are any; torch's loads here (and
    clears the masks) and this one loads into torch's.

    Raises:
        ValueError: ``differentiable=True``, and what torch's constructor raises.

    Source: ``torch.optim.SGD``; the masked update of AC/DC (Peste et al. 2021, arXiv 2106.12379, algorithm 1).
    """

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
        state_dtype: None = None,
    ) -> None:
        if state_dtype is not None:
            raise ValueError(f"MaskedSGD: state_dtype must be None in this version, got {state_dtype}")
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
        # GradScaler must unscale and skip by itself: this step takes no scale.
        self._step_supports_amp_scaling = False
        self._masks = Masks(self)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; ``differentiable=True`` raises ValueError."""
        _refuse_differentiable([{**self.defaults, **param_group}] if isinstance(param_group, dict) else [])
        super().add_param_group(param_group)

    @property
    def masks(self) -> Masks:
        """Parameter -> mask bits; see :class:`acdc_kernels.optim.masks.Masks`."""
        return self._masks

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update. ``closure`` reevaluates the model and returns the loss, which is then returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            native = [
                p
                for p in params
                if p.dtype in FLOAT_DTYPES and p.grad.layout == torch.strided and p.layout == torch.strided
            ]
            if native:
                self._native_step(group, native)
            if len(native) != len(params):
                taken = {id(p) for p in native}
                self._torch_step(group, [p for p in params if id(p) not in taken])
        return loss

    def _native_step(self, group: dict[str, Any], params: list[Tensor]) -> None:
        momentum = group["momentum"]
        hyper = (
            float(group["lr"]),
            momentum,
            group["dampening"],
            float(group["weight_decay"]),
            group["nesterov"],
            group["maximize"],
        )
        if momentum == 0:
            self._launch(params, [], hyper, True)
            return
        state = self.state
        fresh = [p for p in params if state[p].get("momentum_buffer") is None]
        if fresh:
            buffers = [torch.empty_like(p, memory_format=torch.preserve_format) for p in fresh]
            self._launch(fresh, buffers, hyper, True)
            for p, buffer in zip(fresh, buffers, strict=True):  # only now do they hold anything
                state[p]["momentum_buffer"] = buffer
            started = {id(p) for p in fresh}
            params = [p for p in params if id(p) not in started]
        if params:
            self._launch(params, [state[p]["momentum_buffer"] for p in params], hyper, False)

    def _launch(self, params: list[Tensor], buffers: list[Tensor], hyper: tuple[Any, ...], first_step: bool) -> None:
        masks = self._masks._bits
        bits = [masks.get(p) for p in params]
        devices = {p.device for p in params}
        if len(devices) == 1:
            launch_masked_sgd(params, [p.grad for p in params], buffers, bits, *hyper, first_step)
            return
        for device in devices:
            here = [i for i, p in enumerate(params) if p.device == device]
            launch_masked_sgd(
                [params[i] for i in here],
                [params[i].grad for i in here],
                [buffers[i] for i in here] if buffers else [],
                [bits[i] for i in here],
                *hyper,
                first_step,
            )

    def _torch_step(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """Sparse gradients and complex parameters, which have no kernel: torch's update, then the mask."""
        buffers = [self.state[p].get("momentum_buffer") for p in params]
        sgd(
            params,
            [p.grad for p in params],
            buffers,
            has_sparse_grad=any(p.grad.is_sparse for p in params),
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
        self._masks.update({p: self._masks[p] for p in params if p in self._masks})

    @torch.no_grad()
    def reset_momentum(self) -> None:
        """Set every momentum buffer to zero, in place."""
        buffers = [s["momentum_buffer"] for s in self.state.values() if s.get("momentum_buffer") is not None]
        if buffers:
            torch._foreach_zero_(buffers)

    def state_dict(self) -> dict[str, Any]:
        """torch's ``state_dict``, plus ``"masks"``: parameter index -> bits, when any parameter is masked."""
        state = super().state_dict()
        if self._masks:
            index = {id(p): i for i, p in enumerate(p for group in self.param_groups for p in group["params"])}
            state["masks"] = {index[id(p)]: bits for p, bits in self._masks.items()}
        return state

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore hyper-parameters, momentum and masks; a ``state_dict`` without ``"masks"`` clears them."""
        _refuse_differentiable(state_dict.get("param_groups", ()))
        params = [p for group in self.param_groups for p in group["params"]]
        saved = state_dict.get("masks", {})
        if not isinstance(saved, Mapping):
            raise TypeError(f"load_state_dict: masks must be a dict of bits by parameter index, got {saved!r}")
        for i, b in saved.items():
            if not isinstance(i, int) or not 0 <= i < len(params):
                raise ValueError(f"load_state_dict: masks must name parameters 0 to {len(params) - 1}, got {i!r}")
            if not isinstance(b, Tensor):
                raise TypeError(f"load_state_dict: masks[{i}] must be a uint8 tensor, got {type(b).__name__}")
        bits = {params[i]: b.to(params[i].device) for i, b in saved.items()}
        self._masks._check(bits)
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "masks"})
        self._masks.restore(bits)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "masks": dict(self._masks)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        bits = state.pop("masks", None)
        super().__setstate__(state)
        self._step_supports_amp_scaling = False
        if bits is not None or not hasattr(self, "_masks"):
            self._masks = Masks(self)
            self._masks._bits.update(bits or {})


def _refuse_differentiable(groups: Iterable[Mapping[str, Any]]) -> None:
    if any(group.get("differentiable") for group in groups):
        raise ValueError("MaskedSGD: differentiable must be False, got True: the masked update has no gradient")
