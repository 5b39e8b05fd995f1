"""Layers with 2:4 weights on a GPU: their forward by torch's semi-structured kernels."""

from __future__ import annotations

import pytest
import torch

from acdc_kernels.nn.product import DENSE, FORWARD, SEMI
from acdc_kernels.nn.semi_structured import SemiStructuredProduct
from acdc_kernels.plan import ONE_KERNEL, Memory

from .conftest import Captured, no_waiting
from .training import Run, near


@pytest.fixture(autouse=True)
def _kernels(_gpu):
    if why := SemiStructuredProduct.missing(fp16=False):
        pytest.skip(why)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("pattern", ["2:4", "2:4-transposable"])
@pytest.mark.parametrize("kind", ["bfloat16", "float16", "autocast"])
def test_training_ends_where_dense_products_end(kind, pattern, compiled):
    torch.compiler.reset()
    ours = Run(kind, pattern=pattern, compiled=compiled, sparsity=None).train(5)
    assert ours.kernels() == {SEMI, DENSE}
    assert {row.reason for row in ours.sparsifier.plan()} == {"as asked", ONE_KERNEL}
    near(ours, Run(kind, "dense", pattern, sparsity=None).train(5), kind)


@pytest.mark.parametrize("kind", ["bfloat16", "autocast"])
def test_a_step_waits_for_nothing(kind):
    run = Run(kind, pattern="2:4", sparsity=None).train(3)
    with no_waiting():
        run.train(2)
    assert run.kernels() == {SEMI, DENSE}


@pytest.mark.parametrize("kind", ["bfloat16", "autocast"])
def test_a_captured_forward_takes_new_inputs_and_weights(kind):
    """The weight is compressed in the graph."""
    run = Run(kind, pattern="2:4", sparsity=None).train(3)
    graph = Captured(lambda: run.loss().detach())
    for seed in range(3):
        generator = torch.Generator("cuda").manual_seed(seed)
        with torch.no_grad():
            run.x.copy_(torch.randn(run.x.shape, generator=generator, device="cuda"))
        graph.replay()
        torch.testing.assert_close(graph.result, run.loss(), rtol=1e-3, atol=1e-3)
        run.train(1)


def test_float32_steps_aside():
    run = Run("float32", pattern="2:4", sparsity=None).train(2)
    assert {row.reason for row in run.sparsifier.plan()} == {
        "no 2:4 kernels for torch.float32, only for torch.bfloat16 and torch.float16"
    }


def test_a_plan_is_measured(monkeypatch):
    monkeypatch.setattr(Memory, "of_user", classmethod(lambda cls: cls(None)))
    monkeypatch.setattr("acdc_kernels._sparsifier_products.BUDGET", 1e3)
    run = Run("bfloat16", "auto", "2:4", width=4096, samples=8192, sparsity=None).train(3)
    for row in run.sparsifier.plan():
        if row.product == FORWARD:
            assert row.times.keys() == {DENSE, SEMI}
            assert row.kernel == DENSE or row.times[SEMI] <= 0.97 * row.times[DENSE]
        else:
            assert (row.kernel, row.reason) == (DENSE, ONE_KERNEL)
