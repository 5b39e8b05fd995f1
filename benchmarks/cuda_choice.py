"""Contenders that may not run on a given device, or may give wrong answers; and the fastest of several ways."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from acdc_kernels.train.machine import cores

from . import cuda_timing
from .cuda_device import Call
from .cuda_timing import Gpu, NotQueued
from .harness import Budget, Timing, interleave

BUDGET = Budget(clean=9, rounds=12, seconds=3.0, fewest_rounds=3)
AT_ONCE = 8  # kernels that are compiled, at most
# of a whole result, against float64: one rounding of the result and those on the way
TOLERANCE = {"bfloat16": 1e-2, "float16": 2e-3, "tf32": 2e-3, "float32": 1e-4, "float64": 1e-10}

Check = Callable[[object], str]  # of a result: what is wrong with it, or nothing


def compiled(calls: Mapping[str, Call]) -> None:
    """Makes every call once, several at a time: what they run is compiled then. Whoever fails will fail again."""
    first, *others = calls.values() or [lambda: None]
    with ThreadPoolExecutor(min(AT_ONCE, cores())) as pool:
        for each in ([first], others):  # the first finds what all of them have in common not there yet
            for future in [pool.submit(call) for call in each]:
                future.exception()


def tried(what: str, calls: Mapping[str, Call], check: Check) -> tuple[dict[str, Call], dict[str, str]]:
    """(the calls that give right answers, those that don't or raise: name -> why), which stderr is told."""
    good, left_out = dict[str, Call](), dict[str, str]()
    for name, call in calls.items():
        try:
            wrong = check(call())
        except Exception as error:  # of whatever library it calls
            wrong = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        if wrong:
            left_out[name] = wrong
            print(f"bench: {what}: {name} is left out: {wrong}", file=sys.stderr)
        else:
            good[name] = call
    return good, left_out


def fastest(gpu: Gpu, calls: Mapping[str, Call]) -> tuple[str, dict[str, float]]:
    """The name of the fastest, and name -> ms: by the device's time, or the host's too if one can't be queued."""
    if len(calls) == 1:
        return next(iter(calls)), {}
    timer = cuda_timing.Timer(gpu)
    try:
        timings = _timed(timer, {name: timer.queued(call) for name, call in calls.items()})
    except NotQueued:
        timings = _timed(timer, calls)
    times = {name: cuda_timing.rounded(timing.ms) for name, timing in timings.items()}
    return min(times, key=times.__getitem__), times


def _timed(timer: cuda_timing.Timer, calls: Mapping[str, Call]) -> dict[str, Timing]:
    return interleave(calls, BUDGET, sample_seconds=cuda_timing.SAMPLE_SECONDS, timed=timer)


def poison(gpu: Gpu, *likes: Tensor) -> None:
    """Fills memory as an allocator will hand it out next with NaN, so that what a kernel doesn't write shows."""
    _ = [torch.full_like(like, torch.nan, device=gpu.device) for like in likes]


def wrong(got: Tensor, want: Tensor, arithmetic: str) -> str:
    """By how much too far `got` is from `want`, which is float64, in norms; or nothing."""
    error = float((got.double() - want).norm() / want.norm().clamp_min(torch.finfo(torch.float64).tiny))
    allowed = TOLERANCE[arithmetic]
    return "" if error <= allowed else f"a wrong answer, {error:.3g} from the dense product's in norm, not {allowed:g}"
