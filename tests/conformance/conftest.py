"""One set of cases for every backend of every op, against the reference in float64 or to the bit.

``ACDC_TEST_DEVICE=cuda`` runs the same cases on a GPU: their tensors are made on the CPU and moved there before they
get strides, and what they are compared with is computed on the CPU.
"""

import os
import warnings

import pytest
import torch

from acdc_kernels import _native


def _device():
    asked = os.environ.get("ACDC_TEST_DEVICE", "cpu")
    try:
        return torch.empty(0, device=asked).device
    except (AssertionError, RuntimeError) as error:
        pytest.exit(f"ACDC_TEST_DEVICE: must be a device that torch has here, got {asked!r}: {error}", returncode=4)


DEVICE = _device()
ON_CPU = DEVICE.type == "cpu"


def cpu_only(reason):
    return pytest.mark.skipif(not ON_CPU, reason=reason)


# Those of the ops of blocks; Triton's interpreter, which stands in for a GPU, has not all of them.
BLOCK_DTYPES = [
    getattr(torch, name)
    for name in os.environ.get("ACDC_TEST_BLOCK_DTYPES", "float64,float32,float16,bfloat16").split(",")
]

no_products = cpu_only("the sparse products have no CUDA kernels")


def on_cpu(tensors):
    """What a reference is given."""
    return [None if t is None else t.cpu() for t in tensors]


@pytest.fixture(autouse=True)
def _no_poison_left_behind():
    """Fresh memory is filled with NaN: an op that leaves part of its output unwritten fails."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _kernels_are_what_runs():
    """Nothing may stand in for the kernels of a GPU."""
    if not ON_CPU and (why := _native.why_no_cuda()):
        pytest.fail(f"ACDC_TEST_DEVICE={DEVICE}: {why}")
    with warnings.catch_warnings():
        if not ON_CPU:
            warnings.filterwarnings("error", message="acdc_kernels: the plain torch reference runs on cuda")
        yield


@pytest.fixture(params=[1, 2] if ON_CPU else [1], ids=["1-thread", "2-threads"] if ON_CPU else ["gpu"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def extra_bytes():
    """The bytes that a call which returns masks allocates beyond them: on a CPU over all of its allocations, on a GPU at
    the most at one time."""

    def measure(call):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            masks = call()
        allocated = sum(e.self_cpu_memory_usage for e in profile.key_averages() if e.self_cpu_memory_usage > 0)
        outputs = sum(m.numel() for m in masks)
        assert outputs <= allocated  # the profiler saw the op
        return allocated - outputs

    def measure_gpu(call):
        """What was asked for: the cache hands out larger blocks, depending on what lies in it."""
        torch.cuda.reset_peak_memory_stats(DEVICE)
        before = torch.cuda.memory_stats(DEVICE)["requested_bytes.all.current"]
        masks = call()
        outputs = sum(m.numel() for m in masks)
        allocated = torch.cuda.memory_stats(DEVICE)["requested_bytes.all.peak"] - before
        assert outputs <= allocated
        return allocated - outputs

    return measure if ON_CPU else measure_gpu
