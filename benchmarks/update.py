"""`bench update`: a masked momentum step against torch's SGD, with and without mask multiply, and its own traffic.

Everything is timed through `step()`, as a training loop calls it. Each optimizer owns its parameters and momentum;
gradients are shared, for nobody writes to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from acdc_kernels import MaskedSGD, topk_mask, unpack_mask
from acdc_kernels.ops.roofline.contract import roofline_update_op

from . import cases
from .cases import Case
from .harness import Budget, Row, interleave, rows

CASES, QUICK = cases.UPDATE, cases.UPDATE_QUICK
ROOFLINE = "same traffic, no work"
OURS_AGAIN = "ours, entered twice (noise)"
HYPER = {"lr": 1e-4, "momentum": 0.9, "weight_decay": 1e-4}

Contenders = dict[str, Callable[[], object]]


def _optimizer(
    kind: Callable[..., torch.optim.Optimizer], weights: Sequence[Tensor], grads: Sequence[Tensor], **options: bool
) -> tuple[torch.optim.Optimizer, list[Parameter]]:
    params = [Parameter(w.clone()) for w in weights]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    return kind(params, **HYPER, **options), params


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


def names(case: Case) -> list[str]:
    """The contenders of a case. Sparsity 0 is a dense phase: no masks anywhere."""
    suffixes = ("", " + bool masks", " + float masks") if case.sparsity else ("",)
    return ["ours", *(f"torch SGD {kind}{suffix}" for kind in ("foreach", "fused") for suffix in suffixes), ROOFLINE]


def contenders(case: Case, weights: list[Tensor]) -> Contenders:
    """Name -> call, in the order of `names`."""
    generator = torch.Generator().manual_seed(1)
    grads = [torch.empty_like(w).normal_(0.0, 1e-3, generator=generator) for w in weights]
    bits = topk_mask(weights, case.keep()) if case.sparsity else []
    bools = [unpack_mask(b, w.shape) for b, w in zip(bits, weights, strict=False)]
    ours, params = _optimizer(MaskedSGD, weights, grads)
    ours.masks.update(dict(zip(params, bits, strict=False)))
    calls: list[Callable[[], object]] = [ours.step]
    for kind in ("foreach", "fused"):
        opt, params = _optimizer(torch.optim.SGD, weights, grads, **{kind: True})
        calls.append(opt.step)
        if bits:
            calls.append(_with_bool_masks(opt, params, bools))
            calls.append(_with_float_masks(opt, params, [mask.float() for mask in bools]))
    moved, buffers = [w.clone() for w in weights], [torch.zeros_like(w) for w in weights]
    calls.append(lambda: roofline_update_op(moved, grads, buffers, bits))
    return dict(zip(names(case), calls, strict=True))


def check(case: Case, weights: list[Tensor]) -> None:
    """A wrong answer has no speed: after two steps kept weights are torch's to rounding, masked ones +0.0."""
    generator = torch.Generator().manual_seed(2)
    grads = [torch.empty_like(w).normal_(0.0, 1e-3, generator=generator) for w in weights]
    ours, mine = _optimizer(MaskedSGD, weights, grads)
    theirs, peers = _optimizer(torch.optim.SGD, weights, grads, foreach=True)
    bits = topk_mask(weights, case.keep()) if case.sparsity else []
    ours.masks.update(dict(zip(mine, bits, strict=False)))
    for _ in range(2):
        ours.step()
        theirs.step()
    with torch.no_grad():
        for i, (got, want) in enumerate(zip(mine, peers, strict=True)):
            if bits:
                want.mul_(unpack_mask(bits[i], want.shape)).add_(0.0)  # -0.0 + 0.0 is +0.0
            if not torch.allclose(got, want, rtol=1e-5, atol=1e-8) or torch.signbit(got[want == 0]).any():
                raise RuntimeError(f"bench update: {case.name} parameter {i} differs from torch's SGD")


def moved_bytes(case: Case) -> int:
    """Three reads and two writes of float32, and one mask bit a weight."""
    return case.model.numel * 20 + (case.model.numel // 8 if case.sparsity else 0)


def measure(case: Case, threads: Sequence[int], budget: Budget, backend: str, with_memory: bool) -> Iterator[list[Row]]:
    """The rows of one case, a list for each thread count; `torch.set_num_threads` is left changed."""
    del with_memory  # the update allocates nothing
    weights = case.model.weights()
    check(case, weights)
    calls = contenders(case, weights)
    calls[OURS_AGAIN] = calls["ours"]
    for count in threads:
        torch.set_num_threads(count)
        facts = {
            "op": "update", "case": case.name, "pattern": "unstructured", "sparsity": case.sparsity, "dtype": "float32",
            "threads": count, "device": "cpu", "backend": backend, "weights": case.model.numel,
        }  # fmt: skip
        group = rows(interleave(calls, budget), roofline=ROOFLINE, facts=facts)
        for row in group:
            row["ours_gb_per_s"] = float(f"{moved_bytes(case) / row['ours_ms'] / 1e6:.4g}")
        yield group
