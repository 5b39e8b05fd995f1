"""Layers and models as the benchmarks of products have them: dense, and in a compressed phase of a Sparsifier."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from acdc_kernels import MaskedSGD, Sparsifier, schedules

LONG = 1_000_000  # steps of a compressed phase: its plan may take the time that it needs


def linear(rows: int, cols: int, bias: bool = False, seed: int = 0) -> nn.Linear:
    """A linear layer as torch initialises it."""
    torch.manual_seed(seed)
    return nn.Linear(cols, rows, bias=bias)


def inputs(samples: int, cols: int, seed: int = 1) -> Tensor:
    return torch.randn(samples, cols, generator=torch.Generator().manual_seed(seed))


def compressed(
    model: nn.Module,
    x: Tensor,
    sparsity: float,
    pattern: str = "unstructured",
    kernels: str = "auto",
    **sgd: float,
) -> Sparsifier:
    """Takes `model` into a compressed phase that has been planned for batches like `x`, and returns its sparsifier.

    Who drops the sparsifier has dense products again. Two dense steps go first, with learning rate 0: the plan learns
    the shapes from them. sgd: options of the optimizer.
    """
    optimizer = MaskedSGD(model.parameters(), **{"lr": 0.0, **sgd})
    schedule = schedules.acdc(total=LONG, warmup=2, compressed=1, dense=1, final_dense=0, final_compressed=LONG - 2)
    sparsifier = Sparsifier(model, optimizer, schedule, sparsity=sparsity, pattern=pattern, kernels=kernels)
    for _ in range(2):
        model(x).sum().backward()
        optimizer.step()
        sparsifier.step()
    optimizer.zero_grad()
    rows = sparsifier.plan()
    if not rows or (kernels == "sparse" and any(row.kernel == "dense" for row in rows)):
        raise RuntimeError(f"bench: a plan with kernels={kernels!r} must be there and as asked, got {rows}")
    return sparsifier


def training(layer: nn.Module, x: Tensor, grad: Tensor, sparsifier: Sparsifier | None = None) -> Callable[[], Tensor]:
    """Forward and backward through autograd as in a training step, with gradients for `x` and the parameters.

    sparsifier: what has to live as long as the call.
    """
    x = x.detach().requires_grad_()

    def call(_: Sparsifier | None = sparsifier) -> Tensor:
        x.grad = None
        for p in layer.parameters():
            p.grad = None
        y = layer(x)
        y.backward(grad)
        return y

    return call


@contextlib.contextmanager
def fresh_plans() -> Iterator[None]:
    """Plans are made anew: none comes from the user's cache or goes there."""
    before = os.environ.get("ACDC_PLAN_CACHE")
    os.environ["ACDC_PLAN_CACHE"] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ["ACDC_PLAN_CACHE"]
        else:
            os.environ["ACDC_PLAN_CACHE"] = before
