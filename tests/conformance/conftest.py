"""One set of cases for every backend of every op, against the reference in float64 or to the bit."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _no_poison_left_behind():
    """Fresh memory is filled with NaN: an op that leaves part of its output unwritten fails."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=[1, 2], ids=["1-thread", "2-threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def extra_bytes():
    """The bytes that a call which returns masks allocates beyond them, over all of its allocations."""

    def measure(call):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            masks = call()
        allocated = sum(e.self_cpu_memory_usage for e in profile.key_averages() if e.self_cpu_memory_usage > 0)
        outputs = sum(m.numel() for m in masks)
        assert outputs <= allocated  # the profiler saw the op
        return allocated - outputs

    return measure
