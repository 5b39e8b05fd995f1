"""`bench topk --device cuda`: exact top-k masks by magnitude against torch's ways, and against a copy's bandwidth."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from acdc_kernels import _native, topk_mask
from acdc_kernels.ops.topk_mask import contract

from . import cases, cuda_timing, topk, topk_peers
from .cases import Case
from .cuda_timing import Ceiling, Gpu
from .harness import Budget, Row, let_go

OP = contract.topk_mask_op
RESNET50 = cases.RESNET50
QUICK = (Case(RESNET50, 0.90), Case(cases.BILLION, 0.90))
CASES = (
    QUICK[0],
    Case(RESNET50, 0.95),
    Case(RESNET50, 0.98),
    Case(RESNET50, 0.90, "layer"),
    Case(RESNET50, 0.90, dtype=torch.bfloat16),
    QUICK[1],
    *(topk.pattern_case(RESNET50, pattern) for pattern in topk.PATTERNS),
)
# kthvalue reads with one block alone, sort needs 24 bytes a weight: tens of GB from here on.
SLOW_FROM = 1 << 28
SLOW = ("torch cat+kthvalue+masks", "torch cat+sort+masks")
NOT_ASKED = "not captured: peers are compared by the device's time"


def _flat(weights: Sequence[Tensor]) -> Tensor:
    return torch.cat([w.flatten() for w in weights]).abs_()


def _at_least(weights: Sequence[Tensor], threshold: Tensor) -> list[Tensor]:
    return [w.abs() >= threshold for w in weights]


def torch_topk_masks(weights: Sequence[Tensor], keep: int) -> list[Tensor]:
    return _at_least(weights, torch.topk(_flat(weights), keep, sorted=False).values.min())


def torch_sort_masks(weights: Sequence[Tensor], keep: int) -> list[Tensor]:
    return _at_least(weights, _flat(weights).sort(descending=True).values[keep - 1])


PEERS: dict[str, topk.Peer] = {
    "torch cat+topk": topk.torch_topk,
    "torch cat+topk+masks": torch_topk_masks,
    "torch cat+kthvalue+masks": topk.torch_kthvalue_masks,
    "torch cat+sort+masks": torch_sort_masks,
}


def peers(case: Case, weights: list[Tensor]) -> dict[str, Callable[[], object]]:
    """Name -> call, less those that a case of this size has no time for."""
    keep = case.keep()
    if case.pattern != "unstructured":
        return topk_peers.peers(case.pattern, weights, keep)  # a pattern with a budget has scope "global"
    slow = SLOW if case.model.numel >= SLOW_FROM else ()
    return topk.by_scope({name: peer for name, peer in PEERS.items() if name not in slow}, weights, keep)


def read_bytes(weights: Sequence[Tensor]) -> int:
    """What has to move: one read of the weights, one write of the bits."""
    return sum(w.numel() * w.element_size() + (w.numel() + 7) // 8 for w in weights)


def check(case: Case, weights: list[Tensor]) -> None:
    """A wrong answer has no speed: the bits are those of the CPU's kernel, or, without one, what `topk.check` asks."""
    if not _native.available():
        topk.check(case, weights)
        return
    got = topk_mask(weights, case.keep(), case.pattern)
    want, _ = OP([w.cpu() for w in weights], budgets(case), case.pattern)
    if not all(torch.equal(g.cpu(), w) for g, w in zip(got, want, strict=True)):
        raise RuntimeError(f"bench topk: {case.name} must have the CPU's {case.pattern} masks, got others")


def budgets(case: Case) -> list[int]:
    """`keep` as the op takes it."""
    keep = case.keep()
    return [] if keep is None else [keep] if isinstance(keep, int) else keep


def _extra_memory(gpu: Gpu, name: str, peer: Callable[[], object], weights: list[Tensor]) -> tuple[int, float] | None:
    """None, once it is said, where the device has less than the peer needs."""
    try:
        return cuda_timing.extra_memory(gpu, peer, weights)
    except torch.OutOfMemoryError as error:
        print(f"bench topk: {name} is left out: {error}", file=sys.stderr)
        return None


def measure(case: Case, gpu: Gpu, limit: Ceiling, budget: Budget, backend: str) -> Iterator[list[Row]]:
    """The rows of one case, all in one list."""
    let_go()
    weights = case.model.weights(case.dtype, gpu.device)
    keep = case.keep()
    calls = {"ours": lambda: topk_mask(weights, keep, case.pattern), **peers(case, weights)}
    extra = {"ours": cuda_timing.extra_memory(gpu, calls["ours"], weights)}  # the first call: with what it keeps
    check(case, weights)
    for name in list(calls)[1:]:
        if (needs := _extra_memory(gpu, name, calls[name], weights)) is None:
            del calls[name]
        else:
            extra[name] = needs
    not_captured = {name: NOT_ASKED for name in calls if name != "ours"}
    if backend == "reference":
        not_captured["ours"] = not_captured[topk.OURS_AGAIN] = "the plain torch reference waits for the device"
    calls[topk.OURS_AGAIN] = calls["ours"]
    facts = {
        "op": "topk", "case": case.name, "pattern": case.pattern, "sparsity": case.sparsity,
        "dtype": str(case.dtype).removeprefix("torch."), "threads": 1, "device": "cuda", "backend": backend,
        "weights": case.model.numel,
    }  # fmt: skip
    group = cuda_timing.compare(gpu, limit, calls, not_captured, budget, moved_bytes=read_bytes(weights), facts=facts)
    for row in group:
        for who, name in (("ours", "ours"), ("peer", row["peer"])):
            if name in extra:
                row[f"{who}_extra_bytes"], row[f"{who}_extra_percent"] = extra[name]
    yield group
