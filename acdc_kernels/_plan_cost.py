"""What the plan expects of kernels before it times them: rough, it has to tell what is worth timing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch

from . import _native
from .nn.product import Work

__all__ = ["CostModel", "GpuCostModel"]


@dataclass(frozen=True)
class CostModel:
    """Seconds that a kernel takes on a CPU: a call, and its arithmetic and traffic at the rates of one thread each.

    Dense arithmetic and traffic overlap, sparse ones add up.
    """

    flops: Mapping[str, float]  # kind of work -> FLOP/s of a thread
    bandwidth: float = 8e9  # bytes/s of a thread
    dense_call: float = 5e-6
    sparse_call: float = 25e-6
    threads: int = 1

    @classmethod
    def here(cls) -> CostModel:
        """Of this machine as it is set up now: torch's instruction set, ours, the number of threads."""
        dense = _DENSE_RATES.get(torch.backends.cpu.get_cpu_capability(), 20e9)
        return cls({"dense": dense, **_SPARSE_RATES.get(_native.cpu_isa(), {})}, threads=torch.get_num_threads())

    def seconds(self, work: Work) -> float:
        compute = work.flops / (self.flops.get(work.kind, 1e9) * self.threads)
        moved = work.moved / (self.bandwidth * self.threads)
        if work.kind.startswith("dense"):
            return self.dense_call + max(compute, moved)
        return self.sparse_call + compute + moved


# FLOP/s of one thread, counting kept weights alone
_DENSE_RATES = {"AVX512": 120e9, "AVX2": 60e9, "DEFAULT": 20e9}
_SPARSE_RATES = {
    "avx512": {"sparse": 70e9, "sparse blocks": 95e9, "sparse fp16": 100e9, "sparse blocks fp16": 130e9},
    "avx2": {"sparse": 30e9, "sparse blocks": 40e9},
    "generic": {"sparse": 4e9, "sparse blocks": 6e9},
}


@dataclass(frozen=True)
class GpuCostModel:
    """Seconds that a kernel takes on a GPU: what limits it of arithmetic, memory, L2 cache, and the host's call.

    What matrix units do with blocks is limited by how fast L2 feeds the multiprocessors: a tile of a by b brings
    ab / (a + b) flop a byte of 16-bit numbers (``Work.cached`` has those bytes). A call is the host's, eager and
    through autograd.
    """

    flops: Mapping[str, float]  # kind of work -> FLOP/s
    bandwidth: float  # bytes/s to and from memory
    cache_bandwidth: float  # bytes/s from L2 to the multiprocessors
    dense_call: float = 10e-6
    sparse_call: float = 40e-6

    @classmethod
    def of(cls, device: torch.device) -> GpuCostModel:
        """Of a GPU as it describes itself."""
        p = torch.cuda.get_device_properties(device)
        # kHz, and both edges of the memory's clock; a GPU that says 0 is taken for a slow one
        clock, memory_clock = 1e3 * (p.clock_rate or 1.2e6), 2e3 * (p.memory_clock_rate or 1e6)
        memory = memory_clock * (p.memory_bus_width or 1024) / 8
        return cls.made_of((p.major, p.minor), p.multi_processor_count, clock, memory)

    @classmethod
    def made_of(cls, capability: tuple[int, int], sms: int, clock: float, memory: float) -> GpuCostModel:
        """clock: Hz, of the multiprocessors; memory: its nominal bytes/s."""
        rates = next(rates for least, rates in _PER_CLOCK if capability >= least)
        flops = {}
        for dtype, rate in zip(("bfloat16", "tf32", "float32"), rates, strict=True):
            flops[f"dense {dtype}"] = _OF_DENSE * rate * sms * clock
            flops[f"blocks {dtype}"] = (_OF_FMA if dtype == "float32" else _OF_SPARSE) * rate * sms * clock
            flops[f"2:4 {dtype}"] = _OF_24 * rate * sms * clock
        for kind in ("dense", "blocks", "2:4"):
            flops[f"{kind} float16"] = flops[f"{kind} bfloat16"]
        return cls(flops, _OF_MEMORY * memory, _FROM_CACHE * sms * clock)

    def seconds(self, work: Work) -> float:
        call = self.dense_call if work.kind.startswith("dense") else self.sparse_call
        compute = work.flops / self.flops.get(work.kind, 1e12)
        return max(call, compute, work.moved / self.bandwidth, work.cached / self.cache_bandwidth)


# Compute capability, and FLOP a clock of a multiprocessor with 16-bit numbers, TF32 and float32, in dense products
_PER_CLOCK = (
    ((12, 0), (1024, 256, 256)),
    ((10, 0), (8192, 4096, 256)),
    ((9, 0), (4096, 2048, 256)),
    ((8, 1), (1024, 256, 256)),
    ((8, 0), (2048, 1024, 128)),
    ((0, 0), (1024, 128, 128)),
)
_OF_DENSE, _OF_SPARSE, _OF_24 = 0.75, 0.65, 1.05  # of these rates: what products reach; flop of masked weights count
_OF_FMA = 0.35  # blocks without matrix units
_OF_MEMORY = 0.85
_FROM_CACHE = 24.0  # bytes a clock of a multiprocessor


gpu_cost_model = cache(GpuCostModel.of)
