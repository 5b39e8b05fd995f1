"""Large blocks in training: the plan of kernels that have configs, in the dtype of autocast, on the reference."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import acdc_kernels as acdc
from acdc_kernels import _sparsifier_products as products
from acdc_kernels import plan
from acdc_kernels.nn.block_linear import BlockProduct
from acdc_kernels.nn.block_trial import BlockTrial
from acdc_kernels.nn.product import DENSE, FORWARD, PRODUCTS, SPARSE, WEIGHT_GRADIENT, named

pytestmark = pytest.mark.usefixtures("quiet_references")

PATTERN, CONFIGS = "block:32x32", ("64x32 w4 s3", "64x16 w4 s3")
# D2 C3 D3 C4
SCHEDULE = acdc.schedules.acdc(total=12, warmup=2, compressed=3, dense=3, final_dense=3, final_compressed=4)


class Run:
    """Training of three layers, of which the last has no whole blocks; update t sees batch t."""

    def __init__(self, kernels="sparse", low=False, dtype=torch.float32, pattern=PATTERN):
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 32), nn.LayerNorm(32), nn.Linear(32, 5)
        ).to(dtype)
        self.low, self.dtype, self.forward = low, dtype, self.model
        self.optimizer = acdc.MaskedSGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.sparsifier = acdc.Sparsifier(
            self.model, self.optimizer, SCHEDULE, sparsity=0.5, pattern=pattern, kernels=kernels
        )

    def train(self, updates=None):
        left = SCHEDULE.total_steps - self.sparsifier.step_count
        for _ in range(left if updates is None else updates):
            generator = torch.Generator().manual_seed(self.sparsifier.step_count)
            x = torch.randn(8, 64, generator=generator).to(self.dtype)
            y = torch.randint(5, (8,), generator=generator)
            self.optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.low):
                out = self.forward(x)
            nn.functional.cross_entropy(out.float(), y).backward()
            self.optimizer.step()
            self.sparsifier.step()
        return self

    def kernels(self, layer="0"):
        return [row.kernel for row in self.sparsifier.plan() if row.layer == layer]

    def reasons(self, layer="0"):
        return [row.reason for row in self.sparsifier.plan() if row.layer == layer]


def close(one, other, **near):
    for (name, p), q in zip(one.model.named_parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, msg=name, **near)


@pytest.fixture
def measured(monkeypatch):
    """Every kernel of blocks can run here and has two more configs; ``best`` is the fastest, of the rest dense is."""
    case = SimpleNamespace(best=named(CONFIGS[1]), dtypes=set())

    def interleaved(runs, timer, until):
        for run in runs.values():
            run()
        fast = (case.best, "planned")
        return {name: 0.1 if name.rpartition(": ")[2] in fast else 1.0 for name in runs}, 7

    def kernels(trial, product):
        case.dtypes.add(trial.dtype)
        configs = CONFIGS if product != WEIGHT_GRADIENT else ("64x32 w4 s3 splits2",)
        return (DENSE, SPARSE, *map(named, configs))

    monkeypatch.setattr(plan, "interleaved", interleaved)
    monkeypatch.setattr(plan, "HOPELESS", 1e9)
    monkeypatch.setattr(products, "BUDGET", 1e9)
    monkeypatch.setattr(BlockProduct, "missing", staticmethod(lambda fp16, *where: None))
    monkeypatch.setattr(BlockTrial, "kernels", kernels)
    return case


@pytest.mark.parametrize("pattern", [PATTERN, "block:32x64"])
def test_training_ends_where_dense_products_end(pattern):
    ours = Run(pattern=pattern).train()
    assert ours.kernels() == [SPARSE] * 3
    assert ours.kernels("2") == ([SPARSE] * 3 if pattern == PATTERN else [])
    close(ours, Run("dense", pattern=pattern).train(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("low", "dtype"), [(True, torch.float32), (False, torch.bfloat16)])
def test_training_in_low_precision(low, dtype):
    ours, dense = (Run(kernels, low, dtype).train() for kernels in ("sparse", "dense"))
    assert ours.kernels() == [SPARSE] * 3
    close(ours, dense, rtol=5e-2, atol=2e-2)


@pytest.mark.parametrize("low", [False, True])
def test_compiled_training(low):
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    ours = Run(low=low)
    ours.forward = torch.compile(ours.model, backend=counter, fullgraph=True)
    close(ours.train(), Run(low=low).train(), rtol=5e-2, atol=2e-2)
    assert ours.kernels() == [SPARSE] * 3
    assert counter.frame_count <= 3
    torch.compiler.reset()


def test_without_kernels_layers_stay_dense():
    r = Run("auto").train(3)
    assert r.kernels() == [DENSE] * 3
    assert r.reasons() == ["no sparse kernels on cpu for pattern 'block:32x32'"] * 3
    assert r.sparsifier.compiling_seconds == 0.0


@pytest.mark.parametrize("low", [False, True])
def test_a_plan_is_measured_in_the_dtype_that_was_seen(low, measured):
    r = Run("auto", low).train(4)
    assert measured.dtypes == {torch.bfloat16 if low else torch.float32}
    assert r.kernels() == [measured.best, DENSE, DENSE]  # the first layer's input needs no gradient
    assert r.reasons()[0].startswith(
        "measured: sparse 1e+03 ms, sparse 64x32 w4 s3 1e+03 ms, sparse 64x16 w4 s3 100 ms"
    )
    assert r.kernels("2") == [measured.best, measured.best, DENSE]
    assert r.model[0].product.run.forward_config == CONFIGS[1]
    assert r.model[2].product.run.input_config == CONFIGS[1]
    close(r.train(), Run("dense", low).train(), rtol=5e-2, atol=2e-2)


def test_configs_are_restored(measured):
    r = Run("auto", low=True).train(4)
    states = [copy.deepcopy(part.state_dict()) for part in (r.model, r.optimizer, r.sparsifier)]
    other = Run("auto", low=True)
    for part, state in zip((other.model, other.optimizer, other.sparsifier), states, strict=True):
        part.load_state_dict(state)
    assert other.sparsifier.plan() == r.sparsifier.plan()
    assert other.model[2].product.run.input_config == CONFIGS[1]
    r.train()
    other.train()
    close(r, other, rtol=0, atol=0)


def test_a_config_of_elsewhere_is_dense_and_says_so(measured):
    state = copy.deepcopy(Run("auto").train(4).sparsifier.state_dict())
    rows = {(row["layer"], row["product"]): row for row in state["plan"]["rows"]}
    rows["2", FORWARD]["kernel"] = "sparse 99x99 w4"
    rows["0", FORWARD]["kernel"] = "sparse 64x64 w4 s3"  # deeper than a block
    r = Run("auto").train(1)
    r.sparsifier.load_state_dict(state)
    assert r.kernels("2") == [DENSE, measured.best, DENSE]
    assert r.reasons("2")[0].startswith("there is no kernel 'sparse 99x99 w4' here: config must be")
    assert r.model[2].product.run.sparse_input
    assert r.kernels("0") == [DENSE] * 3
    assert "a depth that goes with blocks of 32" in r.reasons("0")[0]
    assert getattr(r.model[0], "product", None) is None or r.model[0].product.topology is None


def test_time_to_compile_is_counted_apart(measured, monkeypatch):
    def prepare(timer, make):
        timer.compiling = timer.compiling + 5.0
        return make()

    monkeypatch.setattr(plan.Timer, "prepare", prepare)
    r = Run("auto").train(4)
    assert r.sparsifier.compiling_seconds >= 5.0 * len(PRODUCTS)
    assert r.sparsifier.compiling_seconds % 5.0 == 0

    state = Run("auto", low=True).train(1).sparsifier.state_dict()
    assert state["plan"]["observed"]["0"]["first"] == [[8, "", 1, "bfloat16"]]
    assert Run("auto").train(1).sparsifier.state_dict()["plan"]["observed"]["0"]["first"] == [[8, "", 1]]
