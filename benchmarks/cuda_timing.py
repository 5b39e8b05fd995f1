"""Timing on a CUDA device by its own events, and what the rows say of it.

Every call lies between two events of its own, and before every call the L2 cache is swept: a buffer of several times
its size is read (not written: the call would be charged for writing dirty lines back). Up to three figures a contender:

- *device*: after the sweep the device sleeps until the host has enqueued the whole call, so the events bracket the
  device's work alone. It is what a training loop pays, whose host runs ahead, and the figure that targets are judged
  by. A call that waits for the device has none.
- *eager*: the device is idle when the call begins, so the host's own work is in the figure, up to the last launch.
- *graph*: the replay of the call as a CUDA graph, launched while the device still sweeps. It is what captured training
  pays, where a masked update can't know whether anyone wrote to the weights, and so skips nothing.

That the device still slept when the host was done is asked of the first event at every call; if it did not, the call is
repeated behind a sleep twice as long. What a call has written into L2 by its end is not waited for. An empty pair of
events is timed too: every figure has `event_pair_ms` in it.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import memory
from .cuda_device import Call, Event, Gpu, Replay
from .harness import Budget, Row, Timing, interleave, rows

BUDGET = Budget(clean=21, rounds=60, seconds=12.0)
QUICK = Budget(clean=7, rounds=20, seconds=5.0, fewest_rounds=3)
SAMPLE_SECONDS = 0.0005
SWEPT = 4  # L2 sizes
COPIED_BYTES = 2 << 30
SLEEP_AT_LEAST, SLEEP_AT_MOST = 0.0001, 1.0  # seconds; recording the events is the host's work, too
HOST_TIMES = 2
CALIBRATION_CYCLES = 2_000_000


@dataclass(eq=False)
class Queued:
    """A call that is enqueued while the device sleeps. `seconds` of sleep are made more where they prove too few."""

    call: Call
    seconds: float

    def __call__(self) -> object:
        return self.call()


class NotQueued(Exception):
    """A call that the host can't enqueue ahead of the device, and why."""

    def __init__(self, call: Call, why: str) -> None:
        super().__init__(why)
        self.call = call


class Timer:
    """Seconds a call, as `harness.interleave` wants them, by the module's rules."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._swept = torch.ones(max(1, SWEPT * gpu.l2_bytes // 4), device=gpu.device)
        self._sum = torch.zeros((), device=gpu.device)
        self._pairs: list[tuple[Event, Event]] = []
        self._cycles_per_second = 0.0

    def __call__(self, call: Call, calls: int) -> float:
        self._make_pairs(calls)
        for start, end in self._pairs[:calls]:
            if isinstance(call, Queued):
                self._behind_sleep(call, start, end)
                continue
            self._sweep()
            if not isinstance(call, Replay):
                self._gpu.synchronize()
            start.record()
            call()
            end.record()
        self._gpu.synchronize()
        return sum(start.elapsed_time(end) for start, end in self._pairs[:calls]) / calls / 1e3

    def queued(self, call: Call) -> Queued:
        """`call` behind a sleep that is long enough for it. Raises NotQueued where there is none."""
        call()
        if self._gpu.waits(call):
            raise NotQueued(call, "it waits for the device")
        self._gpu.synchronize()
        began = self._gpu.host_clock()
        call()
        took = self._gpu.host_clock() - began
        made = Queued(call, min(max(HOST_TIMES * took, SLEEP_AT_LEAST), SLEEP_AT_MOST))
        self(made, 1)
        return made

    def _make_pairs(self, count: int) -> None:
        while len(self._pairs) < count:
            start, end = self._gpu.event(), self._gpu.event()
            start.record()  # the first time makes them, which takes a while
            end.record()
            self._pairs.append((start, end))

    def _sweep(self) -> None:
        torch.sum(self._swept, 0, out=self._sum)

    def _behind_sleep(self, queued: Queued, start: Event, end: Event) -> None:
        rate = self._cycles_per_second = self._cycles_per_second or self._calibrated()
        while True:
            self._gpu.synchronize()  # what the device holds is limited: nothing of earlier calls
            self._sweep()
            self._gpu.sleep(round(queued.seconds * rate))
            start.record()
            queued.call()
            end.record()
            if not start.query():
                return
            if queued.seconds >= SLEEP_AT_MOST:
                what = "it waits for the device, or is too many launches"
                raise NotQueued(queued.call, f"{SLEEP_AT_MOST:g} s of sleep ended before it was enqueued: {what}")
            queued.seconds = min(2 * queued.seconds, SLEEP_AT_MOST)

    def _calibrated(self) -> float:
        """Cycles of `sleep` a second."""
        self._make_pairs(1)
        (start, end), seconds = self._pairs[0], []
        for _ in range(3):
            self._gpu.sleep(CALIBRATION_CYCLES)  # as long as it takes to record the first event
            start.record()
            self._gpu.sleep(CALIBRATION_CYCLES)
            end.record()
            self._gpu.synchronize()
            seconds.append(start.elapsed_time(end) / 1e3)
        return CALIBRATION_CYCLES / statistics.median(seconds)


@dataclass(frozen=True)
class Ceiling:
    """What the device can do, by the same timing in the same run."""

    copy_gb_per_s: float  # bytes read and written
    event_pair_ms: float


def ceiling(gpu: Gpu, budget: Budget, copied_bytes: int = COPIED_BYTES) -> Ceiling:
    """A copy from device to device of `copied_bytes`, and nothing between two events."""
    source = torch.ones(copied_bytes // 4, device=gpu.device)
    target = torch.empty_like(source)
    calls = {"copy": gpu.capture(lambda: target.copy_(source)), "nothing": Replay(lambda: None)}
    timings = interleave(calls, budget, sample_seconds=SAMPLE_SECONDS, timed=Timer(gpu))
    moved = 2 * source.numel() * source.element_size()
    return Ceiling(rounded(gb_per_s(moved, timings["copy"].ms)), rounded(timings["nothing"].ms))


def gb_per_s(moved_bytes: int, ms: float) -> float:
    return moved_bytes / ms / 1e6


def rounded(value: float) -> float:
    return float(f"{value:.4g}")


def extra_memory(gpu: Gpu, call: Call, weights: Sequence[Tensor]) -> tuple[int, float]:
    """What torch's allocator hands out during `call` at its peak, less the outputs: bytes, and percent of the weights.

    What a call keeps for the next ones counts at the first call alone.
    """
    gpu.synchronize()
    gpu.forget_peak()
    before = gpu.allocated()
    outputs = memory.output_bytes(call())
    gpu.synchronize()
    extra = max(0, gpu.peak_allocated() - before - outputs)
    return extra, round(100.0 * extra / sum(w.numel() * w.element_size() for w in weights), 3)


def compare(
    gpu: Gpu,
    limit: Ceiling,
    calls: Mapping[str, Call],
    not_captured: Mapping[str, str],
    budget: Budget,
    *,
    moved_bytes: int,
    facts: Mapping[str, Any],
) -> list[Row]:
    """The rows of "ours" against the other calls: device, eager and, if `not_captured` has no reason against it, graph.

    `speedup` is of eager times, `device_speedup` and `graph_speedup` of those. A time that there is not is None, and
    `ours_no_device_time`, `ours_not_captured` and the same of the peer say why. `ours_gb_per_s` counts `moved_bytes`,
    and `of_copy` is how much of the copy's bandwidth that is: by the device's time, or what there is (`timed_as`).
    """
    timer, not_queued, not_captured = Timer(gpu), dict[str, str](), dict(not_captured)
    every: dict[tuple[str, str], Call] = {(name, "eager"): call for name, call in calls.items()}
    replays: dict[Call, Replay] = {}
    for name, call in calls.items():
        if name in not_captured:
            continue
        try:
            if call not in replays:
                replays[call] = gpu.capture(call)
            every[name, "graph"] = replays[call]
        except RuntimeError as error:  # torch has left the capture by then
            not_captured[name] = str(error).partition("\n")[0]
    queued: dict[Call, Queued | str] = {}
    for name, call in calls.items():
        if call not in queued:
            queued[call] = _queued(timer, call)
        if isinstance(found := queued[call], Queued):
            every[name, "device"] = found
        else:
            not_queued[name] = found
    timings = _interleaved(every, budget, timer, not_queued)
    bases = {
        basis: {name: timings[name, basis] for name in calls if (name, basis) in timings}
        for basis in ("device", "graph", "eager")
    }
    timed_as = next(basis for basis, times in bases.items() if "ours" in times)
    speed = gb_per_s(moved_bytes, bases[timed_as]["ours"].ms)
    common = {
        **facts, "moved_bytes": moved_bytes, "timed_as": timed_as,
        "ours_gb_per_s": rounded(speed), "copy_gb_per_s": limit.copy_gb_per_s,
        "of_copy": rounded(speed / limit.copy_gb_per_s), "event_pair_ms": limit.event_pair_ms,
    }  # fmt: skip
    made = rows(bases["eager"], facts=common)
    for row in made:
        _add(row, "device", bases["device"], "no_device_time", not_queued)
        _add(row, "graph", bases["graph"], "not_captured", not_captured)
    return made


def _queued(timer: Timer, call: Call) -> Queued | str:
    """Or why not."""
    try:
        return timer.queued(call)
    except NotQueued as error:
        return str(error)


def _interleaved(
    every: Mapping[tuple[str, str], Call], budget: Budget, timer: Timer, not_queued: dict[str, str]
) -> dict[tuple[str, str], Timing]:
    """The timings, less the device's of calls that now prove too slow to enqueue: `not_queued` gets their reasons."""
    try:
        return interleave(every, budget, sample_seconds=SAMPLE_SECONDS, timed=timer)
    except NotQueued as error:
        late = {key: str(error) for key, each in every.items() if isinstance(each, Queued) and each.call == error.call}
    not_queued.update({name: why for (name, _), why in late.items()})
    return _interleaved({key: each for key, each in every.items() if key not in late}, budget, timer, not_queued)


def _add(row: Row, basis: str, times: Mapping[str, Timing], no_time: str, why_not: Mapping[str, str]) -> None:
    for who, name in (("ours", "ours"), ("peer", row["peer"])):
        row[f"{who}_{basis}_ms"] = rounded(times[name].ms) if name in times else None
        if name in why_not:
            row[f"{who}_{no_time}"] = why_not[name]
    if "ours" in times and row["peer"] in times:
        row[f"{basis}_speedup"] = rounded(times[row["peer"]].ms / times["ours"].ms)
