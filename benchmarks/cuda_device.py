"""All that the benchmarks ask of a CUDA device."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

Call = Callable[[], object]


class Event(Protocol):
    def record(self) -> None: ...

    def elapsed_time(self, end_event: Any, /) -> float:
        """Milliseconds from this one to `end_event`; both have happened."""
        ...

    def query(self) -> bool:
        """Whether the device has come to it."""
        ...


@dataclass(frozen=True)
class Replay:
    """A captured call."""

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


def waits(call: Call) -> bool:
    """Whether torch sees `call`, which is made once, wait for the device."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")  # an error would leave half of an update undone
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return any("called a synchronizing CUDA operation" in str(each.message) for each in told)


def machine() -> tuple[int, tuple[int, int]]:
    """(multiprocessors, compute capability) of the current device."""
    it = torch.cuda.get_device_properties(torch.cuda.current_device())
    return it.multi_processor_count, (it.major, it.minor)


@dataclass(frozen=True)
class Gpu:
    """What the benchmarks ask of a device; tests bring their own functions."""

    device: str = "cuda"
    l2_bytes: int = field(default_factory=_l2_bytes)
    machine: Callable[[], tuple[int, tuple[int, int]]] = machine
    event: Callable[[], Event] = lambda: torch.cuda.Event(enable_timing=True)
    synchronize: Call = torch.cuda.synchronize
    sleep: Callable[[int], object] = torch.cuda._sleep  # clock cycles
    waits: Callable[[Call], bool] = waits
    host_clock: Callable[[], float] = time.perf_counter
    capture: Callable[[Call], Replay] = captured
    allocated: Callable[[], int] = lambda: torch.cuda.memory_stats()["requested_bytes.all.current"]
    peak_allocated: Callable[[], int] = lambda: torch.cuda.memory_stats()["requested_bytes.all.peak"]
    forget_peak: Call = torch.cuda.reset_peak_memory_stats
