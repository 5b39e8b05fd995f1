"""``optimizer.masks``: which parameters are masked, and by which bits."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import Parameter

from ..formats.mask_bits import check_bits
from ..ops import apply_mask_
from ..ops.dtypes import FLOAT_DTYPES
from .local import local_tensor

if TYPE_CHECKING:
    from .base import MaskedOptimizer


class Masks(MutableMapping[Parameter, Tensor]):
    """Parameter -> mask bits of one optimizer.

    ``masks[p] = bits`` zeroes ``p`` and its state at the masked positions at once, and every later step keeps them at
    exactly +0.0. ``masks.update(...)`` does that for many parameters in one pass. ``del masks[p]`` makes ``p`` dense
    again (masked weights stay zero until a step moves them). The bits are used as given, not copied: don't change
    them in place.

    Raises:
        KeyError: the parameter does not belong to the optimizer.
        TypeError, ValueError: the bits don't fit the parameter. Nothing was changed then.
    """

    def __init__(self, optimizer: MaskedOptimizer) -> None:
        self._optimizer = optimizer
        self._bits: dict[Parameter, Tensor] = {}
        self._listeners: list[weakref.WeakMethod[Callable[[], None]]] = []
        self._written: dict[Parameter, tuple[int, int]] = {}

    def __getitem__(self, param: Parameter) -> Tensor:
        return self._bits[param]

    def __setitem__(self, param: Parameter, bits: Tensor) -> None:
        self.update({param: bits})

    def __delitem__(self, param: Parameter) -> None:
        del self._bits[param]
        self._written.pop(param, None)
        self._tell()

    def __iter__(self) -> Iterator[Parameter]:
        return iter(self._bits)

    def __len__(self) -> int:
        return len(self._bits)

    def __repr__(self) -> str:
        return f"Masks({len(self)} of {sum(len(g['params']) for g in self._optimizer.param_groups)} parameters masked)"

    def update(self, other: Mapping[Parameter, Tensor] | Iterable[tuple[Parameter, Tensor]] = (), /) -> None:  # type: ignore[override]
        """Mask many parameters in one pass over their weights and state."""
        new = dict(other)
        self._apply(new)
        self._bits.update(new)
        self._written.clear()
        self._tell()

    def restore(self, bits: Mapping[Parameter, Tensor]) -> None:
        """Replace all masks by ``bits``, as :meth:`update` after clearing."""
        new = dict(bits)
        self._apply(new)
        self._bits = new
        self._written.clear()
        self._tell()

    def listen(self, changed: Callable[[], None]) -> None:
        """Has the bound method ``changed`` called after every change of masks, for as long as its object lives.

        A copy of the optimizer has no listeners.
        """
        self._listeners.append(weakref.WeakMethod(changed))

    def written(self, params: Iterable[Parameter]) -> None:
        """Called by the optimizer when it has written to ``params``, those that are masked with their masks applied."""
        if self._listeners:  # nobody else asks
            masked = self._bits
            for p in params:
                if type(p) is Parameter and p in masked:
                    self._written[p] = p._version, p.data_ptr()

    def untouched(self, param: Parameter) -> bool:
        """Whether nobody has written to a masked parameter since the optimizer did, with the mask that it has now.

        False also where nobody knows: before the optimizer's first step with this mask, and for compiled steps.
        """
        return self._written.get(param) == (param._version, param.data_ptr())

    def _tell(self) -> None:
        self._listeners = [listener for listener in self._listeners if listener() is not None]
        for listener in self._listeners:
            if (changed := listener()) is not None:
                changed()

    @torch.no_grad()
    def _apply(self, new: Mapping[Parameter, Tensor]) -> None:
        """Check ``new``, then zero the parameters and their state where it says."""
        self._check(new)
        tensors: list[Tensor] = []
        masks: list[Tensor] = []
        for param, bits in new.items():
            state = self._optimizer.state.get(param, {})
            # By name: a step count has the shape of a parameter without dimensions.
            names = [name for name in self._optimizer._param_sized if state.get(name) is not None]
            for name in names:
                if state[name].layout != torch.strided:  # the momentum of sparse gradients
                    state[name] = state[name].to_dense()
            for tensor in (param, *(state[name] for name in names)):
                tensors.append(local_tensor(tensor))
                masks.append(bits)
        for device in dict.fromkeys(t.device for t in tensors):
            here = [i for i, t in enumerate(tensors) if t.device == device]
            apply_mask_([tensors[i] for i in here], [masks[i] for i in here])

    def _check(self, new: Mapping[Parameter, Tensor]) -> None:
        known = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
        for param, bits in new.items():
            if id(param) not in known:
                what = f"a parameter of shape {list(param.shape)}" if isinstance(param, Tensor) else repr(param)
                raise KeyError(f"masks: the key must be a parameter of this optimizer, got {what} that is not")
            if param.dtype not in FLOAT_DTYPES:
                raise TypeError(
                    f"masks: a masked parameter must be float32, float64, bfloat16 or float16, got {param.dtype}"
                )
            if param.layout != torch.strided:
                raise TypeError(f"masks: a masked parameter must be a strided tensor, got {param.layout}")
            check_bits("masks: bits", bits, local_tensor(param).numel(), param.device)
