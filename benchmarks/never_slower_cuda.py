"""The planned layer against the dense one on a GPU: shapes, batches, blocks and sparsities, bfloat16.

As `never_slower` has it: forward and backward of a layer with bias through autograd, as the Sparsifier planned it,
against torch's layer entered twice. Judged by the device's time, and by the host's beside it, where the device is idle
when a layer begins and our products enqueue more than torch's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from . import cuda_timing, layers, never_slower
from .cuda_timing import Ceiling, Gpu, rounded
from .harness import Budget, Row, let_go
from .linear_cuda_peers import AGAIN, DENSE

SPARSITIES = (0.5, 0.8, 0.9, 0.95)
PATTERNS = ("block:128x128", "block:64x64", "block:32x32")
SHAPES = ((4096, 4096, 8192), (4096, 4096, 2048), (11008, 4096, 2048), (1024, 1024, 4096), (2048, 2048, 512))
LEAST_MS = 0.05  # of the device; a few microseconds of it are the events'
REFERENCE = "the plain torch reference may stand in for kernels"


@dataclass(frozen=True)
class Grid:
    """One shape, batch and pattern."""

    rows: int
    cols: int
    samples: int
    pattern: str
    sparsities: tuple[float, ...] = SPARSITIES
    dtype: torch.dtype = torch.bfloat16

    def measure(self, gpu: Gpu, limit: Ceiling, budget: Budget, backend: str) -> Iterator[list[Row]]:
        """The rows, a list for each sparsity."""
        x, grad = (
            torch.randn(self.samples, width, device=gpu.device).to(self.dtype) for width in (self.cols, self.rows)
        )
        for sparsity in self.sparsities:
            let_go()
            plain, layer = layers.training(self._layer(gpu), x, grad), self._layer(gpu)
            sparsifier = layers.compressed(layer, x.clone().requires_grad_(), sparsity, self.pattern)
            plan = {
                row.product: f"dense ({row.reason})" if row.kernel == "dense" else row.kernel
                for row in sparsifier.plan()
            }
            calls = {"ours": layers.training(layer, x, grad, sparsifier), DENSE: plain, AGAIN: plain}
            facts = {
                "op": "linear", "pattern": self.pattern, "sparsity": sparsity, "threads": 1, "device": "cuda",
                "case": f"{never_slower.MARK} {self.cols}->{self.rows}, {self.samples} samples, {self.pattern}",
                "dtype": str(self.dtype).removeprefix("torch."), "backend": backend, "plan": plan,
                "planning_s": rounded(sparsifier.planning_seconds),
                "compiling_s": rounded(sparsifier.compiling_seconds),
            }  # fmt: skip
            not_captured = dict.fromkeys(calls, REFERENCE) if backend == "reference" else {}
            moved = 3 * self.dtype.itemsize * (x.numel() + grad.numel() + layer.weight.numel())
            yield cuda_timing.compare(gpu, limit, calls, not_captured, budget, moved_bytes=moved, facts=facts)

    def _layer(self, gpu: Gpu) -> torch.nn.Linear:
        with torch.device(gpu.device):
            return layers.linear(self.rows, self.cols, bias=True).to(self.dtype)


GRID = tuple(Grid(*shape, pattern) for shape in SHAPES for pattern in PATTERNS)
QUICK = Grid(4096, 4096, 8192, PATTERNS[0], (0.5, 0.9))


def verdict(all_rows: Sequence[Row]) -> list[str]:
    """By the device's time, then by the eager one."""
    lines = []
    for basis, by in (("device_", "the device's time"), ("", "the eager time")):
        found = never_slower.verdict(all_rows, (DENSE, AGAIN), basis, LEAST_MS)
        lines += [f"by {by}, {found[0]}", *found[1:]] if found else []
    return lines
