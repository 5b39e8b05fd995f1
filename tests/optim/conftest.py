"""A tiny network, its training, and the two optimizers side by side with torch's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from acdc_kernels import MaskedAdamW, MaskedSGD, pack_mask
from acdc_kernels._native import cpu_isa


def network(dtype=torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 10)).to(dtype)


def backward(model: nn.Module, step: int, factor: float = 1.0) -> None:
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(step)).to(next(model.parameters()).dtype)
    model.zero_grad()
    (model(x).square().mean() * factor).backward()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> list[Tensor]:
    for step in range(first, first + steps):
        backward(model, step)
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def half(p: Tensor, seed: int = 0) -> Tensor:
    return pack_mask(torch.rand(p.shape, generator=torch.Generator().manual_seed(seed)) < 0.5)


@dataclass
class Task:
    """What a test of both optimizers needs."""

    masked: type[Any]
    torchs: type[torch.optim.Optimizer]
    options: dict[str, Any]
    state: tuple[str, ...]  # of a parameter's shape
    exact: bool  # without masks, torch's bits; else its numbers
    counted: bool = False  # whether state has a step
    lr: float = field(init=False)

    network = staticmethod(network)
    backward = staticmethod(backward)
    train = staticmethod(train)
    half = staticmethod(half)

    def __post_init__(self) -> None:
        self.lr = self.options["lr"]

    def make(self, params: Any, **more: Any) -> Any:
        return self.masked(params, **{**self.options, **more})

    def make_torchs(self, params: Any, **more: Any) -> torch.optim.Optimizer:
        return self.torchs(params, **{**self.options, **more})

    def same(self, a: Any, b: Any) -> bool:
        """To the bit where that is promised; the generic ISA level has no fused multiply-add, torch's loop has."""
        pairs = list(zip(a, b, strict=True))
        if self.exact and cpu_isa() != "generic":
            return all(torch.equal(x, y) for x, y in pairs)
        return all(torch.allclose(x, y, rtol=1e-5, atol=1e-5) for x, y in pairs)


TASKS = {
    "sgd": lambda: Task(MaskedSGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, ("momentum_buffer",), True),
    "adamw": lambda: Task(
        MaskedAdamW,
        torch.optim.AdamW,
        {"lr": 0.01, "amsgrad": True},
        ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
        False,
        True,
    ),
}


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest) -> Task:
    """Either optimizer."""
    return TASKS[request.param]()


@pytest.fixture
def sgd() -> Task:
    return TASKS["sgd"]()


@pytest.fixture
def adamw() -> Task:
    return TASKS["adamw"]()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
