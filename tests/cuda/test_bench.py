"""On a GPU: the benchmarks' own machinery, over cases too small to tell anything."""

from __future__ import annotations

import json

import pytest
import torch

from acdc_kernels.benchmarks import (
    cases,
    cuda_ceilings,
    cuda_timing,
    linear_cuda,
    never_slower_cuda,
    topk_cuda,
    train_cuda,
    update_cuda,
)
from acdc_kernels.benchmarks.harness import Budget
from acdc_kernels.benchmarks.run import run

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:acdc_kernels. the plain torch reference runs on cuda"),
]

CASES = [cases.Case(cases.TINY, 0.9), cases.Case(cases.TINY, 0.9, "layer", dtype=torch.bfloat16)]
STEPS = [update_cuda.Step(cases.Case(cases.TINY, s), o) for s in (0.9, 0.0) for o in ("SGD", "AdamW")]


@pytest.mark.parametrize(("op", "bench", "tiny"), [("topk", topk_cuda, CASES), ("update", update_cuda, STEPS)])
def test_every_contender_runs_and_is_captured_where_it_should(op, bench, tiny, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "QUICK", tiny)
    monkeypatch.setattr(cuda_timing, "QUICK", Budget(clean=1, rounds=2, seconds=1.0, fewest_rounds=1))
    assert run(op, "cuda", quick=True, json=tmp_path / "out.json") == 0
    assert "left out" not in capsys.readouterr().err
    written = json.loads((tmp_path / "out.json").read_text())
    told = written["machine"]["cuda"]
    assert told["name"] == torch.cuda.get_device_name()
    assert told["l2_bytes"] > 0
    expected = {topk_cuda.NOT_ASKED, *update_cuda.NOT_CAPTURED.values()}
    for row in written["rows"]:
        assert row["ours_ms"] > 0
        assert row["peer_ms"] > 0
        if row["backend"] != "reference":
            assert row["timed_as"] == "device", row["ours_no_device_time"]
            assert row["ours_graph_ms"] > 0, row["ours_not_captured"]
            assert row.get("peer_not_captured") in {None, *expected}


LAYERS = [
    linear_cuda.Products(256, 512, 256, (64, 64), (0.5,)),
    linear_cuda.Products(256, 512, 256, (32, 64), (0.75,), torch.float32, tf32=True),
    never_slower_cuda.Grid(256, 512, 256, "block:64x64", (0.5,)),
]
TRAININGS = [
    train_cuda.Case(256, 2, (256,), "block:64x64", 0.75),
    train_cuda.Case(128, 1, (2, 64), "block:32x32", 0.75, heads=2, optimizer="AdamW", autocast=True, compiled=False),
]


@pytest.mark.parametrize(("op", "bench", "tiny"), [("linear", linear_cuda, LAYERS), ("train", train_cuda, TRAININGS)])
def test_every_product_and_step_runs_and_is_captured(op, bench, tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "QUICK", tiny)
    monkeypatch.setattr(cuda_timing, "QUICK", Budget(clean=1, rounds=2, seconds=1.0, fewest_rounds=1))
    assert run(op, "cuda", quick=True, json=tmp_path / "out.json") == 0
    written = json.loads((tmp_path / "out.json").read_text())
    if op == "train":
        assert {row["compiled"] for row in written["rows"]} == {False, True}
    for row in written["rows"]:
        if row["backend"] != "reference":
            assert row["timed_as"] == "device", row["ours_no_device_time"]
            assert row["ours_graph_ms"] > 0, row["ours_not_captured"]
            assert not {name for name in row.get("left_out", {}) if not name.startswith("torch ")}


def test_ceilings_are_what_a_gpu_can_have():
    found = cuda_ceilings.ceilings(cuda_timing.Gpu(), cuda_timing.QUICK)
    assert found["l2_read_gb_per_s"] is None or 100 < found["l2_read_gb_per_s"] < 100_000
    assert 1 < found["cublas_bf16_tflop_per_s"] < 10_000


def test_a_copy_has_a_bandwidth_that_memory_can_have():
    limit = cuda_timing.ceiling(cuda_timing.Gpu(), cuda_timing.QUICK)
    assert 20 < limit.copy_gb_per_s < 50_000
    assert 0 < limit.event_pair_ms < 0.1


def test_extra_memory_of_a_concatenation_is_the_weights_and_their_magnitudes():
    weights = cases.SMALL.weights(device="cuda")
    extra, percent = cuda_timing.extra_memory(
        cuda_timing.Gpu(), lambda: torch.cat([w.flatten() for w in weights]).abs().sum(), weights
    )
    assert extra >= 2 * 4 * cases.SMALL.numel
    assert 200 <= percent < 220
