"""Tables of tensors in device memory, from which one launch of a masked update's Triton kernel updates them all.

A launch takes the tensors of one type that are walked alike. Its table is int64: at which chunk of the launch each
tensor begins (padded to a few lengths, so that few kernels are compiled), then a row a tensor: the addresses of
parameter, gradient, states and bits (0: dense), the number of elements, the tensor's number among all, whether its
zeros are kept; and, unless all of it lies one element after another, the axes to walk it by.

The tables of a step are kept, and used again as long as every address, layout and claim in them is the same: then a
step uploads nothing. Otherwise they are uploaded anew, in one copy from pinned memory, which nobody waits for. In the
capture of a CUDA graph they are neither looked up nor kept: a replay would read host memory again, or a table that has
been replaced. There their numbers travel as the arguments of torch's own kernels, into memory of the graph.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass

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
    extra: Tensor | None
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


def _is_flat(found: Walk) -> bool:
    sizes, logicals, strides = found
    return len(sizes) == 1 and logicals[0] <= 1 and all(s == (1,) for s in strides)


class _Builder:
    """The rows of one launch."""

    def __init__(self, refs: int, dims: int, wide: bool, dtype: torch.dtype, state_dtype: torch.dtype) -> None:
        self.dims, self.wide, self.dtype, self.state_dtype = dims, wide, dtype, state_dtype
        self._chunk = WALKED_CHUNK if dims else FLAT_CHUNK
        self.starts: list[int] = []
        self.rows: list[int] = []
        self.chunks = 0

    def add(self, row: Sequence[int], numel: int, axes: Walk | None) -> None:
        self.starts.append(self.chunks)
        self.chunks += -(-numel // self._chunk)
        self.rows += row
        if axes is not None:
            sizes, logicals, strides = axes
            more = self.dims - len(sizes)  # outer axes of one element
            for numbers, fill in ((sizes, 1), (logicals, 0), *((s, 0) for s in strides)):
                self.rows += (*(fill,) * more, *numbers)

    @property
    def slots(self) -> int:
        return next(n for n in SLOTS if len(self.starts) <= n)

    def numbers(self) -> list[int]:
        odd = len(self.rows) % 2  # tables begin at multiples of 16 bytes: a kernel is compiled for that
        return [*self.starts, *(2**62,) * (self.slots - len(self.starts)), *self.rows, *(0,) * odd]


def _build(
    columns: Sequence[Sequence[Tensor]], masks: Sequence[Tensor | None], kept: Sequence[bool]
) -> list[_Builder]:
    params, refs = columns[0], len(columns)
    builders: dict[tuple[int, bool, torch.dtype, torch.dtype], list[_Builder]] = {}
    for i, param in enumerate(params):
        numel = param.numel()
        if numel == 0:
            continue
        tensors, bits = [column[i] for column in columns], masks[i]
        addresses = [t.data_ptr() for t in tensors]
        axes = None
        if numel % 8 or any(a % 16 for a in addresses) or not all(t.is_contiguous() for t in tensors):
            axes = walk(tuple(param.shape), tuple(t.stride() for t in tensors), bits is not None)
            if _is_flat(axes) and numel % 8 == 0 and not any(a % 16 for a in addresses):
                axes = None
        dims = 0 if axes is None else next(d for d in DIMS if len(axes[0]) <= d)
        key = dims, numel >= 2**31, param.dtype, tensors[-1].dtype
        group = builders.setdefault(key, [])
        if not group or len(group[-1].starts) == SLOTS[-1]:
            group.append(_Builder(refs, *key))
        claim = bits is not None and bool(kept) and kept[i]
        row = (*addresses, 0 if bits is None else bits.data_ptr(), numel, i, int(claim))
        group[-1].add(row, numel, axes)
    return list(itertools.chain.from_iterable(builders.values()))


def _to_device(numbers: list[int], device: torch.device, capturing: bool) -> Tensor:
    if capturing:
        table = torch.zeros(len(numbers), dtype=torch.int64, device=device)
        torch._foreach_add_(list(table.unbind()), numbers)
        return table
    if device.type == "cpu":
        return torch.tensor(numbers, dtype=torch.int64)
    return torch.tensor(numbers, dtype=torch.int64, pin_memory=True).to(device, non_blocking=True)


_tables: dict[tuple[object, ...], tuple[list[object], Tables]] = {}  # the oldest first
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
    now: list[object] = [t.data_ptr() for t in flat]
    now += [None if b is None else b.data_ptr() for b in masks]
    now += [t.numel() for t in params]
    now += [t.dtype for t in params]
    now += [t.dtype for t in columns[-1]]
    now += [(t.shape, t.stride()) for t in flat if not t.is_contiguous()]
    now += [t.data_ptr() for t in extra]
    now += kept
    key = len(columns), len(params), now[0], str(device), stream
    last = None if capturing else _tables.get(key)
    if last is not None and last[0] == now:
        return last[1]
    made = _made(columns, masks, kept, extra, device, capturing)
    if not capturing:
        with _lock:
            _tables.pop(key, None)
            _tables[key] = now, made
            if len(_tables) > _KEPT:
                del _tables[next(iter(_tables))]
    return made


def _made(
    columns: Sequence[Sequence[Tensor]],
    masks: Sequence[Tensor | None],
    kept: Sequence[bool],
    extra: Sequence[Tensor],
    device: torch.device,
    capturing: bool,
) -> Tables:
    builders = _build(columns, masks, kept)
    numbers = [builder.numbers() for builder in builders]
    addresses = [t.data_ptr() for t in extra]
    together = _to_device([*itertools.chain.from_iterable(numbers), *addresses], device, capturing)
    *parts, last = together.split([*map(len, numbers), len(addresses)])
    launches = [
        Launch(part, b.chunks, b.slots, b.dims, b.wide, b.dtype, b.state_dtype)
        for part, b in zip(parts, builders, strict=True)
    ]
    if not extra:
        return Tables(launches, None, None)
    return Tables(launches, last, torch.empty((len(extra), 3), dtype=torch.float64, device=device))
