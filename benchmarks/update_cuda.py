"""`bench update --device cuda`: masked SGD and AdamW against torch's, with and without mask multiply, and a copy.

As on the CPU everything is timed through `step()`, and gradients are shared.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from acdc_kernels.ops.masked_sgd.contract import masked_sgd_op

from . import cases, cuda_timing, update
from .cases import Case
from .cuda_timing import Ceiling, Gpu, gb_per_s, rounded
from .harness import Budget, Row, let_go

OP = masked_sgd_op
SECTOR = 32  # bytes, the least that moves: eight float32 weights, and one byte of their mask
NOT_CAPTURED = {"torch AdamW foreach": "torch captures it only with capturable=True, which adds work"}


@dataclass(frozen=True)
class Step:
    """One model at one sparsity under one optimizer."""

    case: Case
    optimizer: str = "SGD"

    @property
    def name(self) -> str:
        return self.case.name if self.optimizer == "SGD" else f"{self.case.name}/{self.optimizer.lower()}"


QUICK = tuple(Step(Case(cases.RESNET50, sparsity)) for sparsity in (0.90, 0.0))
CASES = (
    *QUICK,
    *(Step(Case(cases.RESNET50, sparsity)) for sparsity in (0.95, 0.98)),
    *(Step(Case(cases.BEYOND_L2, sparsity)) for sparsity in (0.90, 0.0)),
    *(Step(Case(cases.RESNET50, sparsity), "AdamW") for sparsity in (0.90, 0.0)),
)


def full_bytes(weights: Sequence[Tensor], optimizer: str, masked: bool) -> int:
    """Every float32 of every stream, and one mask bit a weight."""
    return sum(4 * w.numel() * update.STREAMS[optimizer] + masked * ((w.numel() + 7) // 8) for w in weights)


def sector_bytes(bits: Sequence[Tensor], optimizer: str) -> int:
    """The mask, and of every stream the sectors in which a weight is kept; the last of a tensor counts as whole."""
    kept = sum(int(b.count_nonzero()) for b in bits)
    return kept * SECTOR * update.STREAMS[optimizer] + sum(b.numel() for b in bits)


def measure(step: Step, gpu: Gpu, limit: Ceiling, budget: Budget, backend: str) -> Iterator[list[Row]]:
    """The rows of one case, all in one list."""
    let_go()
    case, optimizer = step.case, step.optimizer
    weights = case.model.weights(device=gpu.device)
    update.check(case, weights, optimizer)
    grads, bits = update.gradients(weights, seed=1), update.masks(case, weights)
    full = full_bytes(weights, optimizer, masked=bool(bits))
    moved = sector_bytes(bits, optimizer) if bits else full
    options = {"capturable": True} if optimizer == "AdamW" else {}  # changes nothing in torch's fused loop
    calls = update.steps(case, weights, grads, bits, optimizer, **options)
    calls[update.OURS_AGAIN] = calls["ours"]
    not_captured = {name: why for name, why in NOT_CAPTURED.items() if name in calls}
    if backend == "reference":
        not_captured["ours"] = not_captured[update.OURS_AGAIN] = "the plain torch reference stands in for the kernel"
    facts = {
        "op": "update", "case": step.name, "pattern": "unstructured", "sparsity": case.sparsity, "dtype": "float32",
        "threads": 1, "device": "cuda", "backend": backend, "weights": case.model.numel,
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*capturable=True")  # torch's, of an eager step
        group = cuda_timing.compare(gpu, limit, calls, not_captured, budget, moved_bytes=moved, facts=facts)
    for row in group:
        row["full_bytes"] = full
        row["ours_full_gb_per_s"] = rounded(gb_per_s(full, row["ours_graph_ms"] or row["ours_ms"]))
    yield group
