"""``optimizer.masks``: which parameters are masked, and by which bits."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import Parameter

from ..formats.mask_bits import check_bits
from ..ops import apply_mask_
from ..ops._update import skips_kept_zeros
from ..ops.dtypes import FLOAT_DTYPES
from .local import is_plain, local_tensor
from .traces import Trace, Traces

if TYPE_CHECKING:
    from .base import MaskedOptimizer


class Masks(MutableMapping[Parameter, Tensor]):
    """Parameter -> mask bits of one optimizer.

    ``masks[p] = bits`` zeroes ``p`` and its state at the masked positions at once, and every later step keeps them at
    exactly +0.0. ``masks.update(...)`` does that for many parameters in one pass. ``del masks[p]`` makes ``p`` dense
    again (masked weights stay zero until a step moves them). The bits are used as given, not copied: don't change
    them in place.

    On a GPU a step leaves sectors that are masked as a whole alone while torch counts no write to a parameter, its
    state and its mask since the last step, or since the mask was set. torch doesn't count writes through ``p.data``
    (``p.data.copy_(...)``), those of collectives (``dist.broadcast(p)``), of other libraries' kernels, and of replayed
    CUDA graphs: after one that may have set masked weights, set the mask again, or every 128th step does. Where a step
    waits for a ``found_inf`` on a GPU, what may have been written is masked before it, whether it is then done or not.

    Raises:
        KeyError: the parameter does not belong to the optimizer.
        TypeError, ValueError: the bits don't fit the parameter. Nothing was changed then.
    """

    def __init__(self, optimizer: MaskedOptimizer) -> None:
        self._optimizer = optimizer
        self._bits: dict[Parameter, Tensor] = {}
        self._listeners: list[weakref.WeakMethod[Callable[[], None]]] = []
        self._traces = Traces()

    def __getitem__(self, param: Parameter) -> Tensor:
        return self._bits[param]

    def __setitem__(self, param: Parameter, bits: Tensor) -> None:
        self.update({param: bits})

    def __delitem__(self, param: Parameter) -> None:
        del self._bits[param]
        self._traces.forget([param])
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
        self._traces.forget(new)
        self._applied(new)
        self._tell()

    def restore(self, bits: Mapping[Parameter, Tensor]) -> None:
        """Replace all masks by ``bits``, as :meth:`update` after clearing."""
        new = dict(bits)
        self._apply(new)
        self._bits = new
        self._traces.forget()
        self._applied(new)
        self._tell()

    def listen(self, changed: Callable[[], None]) -> None:
        """Has the bound method ``changed`` called after every change of masks, for as long as its object lives.

        A copy of the optimizer has no listeners.
        """
        self._listeners.append(weakref.WeakMethod(changed))

    def around(
        self,
        params: Sequence[Tensor],
        states: Sequence[Sequence[Tensor]],
        bits: Sequence[Tensor | None],
        found_inf: Tensor | None,
    ) -> AroundStep:
        """Called before a launch that writes to ``params``, all on one device, and their ``states``, under ``bits``;
        ``found_inf`` as the launch has it."""
        return AroundStep(self, params, states, bits, found_inf)

    def untouched(self, param: Parameter) -> bool:
        """Whether nobody has written to a masked parameter since the optimizer did, with the mask that it has now.

        False also where nobody knows: on a CPU before the optimizer's first step with this mask, and for compiled
        steps.
        """
        return self._traces.is_unchanged(param)

    def _applied(self, new: Iterable[Parameter]) -> None:
        """Called when the masks of ``new`` have been applied, of which nothing is known yet."""
        for p in new:
            if is_plain(p) and skips_kept_zeros(p.device.type) and not _is_capturing(p.device):
                self._traces.leave([[p], *([t] for t in self._states(p).values()), [self._bits[p]]])

    def _states(self, param: Parameter) -> dict[str, Tensor]:
        """Those of its shape; by name, for a step count has the shape of a parameter without dimensions."""
        state = self._optimizer.state.get(param, {})
        return {name: state[name] for name in self._optimizer._param_sized if state.get(name) is not None}

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
            for name, value in self._states(param).items():
                if value.layout != torch.strided:  # the momentum of sparse gradients
                    self._optimizer.state[param][name] = value.to_dense()
            for tensor in (param, *self._states(param).values()):
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


def _is_capturing(device: torch.device) -> bool:
    """Whether what is launched now is only recorded, for replays of a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


class AroundStep:
    """What is known of zeros before a launch, and what is left to know after it.

    Attributes:
        zeros_kept: as the ops take it. True for a masked parameter that, with its states and its mask, nobody has
            written to since the last step, or since its mask was set: they are +0.0 where it is masked. Empty where no
            kernel would make use of it; and in the capture of a CUDA graph, whose replays can't tell what was written
            before.

    Where the device decides whether the step is done (``found_inf``), what isn't known is masked before: else nothing
    would be known after it either.
    """

    def __init__(
        self,
        masks: Masks,
        params: Sequence[Tensor],
        states: Sequence[Sequence[Tensor]],
        bits: Sequence[Tensor | None],
        found_inf: Tensor | None,
    ) -> None:
        self._traces, self.zeros_kept = masks._traces, []
        self._columns: list[list[Tensor]] = []
        self._before: Trace | None = None
        self._unknown: list[int] = []
        decided_there = found_inf is not None and not found_inf.is_cpu
        device = params[0].device
        skips = skips_kept_zeros(device.type)
        if not masks._bits or not (skips or masks._listeners):  # nobody asks
            return
        at = [i for i, b in enumerate(bits) if b is not None and is_plain(params[i])]
        if not at:
            return
        if not skips:
            self._columns = [] if decided_there else [[params[i] for i in at]]
            return
        if _is_capturing(device):
            self._traces.forget()
            return
        self._columns = [[column[i] for i in at] for column in (params, *states, bits)]
        self._before = Trace(self._columns)
        known = self._traces.unchanged(self._before)
        if decided_there:
            known = self._masked_before(known)
        self.zeros_kept = [False] * len(params)
        for i, k in zip(at, known, strict=True):
            self.zeros_kept[i] = k

    def _masked_before(self, known: list[bool]) -> list[bool]:
        """Masks what isn't known to be, but for what was masked before the last step too: somebody writes to it at
        every step, and to mask it each time would cost more than to write all its zeros. What is known then."""
        unknown = [i for i, k in enumerate(known) if not k]
        params, last = self._columns[0], self._traces.masked_before
        rows = [i for i in unknown if params[i] not in last]
        self._traces.masked_before = {params[i] for i in unknown}
        if rows:
            *written, bits = self._columns
            apply_mask_([column[i] for column in written for i in rows], [bits[i] for _ in written for i in rows])
            self._before = Trace(self._columns)
        self._unknown = [i for i in unknown if params[i] in last]
        return [k or i in rows for i, k in enumerate(known)]

    def written(self) -> None:
        """Called after the launch."""
        if self._columns:
            self._traces.leave(self._columns, self._before, self._unknown)
