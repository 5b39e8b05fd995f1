"""What flips and steps do beside the products: topologies built from masks, values gathered, gradients scattered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import acdc_kernels as acdc
from acdc_kernels import topk_mask, unpack_mask

from . import layers
from .harness import Budget, Row, interleave, rows, thread_counts
from .linear_peers import csr

SPARSITY = 0.9


@dataclass(frozen=True)
class Build:
    """Square weights at 90%: six of them, 2048 wide, are 25.2 million weights."""

    count: int = 6
    width: int = 2048
    patterns: tuple[str, ...] = ("unstructured", "block:4x1")

    @property
    def weights(self) -> int:
        return self.count * self.width**2

    def measure(self, threads: Sequence[int], budget: Budget, backend: str) -> Iterator[list[Row]]:
        """Rows of the parts, for each pattern and thread count; `torch.set_num_threads` is left changed."""
        weights = [layers.linear(self.width, self.width, seed=seed).weight.detach() for seed in range(self.count)]
        for pattern in self.patterns:
            yield from self._of(pattern, weights, threads, budget, backend)

    def _of(
        self, pattern: str, weights: list[Tensor], threads: Sequence[int], budget: Budget, backend: str
    ) -> Iterator[list[Row]]:
        parts = contenders(weights, pattern)
        for count in thread_counts(threads):
            for part, calls in parts.items():
                facts = {
                    "op": "linear", "case": f"{part}, {self.weights / 1e6:.1f}M weights", "pattern": pattern,
                    "sparsity": SPARSITY, "dtype": "float32", "threads": count, "device": "cpu", "backend": backend,
                }  # fmt: skip
                yield rows(interleave(calls, budget), facts=facts)


def contenders(weights: list[Tensor], pattern: str) -> dict[str, dict[str, Callable[[], object]]]:
    """Part -> name -> call. `compress` is a topology from mask bits and the first gathering."""
    bits = topk_mask(weights, [w.numel() // 10 - w.numel() // 10 % 4 for w in weights], pattern)
    masks = [unpack_mask(b, w.shape) for b, w in zip(bits, weights, strict=True)]
    masked = [w * mask for w, mask in zip(weights, masks, strict=True)]
    made = [acdc.compress(w, b, pattern) for w, b in zip(weights, bits, strict=True)]
    gather = torch.ops.acdc_kernels.gather_values

    def gathered() -> list[Tensor]:
        return [gather(w, list(t.index), t.meta, t.format) for w, (_, t) in zip(weights, made, strict=True)]

    for got, want in zip([acdc.decompress(*each) for each in made], masked, strict=True):
        if not torch.equal(got, want):
            raise RuntimeError(f"bench linear: decompress must give back the kept weights of {pattern}, got others")
    return {
        "compress": {
            "ours": lambda: [acdc.compress(w, b, pattern) for w, b in zip(weights, bits, strict=True)],
            "torch to_sparse_csr": lambda: [csr(w) for w in masked],
            "torch nonzero of the mask": lambda: [mask.nonzero() for mask in masks],
        },
        "gather": {
            "ours": gathered,
            "torch masked_select": lambda: [w[mask] for w, mask in zip(weights, masks, strict=True)],
        },
        "scatter": {
            "ours": lambda: [acdc.decompress(*each) for each in made],
            "torch masked_scatter": lambda: [
                torch.zeros_like(w).masked_scatter_(mask, values)
                for w, mask, (values, _) in zip(weights, masks, made, strict=True)
            ],
        },
    }
