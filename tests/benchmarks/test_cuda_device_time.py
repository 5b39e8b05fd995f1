"""Device times: events behind a sleep that outlasts the host, which a device of the test's own checks."""

import warnings

import pytest
import torch

from acdc_kernels.benchmarks import cuda_device, cuda_timing, harness
from acdc_kernels.benchmarks.cuda_timing import NotQueued, Timer


def waiting(device, name, ms):
    """A contender that waits for the device in the middle, unseen by `waits`."""

    def call():
        device.log.append(name)
        device.run(ms / 2)
        device.synchronize()
        device.run(ms / 2)

    return call


def test_device_time_lies_behind_a_sleep_that_outlasts_the_host(device, sweeps):
    timer = Timer(device.gpu())
    queued = timer.queued(device.contender("call", 3.0, host=4.0))
    assert queued.seconds == pytest.approx(cuda_timing.HOST_TIMES * 4.0e-3)
    timer(queued, 2)  # makes the events
    device.log.clear()
    assert timer(queued, 2) == pytest.approx(3.0e-3)
    assert device.log == 2 * ["idle", "sweep", "sleep", "event", "call", "event"] + ["idle"]


def test_sleep_is_what_the_calibration_says(device):
    asked = []

    def sleep(cycles):
        asked.append(cycles)
        device.host += 0.5  # is not in the calibration, which has the device busy
        device.run(cycles / 2_000)  # two million cycles a second

    Timer(device.gpu(sleep=sleep)).queued(device.contender("call", 3.0, host=4.0))
    assert set(asked[:-1]) == {cuda_timing.CALIBRATION_CYCLES}
    assert asked[-1] == pytest.approx(2_000_000 * cuda_timing.HOST_TIMES * 4.0e-3)


@pytest.mark.parametrize(("host", "seconds"), [(0.0, cuda_timing.SLEEP_AT_LEAST), (900.0, cuda_timing.SLEEP_AT_MOST)])
def test_sleep_has_bounds(device, host, seconds):
    assert Timer(device.gpu()).queued(device.contender("call", 3.0, host=host)).seconds == seconds


def test_a_call_that_the_device_overtook_is_repeated_behind_a_longer_sleep(device):
    timer, log = Timer(device.gpu()), device.log
    queued = timer.queued(device.contender("call", 3.0, host=4.0))
    late = iter([40.0])

    def call():
        log.append("call")
        device.host += next(late, 4.0)
        device.run(3.0)

    queued.call = call
    log.clear()
    assert timer(queued, 1) == pytest.approx(3.0e-3)
    assert log == 2 * ["idle", "sleep", "event", "call", "event"] + ["idle"]
    assert queued.seconds == pytest.approx(2 * cuda_timing.HOST_TIMES * 4.0e-3)


def test_a_call_that_waits_unseen_is_given_up_behind_the_longest_sleep(device):
    asked = []

    def sleep(cycles):
        asked.append(cycles)
        device.sleep(cycles)

    timer = Timer(device.gpu(sleep=sleep))
    with pytest.raises(NotQueued, match="1 s of sleep ended before it was enqueued"):
        timer.queued(waiting(device, "call", 4.0))
    longest = int(1e6 * cuda_timing.SLEEP_AT_MOST)
    assert asked.count(longest) == 1
    assert max(set(asked) - {cuda_timing.CALIBRATION_CYCLES}) == longest


def test_contenders_without_device_time_say_why(device):
    seen, ours = device.contender("seen", 4.0), device.contender("ours", 2.0)
    calls = {"ours": ours, "seen": seen, "unseen": waiting(device, "unseen", 6.0), "again": ours}
    asked = []

    def waits(call):
        asked.append(device.waits(call))
        return call is seen

    made = {row["peer"]: row for row in device.compared(calls, waits=waits)}
    assert len(asked) == 3
    assert made.pop("again")["peer_device_ms"] == 2.0
    for row in made.values():
        assert (row["ours_device_ms"], row["peer_device_ms"], row["timed_as"]) == (2.0, None, "device")
        assert "device_speedup" not in row
        assert "ours_no_device_time" not in row
    assert made["seen"]["peer_no_device_time"] == "it waits for the device"
    assert "1 s of sleep ended" in made["unseen"]["peer_no_device_time"]
    _, first, second, third = harness.table(list(made.values())).splitlines()
    assert "  device 2 ms" in first
    assert "  no device  graph 4 ms 2.00x" in second
    assert "  no device  graph 6 ms 3.00x" in third


def test_a_call_that_is_late_only_while_timed_loses_its_device_time_alone(device):
    count, waits = iter(range(10**6)), waiting(device, "late", 4.0)

    def late():
        if next(count) < 8:
            device.run(4.0)
        else:
            waits()

    calls = {"ours": late, "peer": device.contender("peer", 6.0), "ours again": late}
    made = {row["peer"]: row for row in device.compared(calls)}
    peer = made["peer"]
    assert (peer["ours_ms"], peer["ours_device_ms"], peer["timed_as"]) == (4.0, None, "graph")
    assert (peer["peer_device_ms"], made["ours again"]["peer_device_ms"]) == (6.0, None)
    assert "1 s of sleep ended" in peer["ours_no_device_time"]
    assert made["ours again"]["peer_no_device_time"] == peer["ours_no_device_time"]
    assert "peer_no_device_time" not in peer


SYNCHRONIZES = "called a synchronizing CUDA operation (Triggered internally)"


@pytest.mark.parametrize(("told", "waits"), [([], False), (["other"], False), (["other", SYNCHRONIZES], True)])
def test_torch_tells_who_waits(told, waits, monkeypatch):
    modes = ["default"]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[0])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    seen = []

    def call():
        seen.append(modes[-1])
        for text in told:
            warnings.warn(text, stacklevel=1)

    assert cuda_device.waits(call) == waits
    assert (seen, modes) == (["warn"], ["default", "warn", "default"])
    with pytest.raises(ZeroDivisionError):
        cuda_device.waits(lambda: 1 / 0)
    assert modes[-1] == "default"
