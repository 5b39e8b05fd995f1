"""Reading what lies in the L2 cache, over and over, in Triton; imported where a GPU is measured."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

CHUNK = 4096  # elements that a program reads at a time
WARPS = 8
PROGRAMS = 8  # of a multiprocessor: all its threads, four 16-byte loads each


@triton.jit(do_not_specialize=["chunks", "total"])
def _read(source, sums, chunks, total, CHUNK: tl.constexpr):
    here = tl.arange(0, CHUNK)
    found = tl.zeros((CHUNK,), tl.float32)
    for chunk in range(tl.program_id(0), total, tl.num_programs(0)):
        found += tl.load(source + chunk % chunks * CHUNK + here, cache_modifier=".cg")  # past L1
    tl.store(sums + tl.program_id(0), tl.sum(found))


def read(source: Tensor, sums: Tensor, times: int) -> None:
    """Reads `source`, float32 and whole chunks, `times` over, by as many programs as there are `sums`."""
    chunks = source.numel() // CHUNK
    _read[(sums.numel(),)](source, sums, chunks, chunks * times, CHUNK=CHUNK, num_warps=WARPS)
