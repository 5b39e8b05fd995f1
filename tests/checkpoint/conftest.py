"""A tiny run in a compressed phase, and ways to see that nothing about a run has changed."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import acdc_kernels as acdc


class Run:
    """A model, optimizer, sparsifier and LR schedule, four updates after their seed: in a compressed phase."""

    def __init__(
        self,
        seed: int = 0,
        hidden: int = 16,
        sparsity: float = 0.8,
        warmup: int = 2,
        optimizer: Any = acdc.MaskedSGD,
        groups: int = 1,
        dtype: torch.dtype = torch.float32,
        updates: int = 4,
    ) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(8, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, 4))
        self.model.to(dtype)
        parameters = list(self.model.parameters())
        cut = len(parameters) // groups
        kept = [{"params": parameters[:cut]}, {"params": parameters[cut:]}] if groups == 2 else parameters
        self.optimizer = optimizer(kept, lr=0.1)
        schedule = acdc.schedules.acdc(20, warmup, 3, 3, 3, 4)
        self.sparsifier = (
            acdc.Sparsifier(self.model, self.optimizer, schedule, sparsity=sparsity)
            if optimizer is acdc.MaskedSGD
            else None
        )
        self.lr_schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, 5)
        for _ in range(updates):
            self.optimizer.zero_grad()
            self.model(torch.randn(6, 8, dtype=dtype)).square().sum().backward()
            self.optimizer.step()
            if self.sparsifier:
                self.sparsifier.step()
            self.lr_schedule.step()

    def parts(self) -> dict[str, Any]:
        names = ("model", "optimizer", "sparsifier", "lr_schedule")
        return {name: part for name in names if (part := getattr(self, name)) is not None}

    def bits(self) -> str:
        """Everything that a load may change, as text: of the run and of the generators."""
        with np.printoptions(threshold=10**9):
            states = {name: _exact(part.state_dict()) for name, part in self.parts().items()}
            rng = (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state()))
            return repr((states, rng))


def _exact(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return str(value.dtype), value.contiguous().view(-1).view(torch.uint8).tolist()
    if isinstance(value, dict):
        return {key: _exact(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_exact(item) for item in value]
    return value


@pytest.fixture
def saved(tmp_path):
    """(path of a checkpoint, the run that saved it)."""
    run = Run()
    acdc.save_checkpoint(tmp_path / "last.pt", **run.parts(), epoch=3)
    return tmp_path / "last.pt", run
