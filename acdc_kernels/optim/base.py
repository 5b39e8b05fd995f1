"""What the masked optimizers share: masks, their way through every kind of copy, mixed precision, the step itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..ops._update import HALF_DTYPES, launch
from ..ops.dtypes import FLOAT_DTYPES
from .local import local_grads, local_tensors
from .masks import Masks


class MaskedOptimizer(Optimizer):
    """Mixed in before one of torch's optimizers; a subclass brings ``_native_step`` and ``_torch_step``.

    ``grad_scale`` and ``found_inf`` are set by GradScaler around a step: gradients are divided by the one, and nothing
    changes where the other is not zero.
    """

    _step_supports_amp_scaling = True
    _param_sized: ClassVar[tuple[str, ...]]  # the names of state that has its parameter's shape
    _masks: Masks
    _state_dtype: torch.dtype | None = None

    def _native_step(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        """Update ``params`` of one group by the op."""
        raise NotImplementedError

    def _torch_step(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        """Update parameters that have no kernel (``_check_others``) as torch does, without masks."""
        raise NotImplementedError

    def _start(self, state_dtype: torch.dtype | None) -> None:
        """What a constructor does after torch's."""
        if state_dtype not in (None, torch.float32):
            raise ValueError(f"{type(self).__name__}: state_dtype must be None or torch.float32, got {state_dtype}")
        self._state_dtype = state_dtype
        self._masks = Masks(self)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; ``differentiable=True`` raises ValueError."""
        self._refuse_differentiable([{**self.defaults, **param_group}] if isinstance(param_group, dict) else [])
        super().add_param_group(param_group)

    @property
    def state_dtype(self) -> torch.dtype | None:
        """The dtype that the state of 16-bit parameters has; None: theirs."""
        return self._state_dtype

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
        found_inf = self._found_inf
        if found_inf is not None and found_inf.is_cpu and not torch.compiler.is_compiling() and found_inf.item():
            return loss
        work = []
        for group in self.param_groups:
            params, grads, others = [], [], []
            for p in group["params"]:
                grad = p.grad
                if grad is None:
                    continue
                dtype = p.dtype
                if (
                    dtype in FLOAT_DTYPES
                    and grad.dtype is dtype
                    and grad.layout is torch.strided
                    and p.layout is torch.strided
                ):
                    params.append(p)
                    grads.append(grad)
                else:
                    others.append(p)
            if others:
                self._check_others(others)
            work.append((group, params, grads, others))
        for group, params, grads, others in work:
            if params:
                self._native_step(group, params, grads)
            if others and not (found_inf is not None and found_inf.item()):
                scale = getattr(self, "grad_scale", None)
                self._torch_step(
                    group, others, [p.grad if scale is None else p.grad / scale.to(p.device) for p in others]
                )
                self._masks.update({p: self._masks[p] for p in others if p in self._masks})
        return loss

    def _check_others(self, params: list[Tensor]) -> None:
        """Raise if one of ``params``, for which there is no kernel, can't be updated at all.

        They are complex or sparse, or their gradient is sparse or of another dtype (``p.grad_dtype``).
        """

    @property
    def _found_inf(self) -> Tensor | None:
        """GradScaler's, which is the number 0 for an optimizer without any gradient."""
        found_inf = getattr(self, "found_inf", None)
        return found_inf if isinstance(found_inf, Tensor) else None

    def _launch(
        self,
        op: torch._ops.OpOverload,
        lr: float | Tensor,
        hyper: tuple[Any, ...],
        params: list[Tensor],
        grads: list[Tensor],
        states: list[list[Tensor]],
    ) -> None:
        """``op(params, grads, *states, bits, lr, *hyper, lr_tensor, grad_scale, found_inf, zeros_kept)`` a device."""
        devices = {p.device for p in params}
        if len(devices) > 1:
            for device in devices:
                here = [i for i, p in enumerate(params) if p.device == device]
                ours, theirs, *rest = ([ts[i] for i in here] if ts else [] for ts in (params, grads, *states))
                self._launch(op, lr, hyper, ours, theirs, rest)
            return
        rate, *scalars = self._scalars(lr, params[0].device)
        bits = [self._masks._bits.get(p) for p in params]
        masked = [state for state in states[: len(self._param_sized)] if state]
        found_inf = scalars[-1]
        around = self._masks.around(params, masked, bits, found_inf) if not torch.compiler.is_compiling() else None
        launch(
            op,
            params + [t for state in states for t in state],
            local_tensors(params),
            local_grads(params, grads),
            *(local_tensors(state) for state in states),
            bits,
            rate,
            *hyper,
            *scalars,
            around.zeros_kept if around else [],
        )
        if around:
            around.written()

    def _scalars(
        self, lr: float | Tensor, device: torch.device
    ) -> tuple[float, Tensor | None, Tensor | None, Tensor | None]:
        """(lr, lr_tensor, grad_scale, found_inf) as the ops take them. Nothing is read from a device."""
        scale, found_inf = getattr(self, "grad_scale", None), self._found_inf
        scale = None if scale is None else scale.to(device, non_blocking=True)
        found_inf = None if found_inf is None else found_inf.to(device, non_blocking=True)
        if not isinstance(lr, Tensor):
            return float(lr), None, scale, found_inf
        lr = lr.detach() if lr.is_floating_point() else lr.detach().double()
        return 0.0, lr if lr.is_cpu else lr.to(device, non_blocking=True), scale, found_inf

    def _new_state(self, param: Tensor, make: Callable[..., Tensor]) -> Tensor:
        """``make(param, dtype=...)`` in the dtype that the state of ``param`` has."""
        return make(param, dtype=self._dtype_of_state(param), memory_format=torch.preserve_format)

    def _dtype_of_state(self, param: Tensor) -> torch.dtype:
        return self._state_dtype if self._state_dtype is not None and param.dtype in HALF_DTYPES else param.dtype

    def state_dict(self) -> dict[str, Any]:
        """torch's ``state_dict``, plus ``"masks"``: parameter index -> bits, when any parameter is masked."""
        state = super().state_dict()
        if self._masks:
            index = {id(p): i for i, p in enumerate(p for group in self.param_groups for p in group["params"])}
            state["masks"] = {index[id(p)]: bits for p, bits in self._masks.items()}
        return state

    def check_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Raise TypeError or ValueError if groups, masks or state of ``state_dict`` don't fit; changes nothing."""
        self._refuse_differentiable(state_dict.get("param_groups", ()))
        self._saved_masks(state_dict)
        self._check_state(state_dict)

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore hyper-parameters, state and masks; a ``state_dict`` without ``"masks"`` clears them.

        Raises TypeError or ValueError as :meth:`check_state_dict`; nothing was changed then.
        """
        self._refuse_differentiable(state_dict.get("param_groups", ()))
        bits = self._saved_masks(state_dict)
        hook = self.register_load_state_dict_pre_hook(_check_and_keep)  # after the user's, which may replace it
        try:
            super().load_state_dict({k: v for k, v in state_dict.items() if k != "masks"})
        finally:
            hook.remove()
            self.__dict__.pop("_loading", None)
        self._masks.restore(bits)

    def _saved_masks(self, state_dict: Mapping[str, Any]) -> dict[Tensor, Tensor]:
        """The masks of ``state_dict`` by parameter, on its device; raises unless they fit."""
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
        return bits

    def _check_state(self, state_dict: Mapping[str, Any]) -> None:
        """Raise unless the groups have as many parameters as here, and state has their shapes where it should."""
        here, there = ([len(g["params"]) for g in groups] for groups in (self.param_groups, state_dict["param_groups"]))
        if here != there:
            raise ValueError(f"load_state_dict: the groups must have {here} parameters, got {there}")
        for i, p in self._saved_params(state_dict):
            for name in self._param_sized:
                value = state_dict["state"].get(i, {}).get(name)
                if value is None:
                    continue
                what = f"load_state_dict: {name} of parameter {i} must be a tensor of shape {list(p.shape)}"
                if not isinstance(value, Tensor):
                    raise TypeError(f"{what}, got {type(value).__name__}")
                if value.shape != p.shape:
                    raise ValueError(f"{what}, got {list(value.shape)}")

    def _saved_params(self, state_dict: Mapping[str, Any]) -> Iterator[tuple[int, Tensor]]:
        """(the number that a parameter's state has in ``state_dict``, the parameter)."""
        ids = (i for group in state_dict["param_groups"] for i in group["params"])
        return zip(ids, (p for group in self.param_groups for p in group["params"]), strict=True)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "masks": dict(self._masks), "state_dtype": self._state_dtype}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        bits, self._state_dtype = state.pop("masks", None), state.pop("state_dtype", self._state_dtype)
        super().__setstate__(state)
        if "_loading" in self.__dict__:
            self._undo_rounding(self._loading)
        if bits is not None or not hasattr(self, "_masks"):
            self._masks = Masks(self)
            self._masks._bits.update(bits or {})

    def _undo_rounding(self, saved: Mapping[str, Any]) -> None:
        """torch's load brings all state to its parameter's dtype: take it from ``saved`` again where ours differs."""
        for i, p in self._saved_params(saved):
            dtype = self._dtype_of_state(p)
            for name in self._param_sized if dtype != p.dtype else ():
                value = saved["state"].get(i, {}).get(name)
                if value is not None:
                    self.state[p][name] = value.to(device=p.device, dtype=dtype)

    @classmethod
    def _refuse_differentiable(cls, groups: Iterable[Mapping[str, Any]]) -> None:
        if any(group.get("differentiable") for group in groups):
            raise ValueError(
                f"{cls.__name__}: differentiable must be False, got True: the masked update has no gradient"
            )


def _check_and_keep(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    optimizer._check_state(state_dict)
    optimizer._loading = state_dict
