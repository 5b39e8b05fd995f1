"""torch.compile of the model and of the optimizer's step, across phase changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import acdc_kernels as acdc
from acdc_kernels.nn import planned_linear
from acdc_kernels.nn.product import DENSE, SPARSE
from acdc_kernels.nn.sparse_linear import LinearProduct
from acdc_kernels.plan import Choice, Planner

SCHEDULE = acdc.schedules.acdc(total=20, warmup=2, compressed=2, dense=2, final_dense=2, final_compressed=4)
OPTIMIZERS = {
    "sgd": lambda p: acdc.MaskedSGD(p, lr=torch.tensor(0.05), momentum=0.9),
    "adamw": lambda p: acdc.MaskedAdamW(p, lr=torch.tensor(3e-3)),
}


@pytest.fixture(autouse=True)
def fresh(quiet_references):
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4))


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 6, generator=generator), torch.randint(4, (8,), generator=generator)


def train(
    make: str,
    compile_model=lambda model: model,
    compile_step=lambda step: step,
    decay: bool = True,
    kernels: str = "auto",
):
    model = net()
    optimizer = OPTIMIZERS[make](model.parameters())
    sparsifier = acdc.Sparsifier(model, optimizer, SCHEDULE, sparsity=0.75, kernels=kernels)
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


@pytest.fixture
def sparse_calls(monkeypatch):
    """One entry for each forward by sparse kernels."""
    calls = []
    forward = planned_linear.linear_forward

    def count(run, *args):
        calls.extend([1] * run.sparse_forward)
        return forward(run, *args)

    monkeypatch.setattr(planned_linear, "linear_forward", count)
    return calls


# Once with products in their places, which observe or run sparse, and once without: seven changes of phase compile
# nothing more. Where products never come, the layers' own graph is the only one.
GRAPHS = {"dense": 1, "sparse": 2, "auto": 2 if LinearProduct.missing(fp16=False) is None else 1}


@pytest.mark.parametrize("kernels", GRAPHS)
@pytest.mark.parametrize("make", OPTIMIZERS)
def test_a_compiled_model_is_compiled_once_with_products_and_once_without(make, kernels, sparse_calls):
    counter = CompileCounterWithBackend("aot_eager")
    model, sparsifier = train(
        make, lambda model: torch.compile(model, backend=counter, fullgraph=True), kernels=kernels
    )
    assert len(sparse_calls) == (3 * 10 if kernels == "sparse" else 0)
    plain, _ = train(make, kernels="dense")
    assert counter.frame_count == GRAPHS[kernels]
    for name, p in model.named_parameters():
        assert torch.allclose(p, plain.get_parameter(name), atol=1e-5)
    assert sparsifier.achieved_sparsity() == 0.75


def test_plans_that_change_from_phase_to_phase_stay_within_the_compilers_limit(monkeypatch):
    """Of three layers each phase runs another set sparse: all eight sets, and there is a limit of eight graphs."""
    monkeypatch.setattr(LinearProduct, "missing", staticmethod(lambda fp16, *where: None))
    phases = iter([(), (0,), (1,), (0, 1, 2), (2,), (0, 2), (1, 2), (0, 1)])

    def plan(self, trials, previous, budget):
        names, chosen = list(trials), next(phases)
        kernels = [SPARSE if i in chosen else DENSE for i in range(3)]
        return {
            name: {product: Choice(kernel, "") for product in trials[name].computed}
            for name, kernel in zip(names, kernels, strict=True)
        }

    monkeypatch.setattr(Planner, "plan", plan)
    schedule = acdc.schedules.acdc(total=32, warmup=2, compressed=2, dense=2, final_dense=0, final_compressed=2)
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    sparsifier = acdc.Sparsifier(model, optimizer, schedule, sparsity=0.75)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for i in range(32):
        x, y = batch(i)
        optimizer.zero_grad()
        nn.functional.cross_entropy(compiled(x), y).backward()
        optimizer.step()
        sparsifier.step()
    assert next(phases, None) is None
    assert counter.frame_count <= 5  # observing, none, then one for each time that a layer is sparse at first


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


@pytest.mark.parametrize("kernels", ["auto", "sparse"])
def test_model_and_step_compiled_by_inductor(kernels):
    model, sparsifier = train("sgd", torch.compile, torch.compile, kernels=kernels)
    plain, _ = train("sgd", kernels="dense")
    for name, p in model.named_parameters():
        assert torch.allclose(p, plain.get_parameter(name), atol=1e-4)
    assert sparsifier.achieved_sparsity() == 0.75
