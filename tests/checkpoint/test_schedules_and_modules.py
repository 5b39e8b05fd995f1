"""Checkpoints of LR schedules, and of modules that load in their own way."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from acdc_kernels import MaskedSGD, load_checkpoint, save_checkpoint

SCHEDULES = {
    "LambdaLR": (lambda epoch: 0.9**epoch,),
    "MultiplicativeLR": (lambda epoch: 0.9,),
    "StepLR": (2,),
    "MultiStepLR": ([2, 4],),
    "ConstantLR": (),
    "LinearLR": (),
    "ExponentialLR": (0.9,),
    "PolynomialLR": (),
    "CosineAnnealingLR": (10,),
    "CosineAnnealingWarmRestarts": (3,),
    "OneCycleLR": (0.1, 20),
    "CyclicLR": (0.01, 0.1),
    "ReduceLROnPlateau": ("min", 0.5, 1),
    "SequentialLR": lambda o: (o, [lr_scheduler.ConstantLR(o), lr_scheduler.MultiStepLR(o, [1, 2])], [2]),
    "ChainedScheduler": lambda o: ([lr_scheduler.ConstantLR(o), lr_scheduler.MultiStepLR(o, [3])],),
}


def test_every_schedule_of_torchs_is_listed():
    assert {*SCHEDULES, "LRScheduler"} == set(lr_scheduler.__all__)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_goes_on(tmp_path, name):
    def start():
        optimizer = MaskedSGD([nn.Parameter(torch.ones(1))], lr=0.1, momentum=0.9)
        made = SCHEDULES[name]
        arguments = made(optimizer) if callable(made) else (optimizer, *made)
        return {"optimizer": optimizer, "schedule": getattr(lr_scheduler, name)(*arguments)}

    def rates(run):
        found = []
        for _ in range(3):
            run["optimizer"].step()
            run["schedule"].step(*([1.0] if name == "ReduceLROnPlateau" else []))
            found.append(run["optimizer"].param_groups[0]["lr"])
        return found

    run, other = start(), start()
    rates(run)
    save_checkpoint(tmp_path / "x", **run)
    load_checkpoint(tmp_path / "x", **other)
    assert rates(other) == rates(run)


class Assigning(nn.Linear):
    """Takes what it loads as its own, without a copy."""

    def _load_from_state_dict(self, state_dict, prefix, *_):
        self.weight = nn.Parameter(state_dict[prefix + "weight"])
        self.bias = nn.Parameter(state_dict[prefix + "bias"])


def test_a_module_that_assigns_what_it_loads_does_not_refer_to_the_file(tmp_path):
    model = Assigning(2, 2)
    save_checkpoint(tmp_path / "x", model=model)
    before = model.weight.detach().clone()
    load_checkpoint(tmp_path / "x", model=model)
    (tmp_path / "x").write_bytes(bytes((tmp_path / "x").stat().st_size))
    assert torch.equal(model.weight, before)
