"""Tables of tensors in device memory, from which one launch of a masked update's Triton kernel updates them all.

A launch takes the tensors of one type that are walked alike. Its table is int64: at which chunk of the launch each
tensor begins (padded to a few lengths, so that few kernels are compiled), then a row a tensor: the addresses of
parameter, gradient, states and bits (0: dense), the number of elements, the tensor's number among all, whether its
zeros are kept; and, unless all of it lies one element after another, the axes to walk it by.

The tables of a step are kept, and used again as long as every address, layout and claim in them is the same: then a
step uploads nothing. Otherwise they are uploaded anew, in one copy from pinned memory, which nobody waits for; where
only addresses have changed, as those of gradients may at every step, nothing else is worked out again.

In the capture of a CUDA graph they are neither looked up nor kept: a replay would read host memory again, or a table
that has been replaced. There their numbers travel as the arguments of torch's own kernels, into memory of the graph.
"""

from __future__ import annotations

import functools
import itertools
import threading
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

SLOTS = (32, 256, 1024)  # tensors that a launch may have room for
FLAT_CHUNK, WALKED_CHUNK = 4096, 1024  # elements a program
DIMS = (1, 2, 4, 8, 16, 32, 64)  # axes that a kernel may walk
_KEPT = 64  # steps whose tables are kept: an optimizer has one or two a group

Walk = tuple[tuple[int, ...], tuple[int, ...], tuple[tuple[int, ...], ...]]


@dataclass(frozen=True)
class Launch:
    """What one launch takes; ``dims`` is 0 where all lies one element after another, in aligned vectors."""

    table: Tensor
    chunks: int
    slots: int
    dims: int
    wide: bool  # an element's number may not fit into 32 bits
    dtype: torch.dtype
    state_dtype: torch.dtype


@dataclass(frozen=True)
class Tables:
    """Those of a step; ``extra``: the further addresses, one a tensor; ``scratch``: 3 float64 for each of them."""

    launches: list[Launch]
    extra: Tensor
    scratch: Tensor | None


@functools.lru_cache(maxsize=4096)
def walk(shape: tuple[int, ...], strides: tuple[tuple[int, ...], ...], masked: bool) -> Walk:
    """(sizes, strides of mask bits, strides of each tensor) of the axes to walk, the outermost first.

    They are in the order of the first tensor's memory, joined wherever all tensors and the mask's bits allow it.
    """
    axes = []
    logical = 1
    for d in reversed(range(len(shape))):
        if shape[d] != 1:
            axes.append((shape[d], logical if masked else 0, *(s[d] for s in strides)))
            logical *= shape[d]
    axes.reverse()
    axes.sort(key=lambda axis: -axis[2])
    left: list[tuple[int, ...]] = []
    for axis in axes:
        outer = left[-1] if left else None
        if outer is not None and all(o == a * axis[0] for o, a in zip(outer[1:], axis[1:], strict=True)):
            left[-1] = (outer[0] * axis[0], *axis[1:])
        else:
            left.append(axis)
    if not left:
        left = [(1, 0, *(0 for _ in strides))]
    sizes, logicals, *others = zip(*left, strict=True)
    return sizes, logicals, tuple(others)


_NOTHING = torch.empty(0, dtype=torch.int64)


def _is_flat(found: Walk) -> bool:
    sizes, logicals, strides = found
    return len(sizes) == 1 and logicals[0] <= 1 and all(s == (1,) for s in strides)


class _Builder:
    """The rows of one launch."""

    def __init__(self, dims: int, wide: bool, dtype: torch.dtype, state_dtype: torch.dtype) -> None:
        self.kind = dims, wide, dtype, state_dtype
        self._chunk = WALKED_CHUNK if dims else FLAT_CHUNK
        self._starts: list[int] = []
        self._rows: list[int] = []
        self._at: list[tuple[int, int]] = []
        self._chunks = 0

    @property
    def is_full(self) -> bool:
        return len(self._starts) == SLOTS[-1]

    def add(self, tensor: int, row: Sequence[int], numel: int, axes: Walk | None) -> None:
        self._starts.append(self._chunks)
        self._chunks += -(-numel // self._chunk)
        self._at.append((tensor, len(self._rows)))
        self._rows += row
        if axes is not None:
            sizes, logicals, strides = axes
            more = self.kind[0] - len(sizes)  # outer axes of one element
            for numbers, fill in ((sizes, 1), (logicals, 0), *((s, 0) for s in strides)):
                self._rows += (*(fill,) * more, *numbers)

    def finish(self, numbers: list[int], rows: list[tuple[int, int]]) -> Launch:
        """Appends to all numbers, and to (tensor, where its row is among them); the launch has no table yet."""
        slots = next(n for n in SLOTS if len(self._starts) <= n)
        numbers += (*self._starts, *(2**62,) * (slots - len(self._starts)))
        rows += [(tensor, len(numbers) + at) for tensor, at in self._at]
        odd = len(self._rows) % 2  # tables begin at multiples of 16 bytes: a kernel is compiled for that
        numbers += (*self._rows, *(0,) * odd)
        return Launch(_NOTHING, self._chunks, slots, *self.kind)


def _build(columns: Sequence[Sequence[Tensor]], masks: Sequence[Tensor | None], kept: Sequence[bool]) -> list[_Builder]:
    builders: dict[tuple[int, bool, torch.dtype, torch.dtype], list[_Builder]] = {}
    for i, param in enumerate(columns[0]):
        numel = param.numel()
        if numel == 0:
            continue
        tensors, bits = [column[i] for column in columns], masks[i]
        addresses = [t.data_ptr() for t in tensors]
        vectors = numel % 8 == 0 and not any(a % 16 for a in addresses)
        axes = None
        if not (vectors and all(t.is_contiguous() for t in tensors)):
            axes = walk(tuple(param.shape), tuple(t.stride() for t in tensors), bits is not None)
            if vectors and _is_flat(axes):
                axes = None
        dims = 0 if axes is None else next(d for d in DIMS if len(axes[0]) <= d)
        key = dims, numel >= 2**31, param.dtype, tensors[-1].dtype
        group = builders.setdefault(key, [])
        if not group or group[-1].is_full:
            group.append(_Builder(*key))
        claim = bits is not None and bool(kept) and kept[i]
        group[-1].add(i, (*addresses, 0 if bits is None else bits.data_ptr(), numel, i, int(claim)), numel, axes)
    return list(itertools.chain.from_iterable(builders.values()))


class _Step:
    """A step's tables, and what they were made for."""

    def __init__(
        self,
        columns: Sequence[Sequence[Tensor]],
        masks: Sequence[Tensor | None],
        kept: Sequence[bool],
        addresses: list[int],
        layout: list[object],
        device: torch.device,
    ) -> None:
        self.addresses, self.layout, self.device = addresses, layout, device
        count = len(columns[0])
        self._extra = len(addresses) - count * (len(columns) + 1)
        self._numbers: list[int] = []
        rows: list[tuple[int, int]] = []
        self._launches, self._lengths = [], []
        for builder in _build(columns, masks, kept):
            before = len(self._numbers)
            self._launches.append(builder.finish(self._numbers, rows))
            self._lengths.append(len(self._numbers) - before)
        # (where an address is among the numbers, and among the addresses): of tensors and bits, then the extra ones
        self._places = [(at + k, k * count + tensor) for tensor, at in rows for k in range(len(columns) + 1)]
        first = len(addresses) - self._extra
        self._places += [(len(self._numbers) + i, first + i) for i in range(self._extra)]
        self._numbers += addresses[first:]
        self._scratch = torch.empty((self._extra, 3), dtype=torch.float64, device=device) if self._extra else None

    def moved(self, addresses: list[int]) -> None:
        """Everything is the same but these, whose vectors are aligned as before."""
        numbers = self._numbers = self._numbers.copy()
        for to, at in self._places:
            numbers[to] = addresses[at]
        self.addresses = addresses

    def upload(self, capturing: bool) -> Tables:
        numbers = _to_device(self._numbers, self.device, capturing) if self._numbers else _NOTHING  # all are empty
        *parts, last = numbers.split([*self._lengths, self._extra])
        launches = [replace(launch, table=part) for launch, part in zip(self._launches, parts, strict=True)]
        return Tables(launches, last, self._scratch)


def _to_device(numbers: list[int], device: torch.device, capturing: bool) -> Tensor:
    if capturing:
        table = torch.zeros(len(numbers), dtype=torch.int64, device=device)
        torch._foreach_add_(list(table.unbind()), numbers)
        return table
    table = torch.frombuffer(array("q", numbers), dtype=torch.int64)
    return table if device.type == "cpu" else table.pin_memory().to(device, non_blocking=True)


_steps: dict[tuple[object, ...], tuple[_Step, Tables]] = {}  # the oldest first
_lock = threading.Lock()


def tables(
    columns: Sequence[Sequence[Tensor]],
    masks: Sequence[Tensor | None],
    kept: Sequence[bool],
    extra: Sequence[Tensor] = (),
) -> Tables:
    """The tables of a step: ``columns`` are parameters, gradients and each state; ``extra`` of ``Tables``."""
    params = columns[0]
    device = params[0].device
    stream, capturing = 0, False
    if device.type == "cuda":
        stream = torch._C._cuda_getCurrentRawStream(device.index)
        capturing = torch.cuda.is_current_stream_capturing()
    flat = [t for column in columns for t in column]
    addresses = [t.data_ptr() for t in flat]
    addresses += [0 if b is None else b.data_ptr() for b in masks]
    addresses += [t.data_ptr() for t in extra]
    layout: list[object] = [t.numel() for t in params]
    layout += [t.dtype for t in params]
    layout += [t.dtype for t in columns[-1]]
    layout += [(i, t.shape, t.stride()) for i, t in enumerate(flat) if not t.is_contiguous()]
    layout += kept
    key = len(columns), len(params), addresses[0], str(device), stream
    with _lock:
        step, made = _steps.get(key, (None, None)) if not capturing else (None, None)
        if step is not None and made is not None and step.layout == layout:
            if step.addresses == addresses:
                return made
            if _alike(step.addresses, addresses, len(flat)):
                step.moved(addresses)
            else:
                step = None
        else:
            step = None
        if step is None:
            step = _Step(columns, masks, kept, addresses, layout, device)
        made = step.upload(capturing)
        if not capturing:
            _steps.pop(key, None)
            _steps[key] = step, made
            if len(_steps) > _KEPT:
                del _steps[next(iter(_steps))]
    return made


def _alike(before: list[int], now: list[int], tensors: int) -> bool:
    """Whether the same ``tensors`` are aligned to 16 bytes, and the same others, masks, are there at all."""
    return [a % 16 == 0 for a in before[:tensors]] == [a % 16 == 0 for a in now[:tensors]] and [
        a == 0 for a in before[tensors:]
    ] == [a == 0 for a in now[tensors:]]
