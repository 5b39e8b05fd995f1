"""Layers under large blocks on a GPU: planned, captured, compiled, under autocast, and never waiting for the device."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import acdc_kernels as acdc
from acdc_kernels.nn.block_linear import BlockProduct
from acdc_kernels.nn.product import DENSE, PRODUCTS, SPARSE, config_of
from acdc_kernels.nn.running import WRITTEN
from acdc_kernels.plan import Memory

from .conftest import Captured, no_waiting
from .training import KINDS, Run, near

if why := BlockProduct.missing(fp16=False):
    pytest.skip(why, allow_module_level=True)


@pytest.mark.parametrize("pattern", ["block:32x32", "block:64x64", "block:128x128", "block:64x32"])
@pytest.mark.parametrize("kind", KINDS)
def test_training_ends_where_dense_products_end(kind, pattern):
    ours = Run(kind, pattern=pattern).train(5)
    assert ours.kernels() == {SPARSE}
    near(ours, Run(kind, "dense", pattern).train(5), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_training_ends_where_eager_training_ends(kind):
    torch.compiler.reset()
    ours = Run(kind, compiled=True).train(5)
    assert ours.kernels() == {SPARSE}
    near(ours, Run(kind).train(5), kind)


@pytest.mark.parametrize("kind", ["bfloat16", "autocast"])
def test_a_step_waits_for_nothing(kind):
    run = Run(kind).train(3)
    with no_waiting():
        run.train(2)
    assert run.kernels() == {SPARSE}


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "autocast"])
def test_a_captured_step_is_an_eager_one(kind):
    run, eager = Run(kind).train(3), Run(kind).train(3)
    start = [copy.deepcopy(part.state_dict()) for part in (run.model, run.optimizer)]
    graph = Captured(run.update)
    assert run.kernels() == {SPARSE}  # the update that came before was seen to keep to the mask
    with torch.no_grad():
        for p, saved in zip(run.model.parameters(), start[0].values(), strict=True):
            p.copy_(saved)
        for p, state in zip(run.model.parameters(), start[1]["state"].values(), strict=True):
            for name, value in state.items():
                run.optimizer.state[p][name].copy_(value)
    for seed in range(3):
        generator = torch.Generator("cuda").manual_seed(seed)
        x = torch.randn(run.x.shape, generator=generator, device="cuda").to(run.dtype)
        with torch.no_grad():
            run.x.copy_(x)
            eager.x.copy_(x)
        graph.replay()
        assert torch.equal(graph.result, eager.update())
    for p, q in zip(run.model.parameters(), eager.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_weight_that_was_written_to_is_dense_until_the_next_update():
    run = Run().train(2)
    with torch.no_grad():
        run.model[0].weight.add_(0.01)
    torch.nn.functional.linear(run.x, run.model[0].weight)  # cuBLAS waits when it is first used
    with no_waiting():
        loss = run.loss()
    rows = run.sparsifier.plan()
    assert {row.reason for row in rows if row.layer == "0"} == {WRITTEN}
    want = run.model[2](torch.tanh(nn.functional.linear(run.x, run.model[0].weight, run.model[0].bias)))
    torch.testing.assert_close(loss, (want.float() - run.y).square().mean(), rtol=1e-2, atol=1e-2)
    loss.backward()
    run.train(2)
    assert run.kernels() == {SPARSE}


@pytest.mark.parametrize(
    "order", [("model", "optimizer", "sparsifier"), ("sparsifier", "optimizer", "model")], ids=" ".join
)
def test_resuming_is_bit_exact(order):
    run = Run().train(3)
    states = {name: copy.deepcopy(getattr(run, name).state_dict()) for name in order}
    other = Run()
    for name in order:
        getattr(other, name).load_state_dict(states[name])
    for one in (run, other):
        one.train(2)
        assert one.kernels() == {SPARSE}
    for p, q in zip(run.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_gradients_of_pruned_blocks_are_zero_and_in_the_weights_dtype():
    run = Run("autocast").train(1)
    run.loss().backward()
    layer, bits = run.model[0], run.sparsifier.masks["0.weight"]
    mask = acdc.unpack_mask(bits, layer.weight.shape)
    assert layer.weight.grad.dtype == torch.float32
    assert not layer.weight.grad[~mask].count_nonzero()
    assert layer.weight.grad[mask].count_nonzero()


@pytest.mark.parametrize("kind", ["bfloat16", "autocast"])
def test_a_plan_is_measured(kind, monkeypatch, tmp_path):
    monkeypatch.setattr(Memory, "of_user", classmethod(lambda cls: cls(tmp_path / "plans.json")))
    monkeypatch.setattr("acdc_kernels._sparsifier_products.BUDGET", 1e3)
    run = Run(kind, "auto", "block:128x128", width=2048, samples=4096).train(3)
    rows = run.sparsifier.plan()
    assert {row.product for row in rows} == set(PRODUCTS)
    assert all(row.samples == 4096 and row.times[DENSE] > 0 for row in rows)
    assert all(len(row.times) > 2 for row in rows), "configs were timed"
    assert all(row.kernel == DENSE or row.times[row.kernel] <= 0.97 * row.times[DENSE] for row in rows)
    assert all(config_of(name) == "" or name in row.times for row in rows for name in row.times)
    assert run.sparsifier.planning_seconds > 0
    assert (tmp_path / "plans.json").read_text().count("multiprocessors")
    again = Run(kind, "auto", "block:128x128", width=2048, samples=4096).train(3)
    assert [row.times for row in again.sparsifier.plan()] == [row.times for row in rows]
    near(run, Run(kind, "dense", "block:128x128", width=2048, samples=4096).train(3), kind)


@pytest.mark.parametrize("pattern", ["unstructured", "1:4", "block:4x1", "block:16x16"])
def test_what_stays_dense_says_why(pattern):
    for row in Run(kernels="auto", pattern=pattern).train(2).sparsifier.plan():
        assert row.reason == f"no sparse kernels on cuda for pattern {pattern!r}: dense on masked weights"
    with pytest.raises(ValueError, match=f"no sparse kernels on cuda for pattern '{pattern}'"):
        Run(kernels="sparse", pattern=pattern)


def test_float64_says_why():
    KINDS["float64"] = (torch.float64, None)
    try:
        assert {row.reason for row in Run("float64", "auto").train(2).sparsifier.plan()} == {
            "no sparse kernels for torch.float64, only for torch.float32, torch.bfloat16, torch.float16"
        }
    finally:
        del KINDS["float64"]
