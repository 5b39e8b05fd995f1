"""A tiny classification task whose every number is decided by its seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from acdc_kernels.optim import MaskedSGD
from acdc_kernels.policy import schedules
from acdc_kernels.sparsifier import Sparsifier

# 24 updates: D3 C3 D3 C3 D6 C6
SCHEDULE = schedules.acdc(total=8, warmup=1, compressed=1, dense=1, final_dense=2, final_compressed=2, steps_per_unit=3)


def small_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(4 * 4 * 4, 20),
        nn.Tanh(),
        nn.Linear(20, 5),
    )


@dataclass
class Run:
    """Training of ``small_net``: update t sees batch t of the seed, so that a run can stop and resume anywhere."""

    settings: dict[str, Any] = field(default_factory=dict)
    schedule: schedules.Schedule = SCHEDULE
    seed: int = 0

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        self.model = small_net()
        self.optimizer = MaskedSGD(self.model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3, nesterov=True)
        self.sparsifier = Sparsifier(self.model, self.optimizer, self.schedule, **{"sparsity": 0.8, **self.settings})

    def update(self) -> None:
        generator = torch.Generator().manual_seed(1000 * self.seed + self.sparsifier.step_count)
        x = torch.randn(8, 1, 6, 6, generator=generator)
        y = torch.randint(5, (8,), generator=generator)
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(x), y).backward()
        self.optimizer.step()

    def train(self, updates: int | None = None, before_step: Callable[[], None] = lambda: None) -> Run:
        for _ in range(self.schedule.total_steps - self.sparsifier.step_count if updates is None else updates):
            self.update()
            before_step()
            self.sparsifier.step()
        return self

    def momentum(self) -> dict[str, torch.Tensor]:
        return {name: self.optimizer.state[p]["momentum_buffer"] for name, p in self.model.named_parameters()}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from threads, which wait for one another for long where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run() -> type[Run]:
    return Run
