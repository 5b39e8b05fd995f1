"""`bench train --device cuda`, driven by a device of the test's own: what the steps do and what the rows say."""

import functools
import json
import warnings

import pytest
import torch

from acdc_kernels import Sparsifier
from acdc_kernels.benchmarks import cuda_ceilings, cuda_timing, train_cuda
from acdc_kernels.benchmarks import machine as stamps
from acdc_kernels.benchmarks.cuda_timing import Ceiling
from acdc_kernels.benchmarks.harness import Budget
from acdc_kernels.benchmarks.run import run
from acdc_kernels.benchmarks.train_cuda import AGAIN, DENSE, Case

BUDGET = Budget(clean=1, rounds=2, seconds=1.0, fewest_rounds=1)
LIMIT = Ceiling(copy_gb_per_s=4000.0, event_pair_ms=0.002)
STACK = Case(64, 2, (16,), "block:32x32", 0.75, compiled=False)
TRANSFORMER = Case(64, 1, (2, 4), "block:32x32", 0.75, heads=2, optimizer="AdamW", autocast=True, compiled=False)


@pytest.fixture(autouse=True)
def _quiet():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the reference runs
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def sparse(monkeypatch):
    """A CPU plans dense products by itself."""
    monkeypatch.setattr(train_cuda, "Sparsifier", functools.partial(Sparsifier, kernels="sparse"))


def groups_of(case, device, backend="triton", **changes):
    device.tick = 1.0
    return list(train_cuda.measure(case, device.gpu(**changes), LIMIT, BUDGET, backend))


@pytest.mark.parametrize("case", [STACK, TRANSFORMER], ids=lambda case: case.optimizer)
def test_rows_of_steps(case, device, sparse):
    (group,) = groups_of(case, device)
    assert [row["peer"] for row in group] == [DENSE, f"torch {case.optimizer} fused", AGAIN]
    for row in group:
        assert (row["op"], row["dtype"], row["pattern"], row["sparsity"]) == (
            "train", "bfloat16", "block:32x32", 0.75,
        )  # fmt: skip
        assert row["step_ratio"] == row["eager_step_ratio"] == row["graph_step_ratio"] == 1.0
        assert row["saving_share"] == 0.0
        assert not {"moved_bytes", "ours_gb_per_s", "of_copy"} & set(row)
    assert {kernel for *_, kernel in group[0]["plan"]} == {"sparse"}
    counted = group[0]["flop_ratio"]
    assert 0.25 <= counted < (0.251 if case is STACK else 0.3)  # attention has no weights


def test_a_stack_is_compressed_from_the_start_and_stays_what_it_is(sparse):
    data = STACK.data("cpu")
    made = train_cuda.training(STACK, "cpu", data, "compressed")
    assert made.sparsifier.phase.kind == "compressed"
    assert made.sparsifier.achieved_sparsity() == 0.75
    before = [p.detach().clone() for p in made.model.parameters()]
    for _ in range(3):
        made.step()()
    assert all(map(torch.equal, before, made.model.parameters()))
    assert made.sparsifier.step_count == 5
    dense = train_cuda.training(STACK, "cpu", data, "dense")
    assert dense.sparsifier.phase.kind == "dense"
    assert train_cuda.training(STACK, "cpu", data, "fused").sparsifier is None
    assert [p.dtype for p in dense.model.parameters()] == [torch.bfloat16] * 4


def test_a_transformer_attends_to_what_came_before():
    torch.manual_seed(0)
    block, x = train_cuda.Block(64, 2), torch.randn(1, 4, 64)
    y = block(x)
    x[0, 3] += 1.0
    changed = (block(x) - y).abs().amax(-1)[0]
    assert not changed[:3].any()
    assert changed[3] > 0
    attention, z = train_cuda.Attention(64, 2), torch.randn(1, 3, 64)
    query, key, value = (
        part.view(3, 2, 32).transpose(0, 1) for part in attention.inputs(z)[0].split(64, dim=-1)
    )  # [heads, sequence, 32]
    scores = (query @ key.transpose(1, 2) / 32**0.5).masked_fill(torch.ones(3, 3).triu(1).bool(), -torch.inf)
    want = attention.output((scores.softmax(-1) @ value).transpose(0, 1).flatten(1))
    assert torch.allclose(attention(z)[0], want, atol=1e-5)


def test_compiled_steps_have_rows_of_their_own(device, monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "compile", lambda model, fullgraph: seen.append(fullgraph) or model)
    eager, compiled = groups_of(Case(64, 2, (16,), "block:32x32", 0.75), device)
    assert seen == [True] * 3
    assert {row["compiled"] for row in eager} == {False}
    assert {row["compiled"] for row in compiled} == {True}
    assert compiled[0]["case"] == eager[0]["case"].replace(", step", ", compiled step")


def test_a_step_that_does_not_compile_is_left_out_and_named(device, monkeypatch, capsys):
    def fails(model, fullgraph):
        def call(*given):
            raise RuntimeError("no\nmore")

        return call

    monkeypatch.setattr(torch, "compile", fails)
    assert len(groups_of(Case(64, 2, (16,), "block:32x32", 0.75), device)) == 1
    assert "the compiled compressed step is left out: RuntimeError: no\n" in capsys.readouterr().err


def test_references_are_not_captured(device):
    ((row, *_),) = groups_of(STACK, device, "reference")
    assert "plain torch reference" in row["ours_not_captured"]
    assert "graph_step_ratio" not in row


def test_the_summary_names_the_target():
    case = train_cuda.CASES[0]
    row = {"peer": DENSE, "case": f"{case.name}, step", "pattern": case.pattern, "sparsity": case.sparsity}
    row |= {"step_ratio": 0.31, "flop_ratio": 0.1, "saving_share": 0.767}
    line = train_cuda.summary([row, {**row, "peer": AGAIN}]).splitlines()[1]
    assert line.endswith(
        ": 0.310 device, 0.100 by counting, 0.767 of that saving  (target 0.4, stretch 0.3 on an H200)"
    )
    assert "target" not in train_cuda.summary([{**row, "pattern": "block:64x64"}])


def test_quick_run_writes_rows(device, monkeypatch, tmp_path, capsys):
    device.tick = 1.0
    monkeypatch.setattr("acdc_kernels.benchmarks.run._why_no_cuda", lambda: "")
    monkeypatch.setattr(cuda_timing, "Gpu", device.gpu)
    monkeypatch.setattr(cuda_timing, "ceiling", lambda gpu, budget: LIMIT)
    monkeypatch.setattr(cuda_timing, "QUICK", BUDGET)
    monkeypatch.setattr(cuda_ceilings, "SQUARE", 64)
    monkeypatch.setattr(cuda_ceilings, "l2_reader", lambda gpu: (device.contender("read", 0.0), 1_000_000))
    monkeypatch.setattr(stamps, "gpu", lambda: {"name": "Test GPU", "cuda": "13.0"})
    monkeypatch.setattr(train_cuda, "QUICK", (STACK,))
    monkeypatch.setattr("acdc_kernels.benchmarks.run.has_kernel", lambda op, kind: False)
    file = tmp_path / "out.json"
    assert run("train", "cuda", quick=True, json=file) == 0
    written = json.loads(file.read_text())
    assert written["complete"]
    assert {row["backend"] for row in written["rows"]} == {"reference"}
    assert "step ratio: compressed step / dense step" in capsys.readouterr().out
