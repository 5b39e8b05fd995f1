"""Timing on a CUDA device: what is called when, what the rows say of it, and what the machine's stamp tells of it."""

import subprocess
from types import SimpleNamespace

import pytest
import torch

from acdc_kernels.benchmarks import cuda_timing, harness
from acdc_kernels.benchmarks import machine as stamps
from acdc_kernels.benchmarks.cuda_timing import Ceiling, Replay, Timer
from acdc_kernels.benchmarks.harness import ROW_KEYS, Budget

BUDGET = Budget(clean=1, rounds=2, seconds=1.0, fewest_rounds=1)


@pytest.mark.parametrize(("graph", "waits"), [(False, ["idle"]), (True, [])], ids=["eager", "graph"])
def test_every_call_is_swept_before_and_lies_between_two_events(device, sweeps, graph, waits):
    timer, call = Timer(device.gpu()), device.contender("call", 3.0)
    call = Replay(call) if graph else call
    timer(call, 2)  # makes the events
    device.log.clear()
    assert timer(call, 2) == pytest.approx(3.0e-3)
    assert device.log == 2 * ["sweep", *waits, "event", "call", "event"] + ["idle"]
    assert set(sweeps) == {cuda_timing.SWEPT * 64}


def test_events_are_made_before_the_first_sample(device, sweeps):
    Timer(device.gpu())(device.contender("call", 1.0), 2)
    assert device.log[:5] == [*4 * ["event"], "sweep"]


def test_sample_is_the_mean_of_its_calls(device):
    times = iter([1.0, 2.0, 6.0])

    def call():
        device.now += next(times)

    assert Timer(device.gpu())(call, 3) == pytest.approx(3.0e-3)


def test_interleave_takes_a_clock_of_a_device():
    asked, calls = [], {"a": lambda: None, "b": lambda: None}

    def timed(call, n):
        asked.append((call, n))
        return 2.0

    timings = harness.interleave(calls, BUDGET, sample_seconds=8.0, timed=timed)
    assert {timing.ms for timing in timings.values()} == {2000.0}
    assert asked[:2] == [(call, 1) for call in calls.values()]
    assert {n for _, n in asked[2:]} == {4}
    assert {call for call, _ in asked[2:]} == set(calls.values())


def test_ceiling_counts_bytes_read_and_written(device):
    copies = []

    def capture(call):
        def replay():
            copies.append(call())
            device.now += 0.5

        return Replay(replay)

    limit = cuda_timing.ceiling(device.gpu(capture=capture), BUDGET, copied_bytes=4000)
    assert limit == Ceiling(copy_gb_per_s=round(2 * 4000 / 0.5e-3 / 1e9, 6), event_pair_ms=0.0)
    assert {(copied.nbytes, copied.sum().item()) for copied in copies} == {(4000, 1000.0)}
    assert cuda_timing.COPIED_BYTES >= 2 << 30


def test_rows_tell_all_times_and_the_share_of_a_copy(device):
    calls = {"ours": device.contender("ours", 2.0, host=6.0), "slow": device.contender("slow", 10.0, host=30.0)}
    calls |= {"eager alone": device.contender("eager alone", 5.0, host=7.0), "ours again": calls["ours"]}
    made = {
        row["peer"]: row
        for row in device.compared(calls, {"eager alone": "it reads on the host"}, capture=device.capture_half)
    }
    assert list(made) == ["slow", "eager alone", "ours again"]
    for row in made.values():
        assert tuple(row)[: len(ROW_KEYS)] == ROW_KEYS
        assert (row["ours_ms"], row["ours_device_ms"], row["ours_graph_ms"]) == (8.0, 2.0, 4.0)
        assert (row["timed_as"], row["moved_bytes"]) == ("device", 8_000_000)
        assert (row["ours_gb_per_s"], row["of_copy"]) == (4.0, 0.001)
        assert (row["copy_gb_per_s"], row["event_pair_ms"]) == (4000.0, 0.002)
    slow, alone, again = made.values()
    assert (slow["peer_ms"], slow["speedup"], slow["peer_graph_ms"], slow["graph_speedup"]) == (40.0, 5.0, 20.0, 5.0)
    assert (alone["peer_ms"], alone["speedup"], alone["peer_graph_ms"]) == (12.0, 1.5, None)
    assert (slow["peer_device_ms"], slow["device_speedup"]) == (10.0, 5.0)
    assert (alone["peer_device_ms"], alone["device_speedup"]) == (5.0, 2.5)
    assert alone["peer_not_captured"] == "it reads on the host"
    assert "graph_speedup" not in alone
    assert (again["graph_speedup"], again["device_speedup"]) == (1.0, 1.0)
    assert not {key for row in made.values() for key in row if "no_device" in key or key == "ours_not_captured"}


def test_a_capture_that_fails_is_told_and_the_call_timed_without(device):
    def capture(call):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    calls = {"ours": device.contender("ours", 2.0), "peer": device.contender("peer", 4.0)}
    (row,) = device.compared(calls, capture=capture)
    assert (row["ours_ms"], row["ours_graph_ms"], row["peer_graph_ms"], row["timed_as"]) == (2.0, None, None, "device")
    (row,) = device.compared(calls, capture=capture, waits=lambda call: True)
    assert (row["ours_ms"], row["ours_device_ms"], row["timed_as"]) == (2.0, None, "eager")
    assert row["ours_not_captured"] == row["peer_not_captured"] == "operation not permitted when stream is capturing"
    assert (row["ours_gb_per_s"], row["of_copy"]) == (4.0, 0.001)


def test_table_of_a_gpu_tells_graphs_and_no_threads(device):
    calls = {
        "ours": device.contender("ours", 8.0),
        "peer": device.contender("peer", 12.0),
        "long": device.contender("long", 16.0),
    }
    made = device.compared(calls, {"long": "too long"}, capture=device.capture_half)
    head, ours, peer, long = harness.table(made).splitlines()
    assert head == "topk  tiny/global  90% unstructured  float32  cuda"
    assert ours.endswith("  device 8 ms  graph 4 ms  1 GB/s, 0% of a copy's")
    assert peer.endswith("  device 12 ms 1.50x  graph 6 ms 1.50x")
    assert long.endswith("  device 16 ms 2.00x  no graph")


def test_extra_memory_is_the_peak_less_the_outputs(device):
    weights = [torch.zeros(100, dtype=torch.bfloat16), torch.zeros(50, dtype=torch.bfloat16)]

    def call():
        device.taken = 64
        return [torch.zeros(10, dtype=torch.uint8), torch.zeros(6)]

    assert cuda_timing.extra_memory(device.gpu(), call, weights) == (64 - 34, 10.0)
    assert device.log == ["idle", "forget", "idle"]


def test_stamp_has_what_torch_and_nvidia_smi_tell(monkeypatch):
    told = SimpleNamespace(
        name="NVIDIA H200",
        major=9,
        minor=0,
        multi_processor_count=132,
        L2_cache_size=60 << 20,
        total_memory=10**11,
        uuid="u",
    )
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: told)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    asked = []

    def answer(command, **options):
        asked.append(command)
        return SimpleNamespace(returncode=0, stdout="580.159.04, 1980, 3201, 1980, [N/A], 700.00, 41\n")

    monkeypatch.setattr(subprocess, "run", answer)
    assert stamps.gpu() == {
        "name": "NVIDIA H200", "capability": "9.0", "multiprocessors": 132, "l2_bytes": 60 << 20, "memory_bytes": 10**11,
        "cuda": "13.0", "driver": "580.159.04", "sm_mhz": 1980.0, "memory_mhz": 3201.0, "max_sm_mhz": 1980.0,
        "power_limit_w": 700.0, "celsius": 41.0,
    }  # fmt: skip
    assert asked[0][:2] == ["nvidia-smi", "--id=GPU-u"]
    assert all("query" in word or word.startswith(("--id", "--format")) for word in asked[0][1:])  # nothing is set


@pytest.mark.parametrize("failure", [FileNotFoundError(), subprocess.TimeoutExpired("nvidia-smi", 20), None])
def test_stamp_does_without_nvidia_smi(failure, monkeypatch):
    def answer(command, **options):
        if failure is not None:
            raise failure
        return SimpleNamespace(returncode=6, stdout="No devices were found\n")

    monkeypatch.setattr(subprocess, "run", answer)
    assert stamps.smi("GPU-u") == {}
