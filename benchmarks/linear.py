"""`bench linear`: sparse linear layers against torch's dense ones in float32 and bfloat16, torch CSR and sparseprop.

Forward is `sparse_linear` with values at hand, as in inference. Forward + backward is a layer wrapped by a Sparsifier
(kernels="sparse", dense storage), through autograd, against torch's layer: values are gathered from the dense weight in
every call, and the weight's gradient is a dense tensor. Forward + backward of values is `sparse_linear` whose values
are a parameter themselves: the products alone, against torch's layer. x and y are row-major on both sides, without
bias; bfloat16 has its inputs, weights and outputs in bfloat16. All contenders of one shape take turns in the same
rounds.

Beside the products: building, gathering and scattering (`topology`), and the planned layer against the dense one over
shapes, batches and sparsities (`never_slower`).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import acdc_kernels as acdc
from acdc_kernels import unpack_mask
from acdc_kernels.nn.sparse_linear import LinearProduct

from . import layers, linear_peers, never_slower, topology
from .harness import Budget, Row, Timing, interleave, rows, thread_counts
from .linear_peers import CSR, SPARSEPROP

SHAPES = ((1024, 1024), (2048, 2048), (1024, 4096))  # rows (outputs), cols (inputs)
SAMPLES = (128, 512, 2048)
SPARSITIES = (0.80, 0.90, 0.95, 0.98)
PATTERNS = ("unstructured", "block:4x1")
WITH_SPARSE_PEERS = (0.90, 0.95)  # theirs takes longer than all the rest
CHECKED = 64  # samples
DENSE, BF16 = "torch dense float32", "torch dense bfloat16"
VALUES = "ours, values at hand"
FP16 = "ours in float16 (AVX512-FP16)"
DENSE_AGAIN = "torch dense float32 again (noise)"

Key = Hashable
Contenders = dict[Key, Callable[[], object]]


@dataclass(frozen=True)
class Products:
    """One shape and batch: every sparsity and pattern of it is timed in the same rounds as dense."""

    rows: int
    cols: int
    samples: int
    training: bool
    sparsities: tuple[float, ...] = SPARSITIES
    patterns: tuple[str, ...] = PATTERNS

    @property
    def name(self) -> str:
        return f"{self.cols}->{self.rows}, {self.samples} samples, {self.what}"

    @property
    def what(self) -> str:
        return "forward + backward" if self.training else "forward"

    def measure(self, threads: Sequence[int], budget: Budget, backend: str) -> Iterator[list[Row]]:
        """The rows, a list for each thread count, pattern and sparsity; `torch.set_num_threads` is left changed."""
        x, grad = layers.inputs(self.samples, self.cols), layers.inputs(self.samples, self.rows, seed=2)
        for count in thread_counts(threads):
            timings = interleave(self.contenders(x, grad), budget)
            for pattern in self.patterns:
                for sparsity in self.sparsities:
                    facts = self._facts(pattern, sparsity, count, backend)
                    yield rows(self._of(timings, "ours", pattern, sparsity), facts=facts)
                    if self.training:
                        what = f"{self.what} of values"
                        facts |= {"what": what, "case": facts["case"].replace(self.what, what)}
                        yield rows(self._of(timings, VALUES, pattern, sparsity), facts=facts)

    def contenders(self, x: Tensor, grad: Tensor) -> Contenders:
        """Name -> call: a string for what sparsity and pattern are nothing to, else (name, pattern, sparsity)."""
        calls: Contenders = {}
        for name in (DENSE, DENSE_AGAIN):
            layer = layers.linear(self.rows, self.cols)
            calls[name] = layers.training(layer, x, grad) if self.training else lambda layer=layer: layer(x)
        x16, layer16 = x.bfloat16(), layers.linear(self.rows, self.cols).bfloat16()
        calls[BF16] = layers.training(layer16, x16, grad.bfloat16()) if self.training else lambda: layer16(x16)
        for pattern in self.patterns:
            for sparsity in self.sparsities:
                made, weight = self._ours(pattern, sparsity, x, grad)
                calls |= {(name, pattern, sparsity): call for name, call in made.items()}
                if pattern != "unstructured" or sparsity not in WITH_SPARSE_PEERS:
                    continue
                peers = {CSR: (linear_peers.csr_forward, linear_peers.csr_training)}
                if linear_peers.sparseprop_layer()[0] is not None:
                    peers[SPARSEPROP] = (linear_peers.sparseprop_forward, linear_peers.sparseprop_training)
                for name, (forward, training) in peers.items():
                    peer = training(weight, x, grad) if self.training else forward(weight, x)
                    calls[name, pattern, sparsity] = peer
        if self.training:
            return calls
        return {key: _without_grad(call) for key, call in calls.items()}

    def _ours(
        self, pattern: str, sparsity: float, x: Tensor, grad: Tensor
    ) -> tuple[dict[str, Callable[[], Tensor]], Tensor]:
        """(name -> call, dense weight with its zeros), after checking the results against the dense product."""
        layer = layers.linear(self.rows, self.cols)
        if self.training:
            sparsifier = layers.compressed(layer, x[:CHECKED], sparsity, pattern, kernels="sparse")
            mask = unpack_mask(sparsifier.masks["weight"], layer.weight.shape)
            weight = layer.weight.detach()
            few, of_few = x[:CHECKED], grad[:CHECKED]
            check(f"bench linear: {self.name}", layers.training(layer, few, of_few)(), few @ weight.t())
            check(f"bench linear: {self.name}, weight gradient", layer.weight.grad, (of_few.t() @ few).mul_(mask))
            ours = layers.training(layer, x, grad, sparsifier)
            values, topology = acdc.compress(weight, sparsifier.masks["weight"], pattern)
            return {"ours": ours, VALUES: _training_of_values(values, topology, x, grad)}, weight
        keep = layer.weight.numel() - round(sparsity * layer.weight.numel())
        (bits,) = acdc.topk_mask([layer.weight], keep - keep % 4, pattern)
        weight = layer.weight.detach() * unpack_mask(bits, layer.weight.shape)
        values, topology = acdc.compress(weight, bits, pattern)

        def call() -> Tensor:
            return acdc.sparse_linear(x, values, topology)

        few = x[:CHECKED]
        check(f"bench linear: {self.name}", acdc.sparse_linear(few, values, topology), few @ weight.t())
        if LinearProduct.missing(fp16=True):
            return {"ours": call}, weight
        op, where = torch.ops.acdc_kernels.sparse_linear, (list(topology.index), topology.meta, topology.format)
        return {"ours": call, FP16: lambda: op(x, values, *where, None, False, True)[0]}, weight

    def _of(self, timings: Mapping[Key, Timing], ours: str, pattern: str, sparsity: float) -> dict[str, Timing]:
        mine = {"ours": timings[ours, pattern, sparsity]}
        mine |= {name: timings[name] for name in (DENSE, BF16)}
        own = ((name, timings.get((name, pattern, sparsity))) for name in (CSR, SPARSEPROP, FP16))
        return mine | {name: timing for name, timing in own if timing} | {DENSE_AGAIN: timings[DENSE_AGAIN]}

    def _facts(self, pattern: str, sparsity: float, threads: int, backend: str) -> dict[str, Any]:
        return {
            "op": "linear", "case": self.name, "pattern": pattern, "sparsity": sparsity, "dtype": "float32",
            "threads": threads, "device": "cpu", "backend": backend, "what": self.what, "samples": self.samples,
        }  # fmt: skip


Case = Products | topology.Build | never_slower.Grid

CASES: tuple[Case, ...] = (
    *(
        Products(rows, cols, samples, training)
        for training in (False, True)
        for rows, cols in SHAPES
        for samples in SAMPLES
    ),
    topology.Build(),
    *never_slower.GRID,
)
QUICK: tuple[Case, ...] = (
    Products(1024, 1024, 512, training=False, sparsities=(0.9,)),
    Products(1024, 1024, 512, training=True, sparsities=(0.9,), patterns=("unstructured",)),
    topology.Build(count=1),
    never_slower.Grid(1024, 1024, 128, sparsities=(0.5, 0.9)),
)


def check(what: str, got: Tensor, want: Tensor) -> None:
    """A wrong answer has no speed."""
    if not torch.allclose(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max())):
        raise RuntimeError(
            f"{what} must be the dense product with the kept weights, got {float((got - want).abs().max())} off"
        )


def _training_of_values(values: Tensor, topology: acdc.Topology, x: Tensor, grad: Tensor) -> Callable[[], Tensor]:
    x, values = x.detach().requires_grad_(), values.detach().requires_grad_()

    def call() -> Tensor:
        x.grad = values.grad = None
        y = acdc.sparse_linear(x, values, topology)
        y.backward(grad)
        return y

    return call


def _without_grad(call: Callable[[], object]) -> Callable[[], object]:
    return torch.no_grad()(call)


def measure(case: Case, threads: Sequence[int], budget: Budget, backend: str, with_memory: bool) -> Iterator[list[Row]]:
    """The rows of one case, in groups; `torch.set_num_threads` is left changed."""
    del with_memory  # not measured here
    with layers.fresh_plans():
        yield from case.measure(threads, budget, backend)


def summary(all_rows: Sequence[Row]) -> str:
    """Speedup over dense float32 by direction, batch, pattern, sparsity and threads: least, geometric mean, most."""
    groups: dict[tuple[Any, ...], list[float]] = {}
    for row in all_rows:
        if row["peer"] == DENSE and "what" in row:
            batch = "N <= 512" if row["samples"] <= 512 else f"N = {row['samples']}"
            key = (row["what"], row["pattern"], batch, row["threads"], f"{row['sparsity']:.0%}")
            groups.setdefault(key, []).append(row["speedup"])
    lines = ["over torch dense float32: least, geometric mean, most"]
    for (what, pattern, batch, threads, sparsity), speedups in sorted(groups.items()):
        mean = statistics.geometric_mean(speedups)
        where = f"{what}, {pattern}, {batch}, {threads} thread{'s' if threads > 1 else ''}, {sparsity}"
        lines.append(f"  {where:<62}{min(speedups):>7.2f}x{mean:>7.2f}x{max(speedups):>7.2f}x")
    if not linear_peers.sparseprop_layer()[0]:
        lines.append(f"without sparseprop: {linear_peers.sparseprop_layer()[1]}")
    return "\n".join([*lines, *never_slower.verdict(all_rows)])
