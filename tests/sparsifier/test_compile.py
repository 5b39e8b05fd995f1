"""torch.compile of the model and of the optimizer's step, across phase changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import acdc_kernels as acdc

SCHEDULE = acdc.schedules.acdc(total=20, warmup=2, compressed=2, dense=2, final_dense=2, final_compressed=4)
OPTIMIZERS = {
    "sgd": lambda p: acdc.MaskedSGD(p, lr=torch.tensor(0.05), momentum=0.9),
    "adamw": lambda p: acdc.MaskedAdamW(p, lr=torch.tensor(3e-3)),
}


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4))


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 6, generator=generator), torch.randint(4, (8,), generator=generator)


def train(make: str, compile_model=lambda model: model, compile_step=lambda step: step, decay: bool = True):
    model = net()
    optimizer = OPTIMIZERS[make](model.parameters())
    sparsifier = acdc.Sparsifier(model, optimizer, SCHEDULE, sparsity=0.75)
    forward, step = compile_model(model), compile_step(optimizer.step)
    kinds = []
    for i in range(SCHEDULE.total_steps):
        x, y = batch(i)
        optimizer.zero_grad()
        nn.functional.cross_entropy(forward(x), y).backward()
        step()
        kinds.append(sparsifier.phase.index)
        sparsifier.step()
        if decay:
            optimizer.param_groups[0]["lr"].mul_(0.97)
    assert len(set(kinds)) == 8
    return model, sparsifier


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_a_compiled_model_is_compiled_once(make):
    counter = CompileCounterWithBackend("aot_eager")
    model, sparsifier = train(make, compile_model=lambda model: torch.compile(model, backend=counter, fullgraph=True))
    plain, _ = train(make)
    assert counter.frame_count == 1
    for name, p in model.named_parameters():
        assert torch.allclose(p, plain.get_parameter(name), atol=1e-5)
    assert sparsifier.achieved_sparsity() == 0.75


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_a_compiled_step_is_compiled_at_most_once_for_each_kind_of_step(make):
    counter = CompileCounterWithBackend("aot_eager")
    model, sparsifier = train(make, compile_step=lambda step: torch.compile(step, backend=counter))
    plain, _ = train(make)
    # the first step, a dense one, a masked one: seven changes of phase compile nothing more
    assert 1 <= counter.frame_count <= 3
    for name, p in model.named_parameters():
        assert torch.equal(p, plain.get_parameter(name))
    assert sparsifier.achieved_sparsity() == 0.75


def test_model_and_step_compiled_by_inductor():
    model, sparsifier = train("sgd", torch.compile, torch.compile)
    plain, _ = train("sgd")
    for name, p in model.named_parameters():
        assert torch.allclose(p, plain.get_parameter(name), atol=1e-4)
    assert sparsifier.achieved_sparsity() == 0.75
