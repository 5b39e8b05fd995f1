"""`bench topk|update --device cuda`, driven by a device of the test's own: what is timed how, and what the rows say."""

import json

import pytest
import torch

from acdc_kernels import topk_mask, unpack_mask
from acdc_kernels.benchmarks import cases, cuda_timing, topk, topk_cuda, update, update_cuda
from acdc_kernels.benchmarks import machine as stamps
from acdc_kernels.benchmarks.cases import Case, Model
from acdc_kernels.benchmarks.cuda_timing import Ceiling
from acdc_kernels.benchmarks.harness import Budget
from acdc_kernels.benchmarks.run import run

TINY = Case(cases.TINY, 0.9)
BUDGET = Budget(clean=1, rounds=2, seconds=1.0, fewest_rounds=1)
LIMIT = Ceiling(copy_gb_per_s=4000.0, event_pair_ms=0.002)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_topk_moves_the_weights_once_and_the_bits(dtype, size):
    weights = [torch.zeros(n, dtype=dtype) for n in (1, 8, 9, 0)]
    assert topk_cuda.read_bytes(weights) == 18 * size + (1 + 1 + 2)


@pytest.mark.parametrize(("optimizer", "streams"), [("SGD", 5), ("AdamW", 7)])
def test_updates_move_whole_sectors_in_which_a_weight_is_kept(optimizer, streams):
    weights = [torch.zeros(17), torch.zeros(2, 8), torch.zeros(3)]
    bits = [torch.tensor(each, dtype=torch.uint8) for each in ([0, 1, 1], [0, 255], [0])]
    assert update_cuda.full_bytes(weights, optimizer, masked=False) == 36 * 4 * streams
    assert update_cuda.full_bytes(weights, optimizer, masked=True) == 36 * 4 * streams + 6
    assert update_cuda.sector_bytes(bits, optimizer) == 3 * 32 * streams + 6


def test_sectors_of_an_unstructured_mask_are_those_that_chance_leaves():
    bits = update.masks(Case(cases.SMALL, 0.9), cases.SMALL.weights())
    share = update_cuda.sector_bytes(bits, "SGD") / update_cuda.full_bytes(cases.SMALL.weights(), "SGD", masked=True)
    assert 0.3 < share < 1 - 0.9**8 + 0.02  # layers of small weights lose whole sectors more often


def test_cases_have_the_sizes_that_they_are_named_for():
    assert cases.BILLION.numel == pytest.approx(1e9, rel=0.01)
    assert cases.BEYOND_L2.numel == pytest.approx(2e8, rel=0.01)
    assert {(case.model.name, case.dtype) for case in topk_cuda.CASES} == {
        ("resnet50", torch.float32), ("resnet50", torch.bfloat16), ("transformer-1b", torch.float32),
    }  # fmt: skip
    unstructured = {(c.sparsity, c.scope) for c in topk_cuda.CASES if c.pattern == "unstructured"}
    assert unstructured == {(0.9, "global"), (0.95, "global"), (0.98, "global"), (0.9, "layer")}
    assert {case.pattern for case in topk_cuda.CASES} == {"unstructured", *topk.PATTERNS}
    steps = {(s.case.model.name, s.optimizer): set() for s in update_cuda.CASES}
    for step in update_cuda.CASES:
        steps[step.case.model.name, step.optimizer].add(step.case.sparsity)
    assert steps == {
        ("resnet50", "SGD"): {0.0, 0.9, 0.95, 0.98}, ("transformer-200m", "SGD"): {0.0, 0.9},
        ("resnet50", "AdamW"): {0.0, 0.9},
    }  # fmt: skip


def test_peers_that_take_seconds_are_left_out_of_a_billion_weights():
    assert list(topk_cuda.peers(Case(cases.BILLION, 0.9), [])) == ["torch cat+topk", "torch cat+topk+masks"]
    assert list(topk_cuda.peers(Case(cases.RESNET50, 0.9), [])) == list(topk_cuda.PEERS)
    assert set(topk_cuda.SLOW) < set(topk_cuda.PEERS)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_peers_that_make_masks_make_ours(scope, quiet_references):
    case = Case(cases.TINY, 0.9, scope)
    weights = case.model.weights()
    want = [unpack_mask(b, w.shape) for b, w in zip(topk_mask(weights, case.keep()), weights, strict=True)]
    for name, peer in topk_cuda.peers(case, weights).items():
        if name.endswith("masks"):
            got = peer() if scope == "global" else [mask for masks in peer() for mask in masks]
            assert all(map(torch.equal, got, want)), name


def rows_of(bench, case, device, backend="native cuda", **changes):
    device.tick = 1.0
    (group,) = bench.measure(case, device.gpu(**changes), LIMIT, BUDGET, backend)
    return {row["peer"]: row for row in group}


@pytest.mark.parametrize("case", [TINY, Case(cases.TINY, 0.9, "layer", dtype=torch.bfloat16)], ids=lambda c: c.scope)
def test_topk_rows(case, device, quiet_references, monkeypatch):
    monkeypatch.setattr(cuda_timing, "extra_memory", lambda gpu, call, weights: (7, 0.5))
    made = rows_of(topk_cuda, case, device)
    assert list(made) == [*topk_cuda.PEERS, topk.OURS_AGAIN]
    size = case.dtype.itemsize
    for name, row in made.items():
        assert (row["device"], row["threads"], row["dtype"]) == ("cuda", 1, str(case.dtype)[6:])
        assert row["moved_bytes"] == 1272 * size + 40 + 79 + 42
        assert (row["ours_extra_bytes"], row["ours_extra_percent"]) == (7, 0.5)
        if name == topk.OURS_AGAIN:
            assert "peer_extra_bytes" not in row
            assert row["peer_graph_ms"] is not None
        else:
            assert (row["peer_extra_bytes"], row["peer_extra_percent"]) == (7, 0.5)
            assert row["peer_not_captured"] == topk_cuda.NOT_ASKED


@pytest.mark.parametrize("pattern", topk.PATTERNS)
def test_topk_rows_of_patterns(pattern, device, quiet_references):
    case = topk.pattern_case(Model("pair", ((64, 32, 3, 3), (96, 32))), pattern)
    made = rows_of(topk_cuda, case, device)
    assert len(made) == 2
    assert all(row["pattern"] == pattern for row in made.values())


def test_a_peer_that_needs_more_than_the_device_has_is_left_out(device, monkeypatch, capsys, quiet_references):
    def full(weights, keep):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(topk_cuda.PEERS, "torch cat+topk", full)
    assert "torch cat+topk" not in rows_of(topk_cuda, TINY, device)
    assert "torch cat+topk is left out: CUDA out of memory" in capsys.readouterr().err
    monkeypatch.setattr(topk_cuda, "topk_mask", lambda *given: full(*given[:2]))
    with pytest.raises(torch.OutOfMemoryError):
        rows_of(topk_cuda, TINY, device)


@pytest.mark.parametrize("native", [True, False])
def test_wrong_masks_are_not_timed(native, device, monkeypatch, quiet_references):
    def one_too_many(weights, keep, pattern="unstructured"):
        return topk_mask(weights, keep + 1, pattern)

    monkeypatch.setattr(topk_cuda._native, "available", lambda: native)
    monkeypatch.setattr(topk, "topk_mask", one_too_many)
    monkeypatch.setattr(topk_cuda, "topk_mask", one_too_many)
    with pytest.raises(RuntimeError, match="must have the CPU's unstructured masks" if native else "must keep"):
        rows_of(topk_cuda, TINY, device)


@pytest.mark.parametrize("sparsity", [0.9, 0.0])
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_update_rows(optimizer, sparsity, device, quiet_references):
    made = rows_of(update_cuda, update_cuda.Step(Case(cases.TINY, sparsity), optimizer), device)
    peers = [name for name in update.names(Case(cases.TINY, sparsity), optimizer)[1:] if name != update.ROOFLINE]
    assert list(made) == [*peers, *([update_cuda.NOT_SKIPPED] if sparsity else []), update.OURS_AGAIN]
    weights = cases.TINY.weights()
    bits = update.masks(Case(cases.TINY, sparsity), weights)
    full = update_cuda.full_bytes(weights, optimizer, masked=bool(bits))
    for name, row in made.items():
        assert row["case"] == ("tiny/global" if optimizer == "SGD" else "tiny/global/adamw")
        assert row["full_bytes"] == full
        assert row["moved_bytes"] == (update_cuda.sector_bytes(bits, optimizer) if bits else full)
        assert (row["peer_graph_ms"] is None) == (name == "torch AdamW foreach")
        assert (row["timed_as"], row["ours_device_ms"], row["device_speedup"]) == ("device", 1.0, 1.0)
    ratio = row["ours_full_gb_per_s"] / row["ours_gb_per_s"] if row["ours_gb_per_s"] else 1.0
    assert ratio == pytest.approx(full / row["moved_bytes"], rel=2e-3)


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_ours_without_skipping_is_the_optimizers_step(optimizer, quiet_references, monkeypatch):
    weights = cases.TINY.weights()
    grads, bits = update.gradients(weights, seed=1), update.masks(TINY, weights)
    made, real = [], update._optimizer
    monkeypatch.setattr(update, "_optimizer", lambda *given, **more: made.append(real(*given, **more)) or made[-1])
    ours = update.steps(TINY, weights, grads, bits, optimizer)["ours"]
    op = f"masked_{optimizer.lower()}_"
    called, step = [], getattr(update_cuda, op)
    monkeypatch.setattr(
        update_cuda, op, lambda params, *rest, **more: called.append(params) or step(params, *rest, **more)
    )
    plain = update_cuda.without_skipping(weights, grads, bits, optimizer)
    for _ in range(2):
        ours()
        plain()
    assert called[0] is called[1]
    assert all(map(torch.equal, called[0], made[0][1]))
    assert not any(map(torch.equal, called[0], weights))


def test_an_update_that_differs_from_torch_is_not_timed(device, monkeypatch):
    monkeypatch.setattr(update, "MaskedSGD", lambda params, lr, **options: torch.optim.SGD(params, 2 * lr, **options))
    monkeypatch.setattr(torch.optim.SGD, "masks", {}, raising=False)
    with pytest.raises(RuntimeError, match="differs from torch's SGD"):
        rows_of(update_cuda, update_cuda.Step(Case(cases.TINY, 0.0)), device)


@pytest.mark.parametrize(("bench", "case"), [(topk_cuda, TINY), (update_cuda, update_cuda.Step(TINY))])
def test_references_are_not_captured(bench, case, device, quiet_references):
    made = rows_of(bench, case, device, backend="reference", waits=lambda call: True)
    row = next(iter(made.values()))
    assert row["ours_graph_ms"] is None
    assert "plain torch reference" in row["ours_not_captured"]
    assert row["timed_as"] == "eager"
    assert all(row["peer_not_captured"] == row["ours_not_captured"] for who, row in made.items() if who[:4] == "ours")


@pytest.fixture
def cuda(device, monkeypatch, quiet_references):
    """As `run` finds a device."""
    device.tick = 1.0
    monkeypatch.setattr("acdc_kernels.benchmarks.run._why_no_cuda", lambda: "")
    monkeypatch.setattr(cuda_timing, "Gpu", lambda: device.gpu(capture=device.capture_half))
    monkeypatch.setattr(cuda_timing, "ceiling", lambda gpu, budget: LIMIT)
    monkeypatch.setattr(cuda_timing, "QUICK", BUDGET)
    monkeypatch.setattr(stamps, "gpu", lambda: {"name": "Test GPU", "cuda": "13.0"})
    monkeypatch.setattr(topk_cuda, "QUICK", (TINY,))
    monkeypatch.setattr(update_cuda, "QUICK", (update_cuda.Step(TINY), update_cuda.Step(Case(cases.TINY, 0.0))))


@pytest.mark.parametrize("op", ["topk", "update"])
def test_quick_run_writes_rows_and_what_the_device_is(op, cuda, tmp_path, capsys):
    file = tmp_path / "out.json"
    assert run(op, "cuda", quick=True, json=file) == 0
    written = json.loads(file.read_text())
    assert written["complete"]
    want = {"name": "Test GPU", "cuda": "13.0", "copy_gb_per_s": 4000.0, "event_pair_ms": 0.002}
    assert written["machine"]["cuda"] == want
    assert {row["device"] for row in written["rows"]} == {"cuda"}
    assert {row["op"] for row in written["rows"]} == {op}
    printed = capsys.readouterr().out
    assert printed.startswith("Test GPU, a copy moves 4000 GB/s; ")
    assert "thread" not in printed
    assert all(row["peer"] in printed for row in written["rows"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("topk", "cuda", [2, 3]), "threads must be left out for cuda, where the host only launches, got 2, 3"),
    ],
)
def test_bad_requests_say_what_is_wrong(arguments, message, cuda, capsys):
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.err == f"acdc-kernels bench: {message}\n"
    assert captured.out == ""
