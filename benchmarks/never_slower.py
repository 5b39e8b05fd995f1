"""The planned layer against the dense one, from 0 to 99% sparsity: where the plan errs, it shows here.

Forward and backward of a whole layer with bias, through autograd, as the Sparsifier planned it (kernels="auto", nothing
from a cache); against torch's layer, which is there twice: the ratio of these two is the noise of the run.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from . import layers
from .harness import Budget, Row, Timing, interleave, rows, thread_counts

SPARSITIES = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
SHAPES = {  # (rows, cols): samples
    (512, 512): (128, 512),
    (1000, 784): (128,),
    (1024, 1024): (32, 128, 512),
    (2048, 2048): (32, 128),
    (1024, 4096): (32, 128),
}
LEAST_MS = 0.3  # below it a layer is mostly overhead of the interpreter
LEAST_POINTS = 10  # fewer have no 95th percentile
ALLOWED = 1.03
DENSE, AGAIN = "torch dense float32", "torch dense float32 again (noise)"
MARK = "planned layer"


@dataclass(frozen=True)
class Grid:
    """One shape and batch, all of its sparsities in the same rounds."""

    rows: int
    cols: int
    samples: int
    sparsities: tuple[float, ...] = SPARSITIES

    def measure(self, threads: Sequence[int], budget: Budget, backend: str) -> Iterator[list[Row]]:
        """The rows, a list for each thread count and sparsity; `torch.set_num_threads` is left changed."""
        x, grad = layers.inputs(self.samples, self.cols), layers.inputs(self.samples, self.rows, seed=2)
        for count in thread_counts(threads):
            timings, plans = self._timed(x, grad, budget)
            for sparsity in self.sparsities:
                facts = {
                    "op": "linear", "case": f"{MARK} {self.cols}->{self.rows}, {self.samples} samples",
                    "pattern": "unstructured", "sparsity": sparsity, "dtype": "float32", "threads": count,
                    "device": "cpu", "backend": backend, "plan": plans[sparsity],
                }  # fmt: skip
                yield rows({"ours": timings[sparsity], **{name: timings[name] for name in (DENSE, AGAIN)}}, facts=facts)

    def _timed(
        self, x: Tensor, grad: Tensor, budget: Budget
    ) -> tuple[dict[Hashable, Timing], dict[float, dict[str, str]]]:
        """Name or sparsity -> timing, and sparsity -> product -> kernel; the layers are gone then."""
        calls: dict[Hashable, Callable[[], object]] = {}
        plans = {}
        for name in (DENSE, AGAIN):
            calls[name] = layers.training(layers.linear(self.rows, self.cols, bias=True), x, grad)
        for sparsity in self.sparsities:
            layer = layers.linear(self.rows, self.cols, bias=True)
            sparsifier = layers.compressed(layer, x.clone().requires_grad_(), sparsity)
            plans[sparsity] = {
                row.product: f"dense ({row.reason})" if row.kernel == "dense" else row.kernel
                for row in sparsifier.plan()
            }
            calls[sparsity] = layers.training(layer, x, grad, sparsifier)
        return interleave(calls, budget), plans


GRID = tuple(Grid(*shape, n) for shape, samples in SHAPES.items() for n in samples)


def verdict(
    all_rows: Sequence[Row], names: tuple[str, str] = (DENSE, AGAIN), basis: str = "", least_ms: float = LEAST_MS
) -> list[str]:
    """Lines on the points of at least 0.3 ms of dense time: their number, the worst, those beyond 1.03x and noise.

    names: of the two dense layers. basis: "device_" for rows of a GPU by the device's time.
    """
    ours_ms, peer_ms = f"ours_{basis}ms", f"peer_{basis}ms"
    points: dict[tuple[str, int, float], dict[str, Row]] = {}
    for row in all_rows:
        if "plan" in row and row[ours_ms] and row[peer_ms]:
            points.setdefault((row["case"], row["threads"], row["sparsity"]), {})[row["peer"]] = row
    slow, noise, ratios = [], [], []
    for (case, threads, sparsity), peers in points.items():
        if not all(name in peers for name in names):
            continue
        first, dense, again = peers[names[0]], *(peers[name][peer_ms] for name in names)
        if dense < least_ms:
            continue
        noise.append(abs(again / dense - 1))
        ratios.append(first[ours_ms] / dense)
        plan = ", ".join(f"{product} {kernel}" for product, kernel in first["plan"].items())
        slow.append((ratios[-1], f"  {ratios[-1]:.3f}x dense: {case}, {sparsity:.0%}, threads: {threads}; {plan}"))
    if not ratios:
        return []
    few = len(noise) < LEAST_POINTS
    spread = max(noise) if few else sorted(noise)[int(0.95 * (len(noise) - 1))]
    beyond = [line for ratio, line in sorted(slow, reverse=True) if ratio > ALLOWED + spread]
    return [
        f"never slower: {len(ratios)} points of at least {least_ms} ms, worst {max(ratios):.3f}x dense; two dense "
        f"layers differ by up to {max(noise):.1%}" + ("" if few else f" (95th percentile {spread:.1%})"),
        f"  {len(beyond)} points above {ALLOWED} and that {'difference' if few else 'percentile'}",
        *beyond,
        "  speedup of the planned layer, geometric mean: " + ", ".join(_means(points, names[0], ours_ms, peer_ms)),
    ]


def _means(
    points: Mapping[tuple[str, int, float], Mapping[str, Row]], dense: str, ours_ms: str, peer_ms: str
) -> list[str]:
    """By sparsity, over all points."""
    found: dict[float, list[float]] = {}
    for (_, _, sparsity), peers in points.items():
        if dense in peers:
            found.setdefault(sparsity, []).append(peers[dense][peer_ms] / peers[dense][ours_ms])
    return [f"{statistics.geometric_mean(found[each]):.2f}x at {each:.0%}" for each in sorted(found)]
