"""`bench OP`: what a request must be, what a run writes, and that the cases are what they claim."""

import gc
import json
import os
import platform
import re
import socket
import warnings
from pathlib import Path

import pytest
import torch

from acdc_kernels import topk_mask
from acdc_kernels.benchmarks import (
    cases,
    harness,
    linear,
    linear_peers,
    memory,
    never_slower,
    topk,
    topology,
    train,
    update,
)
from acdc_kernels.benchmarks.harness import ROW_KEYS, Budget
from acdc_kernels.benchmarks.machine import machine
from acdc_kernels.benchmarks.run import main, run
from acdc_kernels.nn.sparse_linear import LinearProduct
from acdc_kernels.train.machine import cores

TYPES = {
    "op": str, "case": str, "pattern": str, "sparsity": float, "dtype": str, "threads": int, "device": str,
    "ours_ms": float, "peer": str, "peer_ms": float, "speedup": float,
}  # fmt: skip
TINY = cases.Case(cases.TINY, 0.9)
FORWARD = linear.Products(48, 40, 16, training=False, sparsities=(0.9,))
TRAINING = linear.Products(48, 40, 16, training=True, sparsities=(0.9,))
GRID = never_slower.Grid(48, 40, 16, sparsities=(0.5, 0.9))
BENCHES = {"topk": topk, "update": update, "linear": linear, "train": train}
PERCEPTRON = train.Case((12, 32, 32, 4), batch=8, sparsity=0.9, flips=1)


@pytest.fixture(autouse=True)
def _tiny_cases(monkeypatch):
    monkeypatch.setattr(topk, "QUICK", (TINY, cases.Case(cases.TINY, 0.9, "layer")))
    monkeypatch.setattr(update, "QUICK", (TINY, cases.Case(cases.TINY, 0.0)))
    monkeypatch.setattr(linear, "QUICK", (FORWARD, TRAINING, topology.Build(count=2, width=40), GRID))
    monkeypatch.setattr(train, "QUICK", (PERCEPTRON,))
    monkeypatch.setattr(
        "acdc_kernels.benchmarks.harness.QUICK", Budget(clean=1, rounds=2, seconds=1.0, fewest_rounds=1)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the reference runs where nothing is compiled
        yield


PEERS = {
    ("topk", "tiny/global", 0.9): [*topk.PEERS, topk.OURS_AGAIN, topk.ROOFLINE],
    ("topk", "tiny/layer", 0.9): [*topk.PEERS, topk.OURS_AGAIN, topk.ROOFLINE],
    ("update", "tiny/global", 0.9): [
        "torch SGD foreach", "torch SGD foreach + bool masks", "torch SGD foreach + float masks",
        "torch SGD fused", "torch SGD fused + bool masks", "torch SGD fused + float masks",
        update.ROOFLINE, update.OURS_AGAIN,
    ],
    ("update", "tiny/global", 0.0): ["torch SGD foreach", "torch SGD fused", update.ROOFLINE, update.OURS_AGAIN],
    ("update", "tiny/global/adamw", 0.9): [
        "torch AdamW foreach", "torch AdamW fused", "torch AdamW fused + bool masks", update.ROOFLINE, update.OURS_AGAIN,
    ],
    ("update", "tiny/global/adamw", 0.0): [
        "torch AdamW foreach", "torch AdamW fused", update.ROOFLINE, update.OURS_AGAIN,
    ],
}  # fmt: skip

SPARSE = [linear_peers.CSR, *([linear_peers.SPARSEPROP] if linear_peers.sparseprop_layer()[0] else [])]
FP16 = [] if LinearProduct.missing(fp16=True) else [linear.FP16]  # forward alone
for case in (FORWARD, TRAINING):
    PEERS["linear", case.name, 0.9] = [
        *(linear.DENSE, linear.BF16, linear.DENSE_AGAIN, *SPARSE, *FP16[case.training :]),  # unstructured
        *(linear.DENSE, linear.BF16, linear.DENSE_AGAIN, *FP16[case.training :]),  # block:4x1
    ]
PEERS["linear", f"{TRAINING.name} of values", 0.9] = PEERS["linear", TRAINING.name, 0.9]
for sparsity in GRID.sparsities:
    PEERS["linear", "planned layer 40->48, 16 samples", sparsity] = [never_slower.DENSE, never_slower.AGAIN]
for part, peers in {
    "compress": ["torch to_sparse_csr", "torch nonzero of the mask"],
    "gather": ["torch masked_select"],
    "scatter": ["torch masked_scatter"],
}.items():
    PEERS["linear", f"{part}, 0.0M weights", 0.9] = 2 * peers
PEERS["train", f"{PERCEPTRON.name}, step", 0.9] = [train.DENSE, train.TORCH, train.TORCH_BF16, train.OURS_AGAIN]
for flip in ("flip to compressed", "flip to dense", "planning"):
    PEERS["train", f"{PERCEPTRON.name}, {flip}", 0.9] = [train.DENSE]


@pytest.mark.parametrize("op", BENCHES)
def test_quick_run_writes_the_rows_of_the_design(op, tmp_path, capsys):
    file = tmp_path / "out.json"
    threads = torch.get_num_threads()
    assert run(op, threads=[1], quick=True, json=file) == 0
    assert torch.get_num_threads() == threads
    written = json.loads(file.read_text())
    assert set(written) == {"machine", "complete", "peak_bytes", "rows"}
    assert written["complete"]
    peaks = [row["peak_bytes"] for row in written["rows"]]
    assert 0 < peaks[0] <= peaks[-1] == written["peak_bytes"]
    found = {}
    for row in written["rows"]:
        assert set(ROW_KEYS) <= set(row)
        assert all(isinstance(row[key], kind) for key, kind in TYPES.items())
        assert row["ours_ms"] > 0
        assert row["speedup"] == pytest.approx(row["peer_ms"] / row["ours_ms"], rel=2e-3)
        found.setdefault((row["op"], row["case"], row["sparsity"]), []).append(row["peer"])
    assert {key: sorted(peers) for key, peers in found.items()} == {
        key: sorted(peers) for key, peers in PEERS.items() if key[0] == op
    }
    printed = capsys.readouterr().out
    assert all(row["peer"] in printed for row in written["rows"])


@pytest.mark.parametrize("op", BENCHES)
def test_json_of_a_run_that_dies_holds_what_it_measured(op, tmp_path, monkeypatch):
    bench, files, file = BENCHES[op], [], tmp_path / "out.json"
    measure = bench.measure

    def killed(*given, **options):
        for group in measure(*given, **options):
            files.append(file.read_text())
            if len(files) == 3:
                raise KeyboardInterrupt
            yield group

    monkeypatch.setattr(bench, "measure", killed)
    file.write_text("another run's")
    with pytest.raises(KeyboardInterrupt):
        run(op, threads=[1, 1], quick=True, json=file)
    assert files[0] == "another run's"
    assert files[2] == file.read_text()
    first, second = map(json.loads, files[1:])
    assert not first["complete"]
    assert not second["complete"]
    assert 0 < len(first["rows"]) < len(second["rows"])
    assert second["rows"][: len(first["rows"])] == first["rows"]
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


@pytest.fixture
def tensors():
    """Counts the tensors made from here on that are still there."""
    gc.collect()
    gc.freeze()
    yield lambda: sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())
    gc.unfreeze()


@pytest.mark.parametrize("op", BENCHES)
def test_nothing_of_a_case_lives_in_the_next(op, monkeypatch, tensors):
    bench, held, counts = BENCHES[op], [], harness.thread_counts

    def watched(threads):
        for count in counts(threads):
            held.append(tensors())
            yield count

    for module in (bench, never_slower, topology):
        monkeypatch.setattr(module, "thread_counts", watched)
    for case in bench.QUICK:
        assert list(bench.measure(case, [1, 1], harness.QUICK, "reference", with_memory=False))
        harness.let_go()
        assert tensors() == 0, case
    if op != "update":  # whose optimizers make their state at the first count
        assert held[0::2] == held[1::2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sorting",), "op must be one of topk, update, linear, train, got 'sorting'"),
        (("topk", "tpu"), "device must be cpu or cuda, got 'tpu'"),
        (("topk", "cpu", [0]), r"threads must be in \[1, \d+\]"),
        (("topk", "cpu", [1, 10**6]), r"threads must be in \[1, \d+\].* got 1000000"),
    ],
)
def test_bad_requests_say_what_is_wrong(arguments, message, capfd):
    assert run(*arguments) == 2
    captured = capfd.readouterr()
    assert re.search(message, captured.err)
    assert captured.out == ""


def test_cuda_without_a_device_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run("topk", "cuda") == 2
    assert "got cuda: " in capsys.readouterr().err


def test_json_in_a_missing_folder_is_an_error_before_anything_runs(tmp_path, capsys):
    assert run("topk", quick=True, json=tmp_path / "no" / "out.json") == 2
    assert "json must lie in a folder that exists" in capsys.readouterr().err


@pytest.mark.skipif(not Path(os.devnull).is_char_device(), reason="the system has no null device")
def test_json_must_be_a_file_that_can_be_replaced(tmp_path, capsys):
    assert run("topk", quick=True, json=Path(os.devnull)) == 2
    assert run("topk", quick=True, json=tmp_path) == 2
    assert capsys.readouterr().err.count("json must be a file, got ") == 2
    assert Path(os.devnull).is_char_device()


def test_main_takes_repeated_threads(monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setattr("acdc_kernels.benchmarks.run.run", lambda *given: seen.update(given=given) or 0)
    assert main(["update", "--threads", "1", "--threads", "2", "--quick", "--json", str(tmp_path / "x.json")]) == 0
    assert seen["given"] == ("update", "cpu", [1, 2], True, tmp_path / "x.json")


def test_machine_stamp_is_plain_json_without_host_name_or_path():
    stamp = machine()
    text = json.dumps(stamp)
    assert {"cpu", "cores", "kernels", "caches", "memory_gib", "versions", "date", "commit"} <= set(stamp)
    assert stamp["cores"] == cores()
    assert "/" not in text.replace(platform.release(), "").replace(stamp["cpu"], "")
    assert json.dumps(socket.gethostname()) not in text


@pytest.mark.parametrize("model", cases.MODELS.values(), ids=list(cases.MODELS))
def test_models_count_their_weights(model):
    assert model.numel == sum(torch.empty(shape, device="meta").numel() for shape in model.shapes)


def test_resnet50_has_54_tensors_and_25_million_weights():
    assert (len(cases.RESNET50.shapes), cases.RESNET50.numel) == (54, 25_502_912)


def test_weights_are_reproducible_kaiming_normals():
    first, second = cases.SMALL.weights(), cases.SMALL.weights()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert first[1].std().item() == pytest.approx((2 / 1024) ** 0.5, rel=0.01)


@pytest.mark.parametrize(("scope", "want"), [("global", 127), ("layer", [31, 63, 33])])
def test_keep_is_n_minus_the_rounded_sparsity_times_n(scope, want):
    assert [torch.Size(shape).numel() for shape in cases.TINY.shapes] == [315, 627, 330]
    assert cases.Case(cases.TINY, 0.9, scope).keep() == want


def test_a_wrong_mask_is_not_timed(monkeypatch):
    def one_too_many(weights, keep):
        return topk_mask(weights, keep + 1)

    monkeypatch.setattr(topk, "topk_mask", one_too_many)
    with pytest.raises(RuntimeError, match="must keep"):
        topk.check(TINY, TINY.model.weights())


def test_smallest_weights_kept_are_not_timed(monkeypatch):
    def smallest(weights, keep):
        return topk_mask([1 / w for w in weights], keep)

    monkeypatch.setattr(topk, "topk_mask", smallest)
    with pytest.raises(RuntimeError, match="dropped a weight larger"):
        topk.check(TINY, TINY.model.weights())


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_an_update_that_differs_from_torch_is_not_timed(optimizer, monkeypatch):
    torchs = getattr(torch.optim, optimizer)

    def slower(params, lr, **options):
        return torchs(params, lr=2 * lr, **options)

    monkeypatch.setattr(update, f"Masked{optimizer}", slower)
    dense = cases.Case(cases.TINY, 0.0)
    monkeypatch.setattr(torchs, "masks", {}, raising=False)
    with pytest.raises(RuntimeError, match=f"differs from torch's {optimizer}"):
        update.check(dense, dense.model.weights(), optimizer)


@pytest.mark.parametrize("case", [FORWARD, TRAINING], ids=lambda case: case.what)
def test_a_wrong_product_is_not_timed(case, monkeypatch):
    def check(what, got, want):
        linear_check(what, got + 0.5, want)

    linear_check = linear.check
    monkeypatch.setattr(linear, "check", check)
    with pytest.raises(RuntimeError, match="must be the dense product with the kept weights"):
        next(case.measure([1], Budget(), "reference"))


def point(ours_ms, again_ms, sparsity, dense_ms=10.0, threads=1):
    shared = {"case": "planned layer 8->8", "threads": threads, "sparsity": sparsity, "ours_ms": ours_ms}
    shared["plan"] = {"forward": "sparse", "weight gradient": "dense"}
    peers = ((never_slower.DENSE, dense_ms), (never_slower.AGAIN, again_ms))
    return [{**shared, "peer": peer, "peer_ms": ms} for peer, ms in peers]


def test_the_verdict_counts_points_above_what_noise_explains():
    assert never_slower.verdict([]) == []
    rows = [
        *(row for i in range(40) for row in point(5.0, 10.1, sparsity=0.5, threads=i)),
        *point(10.35, 10.1, sparsity=0.9),
        *point(10.5, 10.1, sparsity=0.95),
        *point(2.0, 1.0, sparsity=0.99, dense_ms=0.2),  # too short to count
    ]
    head, count, *worst, means = never_slower.verdict(rows)
    assert head.startswith("never slower: 42 points of at least 0.3 ms, worst 1.050x dense; two dense layers differ by")
    assert head.endswith("up to 1.0% (95th percentile 1.0%)")
    assert count == "  1 points above 1.03 and that percentile"
    assert worst == ["  1.050x dense: planned layer 8->8, 95%, threads: 1; forward sparse, weight gradient dense"]
    head, count = never_slower.verdict(rows[-6:])[:2]  # as of --quick
    assert head.endswith("two dense layers differ by up to 1.0%")
    assert count == "  1 points above 1.03 and that difference"
    assert means.endswith("mean: 2.00x at 50%, 0.97x at 90%, 0.95x at 95%, 0.10x at 99%")


def test_the_grid_has_the_points_that_it_must_have():
    points = {(g.rows, g.cols, g.samples, s) for g in never_slower.GRID for s in g.sparsities}
    assert len(points) >= 60
    assert min(s for *_, s in points) == 0
    assert max(s for *_, s in points) == 0.99


def test_summaries_name_what_they_are_over():
    row = {"peer": linear.DENSE, "what": "forward", "pattern": "unstructured", "samples": 128, "threads": 1}
    _, line, *_ = linear.summary([{**row, "sparsity": 0.9, "speedup": s} for s in (2.0, 8.0)]).splitlines()
    assert line.split(", ")[:4] == ["  forward", "unstructured", "N <= 512", "1 thread"]
    assert line.split()[-4:] == ["90%", "2.00x", "4.00x", "8.00x"]
    row = {"peer": train.DENSE, "case": f"{train.CASES[0].name}, step", "sparsity": 0.9, "threads": 2}
    _, line = train.summary([{**row, "step_ratio": 0.4}]).splitlines()
    assert line.startswith("  mlp 784-2048-2048-2048-10, batch 128, step, 90%, 2 threads")
    assert line.endswith("0.400  (target <= 0.45)")


@pytest.mark.skipif(bool(memory.why_not()), reason=memory.why_not())
def test_extra_memory_of_a_concatenation_is_at_least_the_weights():
    extra = memory.measure(cases.Case(cases.SMALL, 0.9), "torch cat+kthvalue", threads=1)
    assert extra.weights == 4 * cases.SMALL.numel
    assert 95 < extra.percent < 500
    assert extra.reserved_percent > 95
