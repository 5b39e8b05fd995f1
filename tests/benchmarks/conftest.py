"""A device of the tests' own, by which the benchmarks' CUDA parts are driven where there is none."""

import pytest
import torch

from acdc_kernels.benchmarks import cuda_timing
from acdc_kernels.benchmarks.cuda_timing import Ceiling, Gpu, Replay
from acdc_kernels.benchmarks.harness import Budget

CYCLES = 1000  # a millisecond
BUDGET = Budget(clean=1, rounds=2, seconds=1.0, fewest_rounds=1)
LIMIT = Ceiling(copy_gb_per_s=4000.0, event_pair_ms=0.002)
FACTS = {
    "op": "topk", "case": "tiny/global", "pattern": "unstructured", "sparsity": 0.9, "dtype": "float32", "threads": 1,
    "device": "cuda", "backend": "native cuda",
}  # fmt: skip


class Device:
    """A device and its host, milliseconds each: what is enqueued runs when the device is done with what came before.

    The clocks move only when a contender runs, the device sleeps or the host waits for it. What is asked is logged.
    """

    def __init__(self):
        self.now, self.host, self.log, self.taken = 0.0, 0.0, [], 0
        self.tick = 0.0  # what passes before every event

    def gpu(self, **changes):
        parts = {
            "device": "cpu", "l2_bytes": 64, "event": lambda: Stamp(self), "synchronize": self.synchronize,
            "capture": lambda call: Replay(call), "allocated": lambda: 100, "peak_allocated": lambda: 100 + self.taken,
            "forget_peak": lambda: self.log.append("forget"), "sleep": self.sleep, "waits": self.waits,
            "host_clock": lambda: self.host / 1e3,
        }  # fmt: skip
        return Gpu(**parts | changes)

    def run(self, ms):
        self.now = max(self.now, self.host) + ms

    def synchronize(self):
        self.log.append("idle")
        self.host = max(self.host, self.now)

    def sleep(self, cycles):
        self.log.append("sleep")
        self.run(cycles / CYCLES)

    def waits(self, call):
        call()
        return False

    def contender(self, name, ms, host=0.0):
        def call():
            self.log.append(name)
            self.host += host
            self.run(ms)

        return call

    def capture_half(self, call):
        """Captures a call into a replay that takes half of its time: the rest was the host's."""

        def replay():
            before, host = self.now, self.host
            call()
            self.now, self.host = before + (self.now - before) / 2, host

        return Replay(replay)

    def compared(self, calls, not_captured=None, **changes):
        return cuda_timing.compare(
            self.gpu(**changes), LIMIT, calls, not_captured or {}, BUDGET, moved_bytes=8_000_000, facts=FACTS
        )


class Stamp:
    def __init__(self, device):
        self.device = device

    def record(self):
        self.device.log.append("event")
        self.device.run(self.device.tick)
        self.at = self.device.now

    def query(self):
        return self.at <= self.device.host

    def elapsed_time(self, end):
        return end.at - self.at


@pytest.fixture
def device():
    return Device()


@pytest.fixture
def sweeps(device, monkeypatch):
    """Logs sweeps, and tells their sizes."""
    real, sizes = torch.sum, []

    def swept(buffer, dim, out):
        device.log.append("sweep")
        sizes.append(buffer.nbytes)
        return real(buffer, dim, out=out)

    monkeypatch.setattr(torch, "sum", swept)
    return sizes
