"""A device of the tests' own, by which the benchmarks' CUDA parts are driven where there is none."""

import pytest

from acdc_kernels.benchmarks.cuda_timing import Gpu, Replay


class Device:
    """A device whose clock (milliseconds) moves only when a contender runs; it logs what it is asked for."""

    def __init__(self):
        self.now, self.log, self.taken = 0.0, [], 0
        self.tick = 0.0  # what passes before every event

    def gpu(self, **changes):
        parts = {
            "device": "cpu", "l2_bytes": 64, "event": lambda: Stamp(self), "synchronize": lambda: self.log.append("idle"),
            "capture": lambda call: Replay(call), "allocated": lambda: 100, "peak_allocated": lambda: 100 + self.taken,
            "forget_peak": lambda: self.log.append("forget"),
        }  # fmt: skip
        return Gpu(**parts | changes)

    def contender(self, name, ms):
        def call():
            self.log.append(name)
            self.now += ms

        return call

    def capture_half(self, call):
        """Captures a call into a replay that takes half of its time: the rest was the host's."""

        def replay():
            before = self.now
            call()
            self.now = before + (self.now - before) / 2

        return Replay(replay)


class Stamp:
    def __init__(self, device):
        self.device = device

    def record(self):
        self.device.log.append("event")
        self.device.now += self.device.tick
        self.at = self.device.now

    def elapsed_time(self, end):
        return end.at - self.at


@pytest.fixture
def device():
    return Device()
