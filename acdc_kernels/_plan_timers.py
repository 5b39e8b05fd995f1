"""The clocks of the plan: what a call takes on a CPU, and on a GPU."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

__all__ = ["CudaTimer", "Gpu", "Timer"]

SWEPT = 2  # L2 sizes
SLEEP_AT_LEAST, SLEEP_AT_MOST = 1e-4, 1e-2  # seconds
COMPILED = 0.02  # seconds, in which nothing can be compiled


class Timer:
    """Wall-clock seconds of calls, and whether anything else was given the processor meanwhile.

    Attributes:
        compiling: seconds that ``prepare`` compiled in. overhead: about the seconds that a run takes beside its call.
    """

    compiling = overhead = 0.0

    def now(self) -> float:
        """Seconds, of which those that ``prepare`` compiled in are not counted."""
        return time.perf_counter()

    def prepare(self, make: Callable[[], Callable[[], object]]) -> Callable[[], object]:
        """The call that ``make`` makes, ready to be run: what has to be compiled for it is compiled."""
        return make()

    def run(self, call: Callable[[], object]) -> tuple[float, bool]:
        """(seconds, whether the process kept its processors)."""
        before = _interruptions()
        start = time.perf_counter()
        call()
        seconds = time.perf_counter() - start
        return seconds, _interruptions() == before


def _interruptions() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


class Event(Protocol):
    def record(self) -> None: ...

    def elapsed_time(self, end_event: Any, /) -> float: ...

    def query(self) -> bool: ...


@dataclass(frozen=True)
class Gpu:
    """All that ``CudaTimer`` asks of a GPU; tests bring their own functions."""

    clock: float  # Hz, at most
    sweep: Callable[[], object]  # leaves nothing of use in the L2 cache
    current: Callable[[], AbstractContextManager[object]]
    event: Callable[[], Event] = lambda: torch.cuda.Event(enable_timing=True)
    synchronize: Callable[[], object] = torch.cuda.synchronize
    sleep: Callable[[int], object] = torch.cuda._sleep  # clock cycles
    host_clock: Callable[[], float] = time.perf_counter

    @classmethod
    def of(cls, device: torch.device) -> Gpu:
        properties = torch.cuda.get_device_properties(device)
        read = torch.ones(max(1, SWEPT * properties.L2_cache_size // 4), device=device)
        total = torch.zeros((), device=device)
        clock = 1e3 * (properties.clock_rate or 2e6)
        return cls(clock, lambda: torch.sum(read, 0, out=total), lambda: torch.cuda.device(device))


class CudaTimer(Timer):
    """Seconds of calls on a GPU: what the device takes, or the host to enqueue it, whichever is longer.

    In training the host runs ahead, and the slower of the two sets the pace. The device's time is taken between two
    events behind a sleep, in which the host enqueues the whole call; before that the L2 cache is swept, by reading
    other memory, for between two uses of a layer's weight a training step moves more than the cache holds.
    """

    overhead = 3e-4

    def __init__(self, device: torch.device, gpu: Gpu | None = None) -> None:
        self._device, self._gpu = device, gpu
        self._events: tuple[Event, Event] | None = None
        self._sleep = SLEEP_AT_LEAST
        self.compiling = 0.0

    @property
    def gpu(self) -> Gpu:
        if self._gpu is None:
            self._gpu = Gpu.of(self._device)
        return self._gpu

    def now(self) -> float:
        return (self._gpu.host_clock if self._gpu else time.perf_counter)() - self.compiling

    def prepare(self, make: Callable[[], Callable[[], object]]) -> Callable[[], object]:
        gpu = self.gpu
        start = gpu.host_clock()
        try:
            with gpu.current():
                call = make()
                call()
                gpu.synchronize()
            return call
        finally:
            if (took := gpu.host_clock() - start) > COMPILED:
                self.compiling += took

    def run(self, call: Callable[[], object]) -> tuple[float, bool]:
        """(seconds, whether the process kept its processors where the host's time counts)."""
        with self.gpu.current():
            while True:
                late, device, host, kept = self._once(call)
                if not late or self._sleep >= SLEEP_AT_MOST:
                    break
                self._sleep = min(2 * self._sleep, SLEEP_AT_MOST)
        return max(device, host), kept or device >= host

    def _once(self, call: Callable[[], object]) -> tuple[bool, float, float, bool]:
        """(whether the device woke too early, its seconds, the host's, whether the process kept its processors)."""
        gpu = self.gpu
        if self._events is None:
            self._events = gpu.event(), gpu.event()
        start, end = self._events
        gpu.synchronize()
        gpu.sweep()
        gpu.sleep(round(self._sleep * gpu.clock))
        start.record()
        interruptions, began = _interruptions(), gpu.host_clock()
        call()
        host = gpu.host_clock() - began
        kept = _interruptions() == interruptions
        end.record()
        late = start.query()
        gpu.synchronize()
        return late, start.elapsed_time(end) / 1e3, host, kept
