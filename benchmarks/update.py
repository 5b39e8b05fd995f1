"""`bench update`: masked SGD and AdamW against torch's, with and without mask multiply, and against their own traffic.

Everything is timed through `step()`, as a training loop calls it. Each optimizer owns its parameters and state;
gradients are shared, for nobody writes to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from acdc_kernels import MaskedAdamW, MaskedSGD, topk_mask, unpack_mask
from acdc_kernels.ops.roofline.contract import roofline_update_op

from . import cases
from .cases import Case
from .harness import Budget, Row, interleave, rows, thread_counts

CASES, QUICK = cases.UPDATE, cases.UPDATE_QUICK
ROOFLINE = "same traffic, no work"
OURS_AGAIN = "ours, entered twice (noise)"
HYPER: dict[str, dict[str, float]] = {
    "SGD": {"lr": 1e-4, "momentum": 0.9, "weight_decay": 1e-4},
    "AdamW": {"lr": 1e-4, "weight_decay": 1e-2},
}
# What torch is timed as: its loop, and how masks are held by multiplying with them after the step.
PEERS = {
    "SGD": [(kind, masks) for kind in ("foreach", "fused") for masks in ("", "bool", "float")],
    "AdamW": [("foreach", ""), ("fused", ""), ("fused", "bool")],
}
STREAMS = {"SGD": 5, "AdamW": 7}  # parameter and each state read and written, gradient read

Contenders = dict[str, Callable[[], object]]


def _ours(optimizer: str) -> Callable[..., torch.optim.Optimizer]:
    return {"SGD": MaskedSGD, "AdamW": MaskedAdamW}[optimizer]


def _optimizer(
    kind: Callable[..., torch.optim.Optimizer],
    optimizer: str,
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    **options: bool,
) -> tuple[torch.optim.Optimizer, list[Parameter]]:
    params = [Parameter(w.clone()) for w in weights]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    return kind(params, **HYPER[optimizer], **options), params


def _with_bool_masks(opt: torch.optim.Optimizer, params: list[Parameter], masks: list[Tensor]) -> Callable[[], object]:
    @torch.no_grad()
    def step() -> None:
        opt.step()
        for param, mask in zip(params, masks, strict=True):
            param.mul_(mask)

    return step


def _with_float_masks(opt: torch.optim.Optimizer, params: list[Parameter], masks: list[Tensor]) -> Callable[[], object]:
    @torch.no_grad()
    def step() -> None:
        opt.step()
        torch._foreach_mul_(params, masks)

    return step


def names(case: Case, optimizer: str = "SGD") -> list[str]:
    """The contenders of a case. Sparsity 0 is a dense phase: no masks anywhere."""
    peers = [(kind, masks) for kind, masks in PEERS[optimizer] if case.sparsity or not masks]
    return ["ours", *(f"torch {optimizer} {kind}{masks and f' + {masks} masks'}" for kind, masks in peers), ROOFLINE]


def gradients(weights: Sequence[Tensor], seed: int) -> list[Tensor]:
    generator = torch.Generator(weights[0].device).manual_seed(seed)
    return [torch.empty_like(w).normal_(0.0, 1e-3, generator=generator) for w in weights]


def masks(case: Case, weights: list[Tensor]) -> list[Tensor]:
    """Bits; none at sparsity 0."""
    return topk_mask(weights, case.keep()) if case.sparsity else []


def contenders(case: Case, weights: list[Tensor], optimizer: str = "SGD") -> Contenders:
    """Name -> call, in the order of `names`."""
    grads, bits = gradients(weights, seed=1), masks(case, weights)
    calls = steps(case, weights, grads, bits, optimizer)
    return calls | {ROOFLINE: _traffic(weights, grads, bits, STREAMS[optimizer])}


def steps(
    case: Case, weights: list[Tensor], grads: list[Tensor], bits: list[Tensor], optimizer: str, **fused_options: bool
) -> Contenders:
    """Name -> call, in the order of `names`, which ends with one more. `fused_options` are for torch's fused loop."""
    bools = [unpack_mask(b, w.shape) for b, w in zip(bits, weights, strict=False)]
    ours, params = _optimizer(_ours(optimizer), optimizer, weights, grads)
    ours.masks.update(dict(zip(params, bits, strict=False)))
    calls: list[Callable[[], object]] = [ours.step]
    made: dict[str, tuple[torch.optim.Optimizer, list[Parameter]]] = {}
    for kind, held_by in PEERS[optimizer]:
        if kind not in made:
            options = {kind: True, **(fused_options if kind == "fused" else {})}
            made[kind] = _optimizer(getattr(torch.optim, optimizer), optimizer, weights, grads, **options)
        if not held_by:
            calls.append(made[kind][0].step)
        elif bits and held_by == "bool":
            calls.append(_with_bool_masks(*made[kind], bools))
        elif bits:
            calls.append(_with_float_masks(*made[kind], [mask.float() for mask in bools]))
    return dict(zip(names(case, optimizer)[:-1], calls, strict=True))


def _traffic(weights: list[Tensor], grads: list[Tensor], bits: list[Tensor], streams: int) -> Callable[[], object]:
    """The momentum loop without its arithmetic; for more streams than its five, over tensors longer in proportion."""
    moved = [w.clone() for w in weights]
    if streams != 5:
        sizes = [w.numel() * streams // 5 for w in weights]
        moved, grads = ([torch.ones(n) for n in sizes] for _ in range(2))
        bits = [torch.full(((n + 7) // 8,), 255 >> (-n % 8), dtype=torch.uint8) for n in sizes if bits]
    buffers = [torch.zeros_like(m) for m in moved]
    return lambda: roofline_update_op(moved, grads, buffers, bits)


def check(case: Case, weights: list[Tensor], optimizer: str = "SGD") -> None:
    """A wrong answer has no speed: after two steps kept weights are torch's to rounding, masked ones +0.0."""
    grads, bits = gradients(weights, seed=2), masks(case, weights)
    ours, mine = _optimizer(_ours(optimizer), optimizer, weights, grads)
    theirs, peers = _optimizer(getattr(torch.optim, optimizer), optimizer, weights, grads, foreach=True)
    ours.masks.update(dict(zip(mine, bits, strict=False)))
    for _ in range(2):
        ours.step()
        theirs.step()
    with torch.no_grad():
        for i, (got, want) in enumerate(zip(mine, peers, strict=True)):
            if bits:
                want.mul_(unpack_mask(bits[i], want.shape)).add_(0.0)  # -0.0 + 0.0 is +0.0
            if not torch.allclose(got, want, rtol=1e-5, atol=1e-8) or torch.signbit(got[want == 0]).any():
                raise RuntimeError(f"bench update: {case.name} parameter {i} differs from torch's {optimizer}")


def moved_bytes(case: Case, optimizer: str) -> int:
    """Reads and writes of float32, and one mask bit a weight."""
    return case.model.numel * 4 * STREAMS[optimizer] + (case.model.numel // 8 if case.sparsity else 0)


def measure(case: Case, threads: Sequence[int], budget: Budget, backend: str, with_memory: bool) -> Iterator[list[Row]]:
    """The rows of one case, a list for each optimizer and thread count; `torch.set_num_threads` is left changed."""
    del with_memory  # the update allocates nothing
    weights = case.model.weights()
    for optimizer in HYPER:
        yield from _of(optimizer, case, weights, threads, budget, backend)


def _of(
    optimizer: str, case: Case, weights: list[Tensor], threads: Sequence[int], budget: Budget, backend: str
) -> Iterator[list[Row]]:
    check(case, weights, optimizer)
    calls = contenders(case, weights, optimizer)
    calls[OURS_AGAIN] = calls["ours"]
    for count in thread_counts(threads):
        facts = {
            "op": "update", "case": case.name if optimizer == "SGD" else f"{case.name}/{optimizer.lower()}",
            "pattern": "unstructured", "sparsity": case.sparsity, "dtype": "float32",
            "threads": count, "device": "cpu", "backend": backend, "weights": case.model.numel,
        }  # fmt: skip
        group = rows(interleave(calls, budget), roofline=ROOFLINE, facts=facts)
        for row in group:
            row["ours_gb_per_s"] = float(f"{moved_bytes(case, optimizer) / row['ours_ms'] / 1e6:.4g}")
        yield group
