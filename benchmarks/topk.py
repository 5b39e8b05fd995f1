"""`bench topk`: exact top-k masks by magnitude against torch's and numpy's ways, and one read of the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from acdc_kernels import topk_mask, unpack_mask
from acdc_kernels.ops.roofline.contract import roofline_read_op
from acdc_kernels.ops.topk_mask import reference
from acdc_kernels.policy.patterns import parse_pattern

from . import cases, memory, topk_peers
from .cases import Case, Model
from .harness import Budget, Row, interleave, rows, thread_counts

PATTERNS = ("2:4", "1:4", "2:4-transposable", "block:4x1", "block:32x32")


def pattern_case(model: Model, pattern: str) -> Case:
    """The layers of a model that the pattern covers, at the pattern's own sparsity."""
    parsed = parse_pattern(pattern)
    covered = Model(model.name, tuple(shape for shape in model.shapes if parsed.covers(shape) is None))
    return Case(covered, parsed.default_sparsity, pattern=pattern)


CASES = (*cases.TOPK, *(pattern_case(cases.RESNET50, pattern) for pattern in PATTERNS))
QUICK = cases.TOPK_QUICK
ROOFLINE = "read every weight once"
OURS_AGAIN = "ours, entered twice (noise)"

Contenders = dict[str, Callable[[], object]]
Peer = Callable[[Sequence[Tensor], int], object]


def _flat_magnitudes(weights: Sequence[Tensor]) -> Tensor:
    return torch.cat([w.flatten() for w in weights]).abs_()


def torch_topk(weights: Sequence[Tensor], keep: int) -> object:
    """Which weights stay, as values and indices into the concatenation."""
    return torch.topk(_flat_magnitudes(weights), keep, sorted=False)


def torch_kthvalue(weights: Sequence[Tensor], keep: int) -> Tensor:
    """The largest magnitude that goes; no masks yet."""
    flat = _flat_magnitudes(weights)
    return flat.kthvalue(flat.numel() - keep).values


def torch_kthvalue_masks(weights: Sequence[Tensor], keep: int) -> list[Tensor]:
    threshold = torch_kthvalue(weights, keep)
    return [w.abs() > threshold for w in weights]


def numpy_partition(weights: Sequence[Tensor], keep: int) -> object:
    """The threshold by numpy's introselect; no masks yet."""
    import numpy as np

    flat = np.concatenate([np.abs(w.numpy().ravel()) for w in weights])
    return np.partition(flat, flat.size - keep)


PEERS: dict[str, Peer] = {
    "torch cat+topk": torch_topk,
    "torch cat+kthvalue": torch_kthvalue,
    "torch cat+kthvalue+masks": torch_kthvalue_masks,
    "numpy partition": numpy_partition,
}


def contenders(case: Case, weights: list[Tensor]) -> Contenders:
    """Name -> call. With a budget for each layer, a peer is called layer by layer."""
    keep = case.keep()
    calls: Contenders = {"ours": lambda: topk_mask(weights, keep, case.pattern)}
    if case.pattern != "unstructured":
        return calls | topk_peers.peers(case.pattern, weights, keep)
    return calls | by_scope(PEERS, weights, keep)


def by_scope(peers: Mapping[str, Peer], weights: list[Tensor], keep: int | list[int] | None) -> Contenders:
    """Name -> call, of all weights together or layer by layer."""
    if isinstance(keep, int):
        return {name: lambda peer=peer: peer(weights, keep) for name, peer in peers.items()}
    budgets = list(zip(weights, keep or [], strict=True))
    return {name: lambda peer=peer: [peer([w], k) for w, k in budgets] for name, peer in peers.items()}


def check(case: Case, weights: list[Tensor]) -> None:
    """A wrong answer has no speed: exactly `keep` weights stay, and none of them is smaller than one that goes.

    With another pattern than unstructured the masks must be those of the op's reference.
    """
    keep = case.keep()
    if case.pattern != "unstructured":
        want, _ = reference.topk_mask(weights, [] if keep is None else [keep], case.pattern)
        if not all(map(torch.equal, topk_mask(weights, keep, case.pattern), want)):
            raise RuntimeError(f"bench topk: {case.name} must have the reference's {case.pattern} masks, got others")
        return
    kept = [unpack_mask(bits, w.shape) for bits, w in zip(topk_mask(weights, keep), weights, strict=True)]
    counts = [int(mask.sum()) for mask in kept]
    if (sum(counts) if isinstance(keep, int) else counts) != keep:
        raise RuntimeError(f"bench topk: {case.name} must keep {keep} weights, got {counts}")
    pairs = [(w[m].abs(), w[~m].abs()) for w, m in zip(weights, kept, strict=True)]
    if isinstance(keep, int):
        pairs = [(torch.cat([stays for stays, _ in pairs]), torch.cat([goes for _, goes in pairs]))]
    if any(stays.numel() and goes.numel() and stays.min() < goes.max() for stays, goes in pairs):
        raise RuntimeError(f"bench topk: {case.name} dropped a weight larger than one that it kept")


def measure(case: Case, threads: Sequence[int], budget: Budget, backend: str, with_memory: bool) -> Iterator[list[Row]]:
    """The rows of one case, a list for each thread count; `torch.set_num_threads` is left changed."""
    weights = case.model.weights()
    check(case, weights)
    calls = contenders(case, weights)
    calls[OURS_AGAIN] = calls["ours"]
    calls[ROOFLINE] = lambda: roofline_read_op(weights)
    extra = {}
    if with_memory:  # per-thread scratch grows with threads: measure the worst
        for name in ("ours", *PEERS):
            extra[name] = memory.measure(case, name, max(threads))
    for count in thread_counts(threads):
        facts = {
            "op": "topk", "case": case.name, "pattern": case.pattern, "sparsity": case.sparsity, "dtype": "float32",
            "threads": count, "device": "cpu", "backend": backend, "weights": case.model.numel,
        }  # fmt: skip
        group = rows(interleave(calls, budget), roofline=ROOFLINE, facts=facts)
        for row in group:
            row |= memory.columns("ours", extra.get("ours")) | memory.columns("peer", extra.get(row["peer"]))
        yield group
