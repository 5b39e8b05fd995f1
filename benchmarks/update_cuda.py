"""`bench update --device cuda`: masked SGD and AdamW against torch's, with and without mask multiply, and a copy.

As on the CPU everything is timed through `step()`, and gradients are shared; but ours without skipped sectors, which
no optimizer offers, is the public op of one step.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from acdc_kernels.ops import masked_adamw_, masked_sgd_
from acdc_kernels.ops.masked_sgd.contract import masked_sgd_op

from . import cases, cuda_timing, update
from .cases import Case
from .cuda_timing import Ceiling, Gpu, gb_per_s, rounded
from .harness import Budget, Row, let_go

OP = masked_sgd_op
SECTOR = 32  # bytes, the least that moves: eight float32 weights, and one byte of their mask
NOT_SKIPPED = "ours, sectors not skipped"
NOT_CAPTURED = {"torch AdamW foreach": "torch captures it only with capturable=True, which adds work"}

Call = Callable[[], object]


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


def without_skipping(weights: Sequence[Tensor], grads: list[Tensor], bits: list[Tensor], optimizer: str) -> Call:
    """A step by the public op, to which nobody vouches for the zeros: every sector is read and written."""
    params = [w.clone() for w in weights]
    first, second = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    hyper = update.HYPER[optimizer]
    if optimizer == "SGD":
        return lambda: masked_sgd_(params, grads, first, bits, **hyper)
    steps = [torch.zeros((), device=w.device) for w in weights]
    return lambda: masked_adamw_(params, grads, first, second, [], steps, bits, **hyper)


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
    if bits:
        calls[NOT_SKIPPED] = without_skipping(weights, grads, bits, optimizer)
    calls[update.OURS_AGAIN] = calls["ours"]
    not_captured = {name: why for name, why in NOT_CAPTURED.items() if name in calls}
    if backend == "reference":
        stands_in = "the plain torch reference stands in for the kernel"
        not_captured |= dict.fromkeys({"ours", NOT_SKIPPED, update.OURS_AGAIN} & calls.keys(), stands_in)
    facts = {
        "op": "update", "case": step.name, "pattern": "unstructured", "sparsity": case.sparsity, "dtype": "float32",
        "threads": 1, "device": "cuda", "backend": backend, "weights": case.model.numel,
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*capturable=True")  # torch's, of an eager step
        group = cuda_timing.compare(gpu, limit, calls, not_captured, budget, moved_bytes=moved, facts=facts)
    for row in group:
        row["full_bytes"] = full
        row["ours_full_gb_per_s"] = rounded(
            gb_per_s(full, row["ours_device_ms"] or row["ours_graph_ms"] or row["ours_ms"])
        )
    yield group
