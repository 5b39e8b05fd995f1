"""Timing on a CUDA device by its own events, what the rows say of it, and all that the benchmarks ask of the device.

Every call lies between two events of its own, and before every call the L2 cache is swept: a buffer of several times
its size is read (not written: the call would be charged for writing dirty lines back). Two figures a contender:

- *eager*: the device is idle when the call begins, so the host's own work is in the figure, up to the last launch.
- *graph*: the call was captured in a CUDA graph, whose replay is launched while the device still sweeps, so the figure
  is the device's own time. It is what a training loop pays, whose host runs ahead.

What a call has written into L2 by its end is not waited for. An empty pair of events is timed too: every figure has
`event_pair_ms` in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from . import memory
from .harness import Budget, Row, Timing, interleave, rows

BUDGET = Budget(clean=21, rounds=60, seconds=12.0)
QUICK = Budget(clean=7, rounds=20, seconds=5.0, fewest_rounds=3)
SAMPLE_SECONDS = 0.0005
SWEPT = 4  # L2 sizes
COPIED_BYTES = 2 << 30

Call = Callable[[], object]


class Event(Protocol):
    def record(self) -> None: ...

    def elapsed_time(self, end_event: Any, /) -> float:
        """Milliseconds from this one to `end_event`; both have happened."""
        ...


@dataclass(frozen=True)
class Replay:
    """A captured call. Its timing leaves the host out."""

    replay: Call

    def __call__(self) -> object:
        return self.replay()


def captured(call: Call) -> Replay:
    """`call` as a CUDA graph, warmed up on the stream that captures it. Raises RuntimeError where it can't be."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # current again afterwards also when the capture fails
        for _ in range(3):
            call()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    return Replay(graph.replay)


def _l2_bytes() -> int:
    return torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size


@dataclass(frozen=True)
class Gpu:
    """What the benchmarks ask of a device; tests bring their own functions."""

    device: str = "cuda"
    l2_bytes: int = field(default_factory=_l2_bytes)
    event: Callable[[], Event] = lambda: torch.cuda.Event(enable_timing=True)
    synchronize: Call = torch.cuda.synchronize
    capture: Callable[[Call], Replay] = captured
    allocated: Callable[[], int] = torch.cuda.memory_allocated
    peak_allocated: Callable[[], int] = torch.cuda.max_memory_allocated
    forget_peak: Call = torch.cuda.reset_peak_memory_stats


class Timer:
    """Seconds a call, as `harness.interleave` wants them, by the module's rules."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._swept = torch.ones(max(1, SWEPT * gpu.l2_bytes // 4), device=gpu.device)
        self._sum = torch.zeros((), device=gpu.device)
        self._pairs: list[tuple[Event, Event]] = []

    def __call__(self, call: Call, calls: int) -> float:
        while len(self._pairs) < calls:
            start, end = self._gpu.event(), self._gpu.event()
            start.record()  # the first time makes them, which takes a while
            end.record()
            self._pairs.append((start, end))
        for start, end in self._pairs[:calls]:
            torch.sum(self._swept, 0, out=self._sum)
            if not isinstance(call, Replay):
                self._gpu.synchronize()
            start.record()
            call()
            end.record()
        self._gpu.synchronize()
        return sum(start.elapsed_time(end) for start, end in self._pairs[:calls]) / calls / 1e3


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
    """The rows of "ours" against the other calls, eager and, where `not_captured` has no reason against it, as graphs.

    `speedup` is of eager times, `graph_speedup` of graphs. `ours_gb_per_s` counts `moved_bytes`, and `of_copy` is how
    much of the copy's bandwidth that is: by the graph's time, or the eager one where there is no graph (`timed_as`).
    """
    why_not, every = dict(not_captured), {(name, "eager"): call for name, call in calls.items()}
    replays: dict[Call, Replay] = {}
    for name, call in calls.items():
        if name in why_not:
            continue
        try:
            if call not in replays:
                replays[call] = gpu.capture(call)
            every[name, "graph"] = replays[call]
        except RuntimeError as error:  # torch has left the capture by then
            why_not[name] = str(error).partition("\n")[0]
    timings = interleave(every, budget, sample_seconds=SAMPLE_SECONDS, timed=Timer(gpu))
    eager = {name: timings[name, "eager"] for name in calls}
    graph: dict[str, Timing] = {name: timings[name, "graph"] for name in calls if (name, "graph") in timings}
    device_ms = graph.get("ours", eager["ours"]).ms
    speed = gb_per_s(moved_bytes, device_ms)
    common = {
        **facts, "moved_bytes": moved_bytes, "timed_as": "graph" if "ours" in graph else "eager",
        "ours_gb_per_s": rounded(speed), "copy_gb_per_s": limit.copy_gb_per_s,
        "of_copy": rounded(speed / limit.copy_gb_per_s), "event_pair_ms": limit.event_pair_ms,
    }  # fmt: skip
    made = rows(eager, facts=common)
    for row in made:
        for who, name in (("ours", "ours"), ("peer", row["peer"])):
            row[f"{who}_graph_ms"] = rounded(graph[name].ms) if name in graph else None
            if name in why_not:
                row[f"{who}_not_captured"] = why_not[name]
        if "ours" in graph and row["peer"] in graph:
            row["graph_speedup"] = rounded(graph[row["peer"]].ms / graph["ours"].ms)
    return made
