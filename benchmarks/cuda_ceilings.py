"""What bounds products on a CUDA device, beside the copy of `cuda_timing.ceiling`, by the same timing in the same run.

`l2_read_gb_per_s`: all multiprocessors read a quarter of the L2 cache's size over and over, past their L1 caches: what
comes of L2 where everything hits. `cublas_bf16_tflop_per_s`: torch's product of square matrices of normal numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import cuda_timing
from .cuda_timing import Gpu, gb_per_s, rounded
from .harness import Budget, interleave

SQUARE = 4096
TIMES = 64  # that the set is read: the first time it comes from memory


def ceilings(gpu: Gpu, budget: Budget) -> dict[str, Any]:
    """For the device's stamp; where L2 can't be read, `no_l2_read` says why."""
    left, right = (torch.randn(SQUARE, SQUARE, device=gpu.device).bfloat16() for _ in range(2))
    product = torch.empty_like(left)
    calls = {"product": gpu.capture(lambda: torch.mm(left, right, out=product))}
    found: dict[str, Any] = {"l2_read_gb_per_s": None}
    try:
        read, size = l2_reader(gpu)
        calls["read"] = gpu.capture(read)
    except Exception as error:  # of Triton, too
        found["no_l2_read"] = str(error).partition("\n")[0]
    timings = interleave(calls, budget, sample_seconds=cuda_timing.SAMPLE_SECONDS, timed=cuda_timing.Timer(gpu))
    if "read" in calls:
        found |= {"l2_read_gb_per_s": rounded(gb_per_s(size * TIMES, timings["read"].ms)), "l2_read_bytes": size}
    return found | {"cublas_bf16_tflop_per_s": rounded(tflop_per_s(2 * SQUARE**3, timings["product"].ms))}


def l2_reader(gpu: Gpu) -> tuple[Callable[[], None], int]:
    """A call that reads the set `TIMES` over, and the set's bytes. Raises ImportError without Triton."""
    from . import l2_read

    chunks = max(1, gpu.l2_bytes // 4 // (4 * l2_read.CHUNK))
    source = torch.ones(chunks * l2_read.CHUNK, device=gpu.device)
    sums = torch.zeros(gpu.machine()[0] * l2_read.PROGRAMS, device=gpu.device)
    return lambda: l2_read.read(source, sums, TIMES), 4 * source.numel()


def tflop_per_s(flops: float, ms: float) -> float:
    return flops / ms / 1e9


def line(stamp: dict[str, Any]) -> str:
    """The ceilings of a stamp, in words."""
    read = stamp.get("l2_read_gb_per_s")
    l2 = f"reads from L2 {read:.4g} GB/s" if read else f"reads from L2 not measured: {stamp.get('no_l2_read')}"
    return f"{l2}; cuBLAS, {SQUARE} cubed in bfloat16, {stamp['cublas_bf16_tflop_per_s']:.4g} TFLOP/s"
