"""`bench linear --device cuda`, driven by a device of the test's own and the plain torch reference."""

import json
import warnings

import pytest
import torch

from acdc_kernels.benchmarks import (
    cuda_ceilings,
    cuda_choice,
    cuda_timing,
    linear_cuda,
    linear_cuda_peers,
    never_slower_cuda,
)
from acdc_kernels.benchmarks import machine as stamps
from acdc_kernels.benchmarks.cuda_timing import Ceiling
from acdc_kernels.benchmarks.harness import Budget
from acdc_kernels.benchmarks.linear_cuda import FORWARD, INPUT_GRADIENT, PRODUCTS, WEIGHT_GRADIENT, Products
from acdc_kernels.benchmarks.linear_cuda_peers import AGAIN, ALL, BSR, BSR_TUNED, DENSE, MASKED, TWO_FOUR
from acdc_kernels.benchmarks.run import run
from acdc_kernels.ops.block_linear import configs, contract

BUDGET = Budget(clean=1, rounds=2, seconds=1.0, fewest_rounds=1)
LIMIT = Ceiling(copy_gb_per_s=4000.0, event_pair_ms=0.002)
TINY = Products(64, 128, 32, (32, 64), (0.5,))
SINGLE = Products(64, 128, 32, (32, 64), (0.75,), torch.float32, tf32=True)
GRID = never_slower_cuda.Grid(64, 128, 32, "block:32x32", (0.5,))
BLOCK_OPS = (contract.block_linear_op, contract.block_linear_backward_op)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setattr(cuda_choice, "BUDGET", BUDGET)
    monkeypatch.setattr(cuda_ceilings, "SQUARE", 64)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # many small products
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the reference runs
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def torch_kernels(monkeypatch):
    """What torch has for a GPU alone, in plain torch."""

    def bsr_dense_mm(matrix, x):
        return matrix.to_dense() @ x

    def bsr_dense_addmm(placeholder, matrix, x, *, beta, alpha, out, meta):
        assert placeholder is out
        assert (beta, alpha) == (0, 1)
        assert x.shape[1] // meta["SPLIT_N"] in {64, 128}
        return out.copy_(matrix.to_dense() @ x)

    monkeypatch.setattr("torch.sparse._triton_ops.bsr_dense_mm", bsr_dense_mm, raising=False)
    monkeypatch.setattr("torch.sparse._triton_ops.bsr_dense_addmm", bsr_dense_addmm, raising=False)
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", lambda weight: weight)


def groups_of(case, device, backend="triton", **changes):
    device.tick = 1.0
    gpu = device.gpu(machine=lambda: (132, (9, 0)), **changes)
    return list(linear_cuda.measure(case, gpu, LIMIT, BUDGET, backend))


def test_rows_of_products(device, torch_kernels):
    case = Products(64, 128, 128, (32, 64), (0.5,))
    groups = groups_of(case, device)
    assert [{row["what"] for row in group} for group in groups] == [{what} for what in (*PRODUCTS, ALL)]
    assert [[row["peer"] for row in group] for group in groups] == [
        [DENSE, MASKED, BSR, BSR_TUNED, TWO_FOUR, AGAIN],
        [DENSE, BSR, BSR_TUNED, AGAIN],
        [DENSE, MASKED, AGAIN],
        [DENSE, MASKED, AGAIN],
    ]
    for group, what in zip(groups, PRODUCTS, strict=False):
        found = configs.candidates(what, "bfloat16", (64, 128, 64 * 64, 32, 64), 128, 132, (9, 0))
        for row in group:
            assert (row["device"], row["dtype"], row["pattern"], row["sparsity"]) == (
                "cuda", "bfloat16", "block:32x64", 0.5,
            )  # fmt: skip
            assert list(row["config_ms"]) == [str(config) for config in found]
            assert row["default_config"] == str(found[0])
            assert row["default_ms"] == 1.0
            assert row["config"] in row["config_ms"]
            assert row["timed_as"] == "device"
            assert "left_out" not in row
            assert row["tflop_per_s"] == pytest.approx(2 * 128 * 64 * 64 / 1e9, rel=1e-3)  # in a millisecond
        assert group[0]["of_dense_rate"] == pytest.approx(0.5, rel=2e-3)
    assert groups[3][0]["config"] == ", ".join(group[0]["config"] for group in groups[:3])
    assert groups[3][0]["tflop_per_s"] == pytest.approx(3 * groups[0][0]["tflop_per_s"], rel=1e-3)


def test_bytes_that_have_to_move():
    o = linear_cuda_peers.operands((64, 128), 32, (32, 64), 0.5, torch.bfloat16, "cpu")
    x, y, kept, whole = 32 * 128, 32 * 64, 64 * 64, 64 * 128
    assert linear_cuda.least_bytes(o, FORWARD) == linear_cuda.least_bytes(o, INPUT_GRADIENT) == 2 * (x + y + kept)
    assert linear_cuda.least_bytes(o, WEIGHT_GRADIENT) == 2 * (x + y + whole)
    assert linear_cuda.least_bytes(o, ALL) == 2 * (3 * (x + y) + 2 * kept + whole)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 1.0])
def test_operands_keep_as_many_whole_blocks_as_asked(sparsity):
    o = linear_cuda_peers.operands((96, 256), 8, (32, 64), sparsity, torch.float16, "cpu")
    keep = max(1, 12 - round(12 * sparsity))
    assert o.topology.kept == keep * 32 * 64 == int(o.mask.sum())
    blocks = o.mask.view(3, 32, 4, 64).transpose(1, 2).flatten(2).sum(-1)
    assert set(blocks.flatten().tolist()) <= {0, 32 * 64}
    assert not o.weight[o.mask == 0].any()


def test_tf32_is_what_torch_says_meanwhile_and_no_longer(device, monkeypatch):
    said, before = [], torch.backends.cuda.matmul.fp32_precision
    real = linear_cuda.ours

    def watched(*given):
        said.append(torch.backends.cuda.matmul.fp32_precision)
        return real(*given)

    monkeypatch.setattr(linear_cuda, "ours", watched)
    groups = groups_of(SINGLE, device)
    assert set(said) == {"tf32"}
    assert torch.backends.cuda.matmul.fp32_precision == before
    assert all(row["tf32"] and ", tf32, " in row["case"] for group in groups for row in group)
    names = {row["peer"] for group in groups for row in group}
    assert names == {DENSE, MASKED, AGAIN}  # BSR's sums of float32 are float64's


@pytest.mark.parametrize("what", [FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT])
def test_a_config_with_wrong_answers_or_none_is_left_out_and_named(what, device, torch_kernels, monkeypatch, capsys):
    bad, worse = (
        str(config) for config in configs.candidates(what, "bfloat16", (64, 128, 4096, 32, 64), 128, 132, (9, 0))[:2]
    )
    name, place = {
        FORWARD: ("block_linear_op", 5), INPUT_GRADIENT: ("block_linear_backward_op", 9),
        WEIGHT_GRADIENT: ("block_linear_backward_op", 10),
    }[what]  # fmt: skip
    real = getattr(contract, name)

    def sabotaged(*given):
        if given[place] == worse:
            raise RuntimeError("out of resources: shared memory\nmore")
        result = real(*given)
        for each in (result,) if isinstance(result, torch.Tensor) else result:
            if given[place] == bad:
                each += 1e-3 if what == WEIGHT_GRADIENT else 0.1  # the one is near everywhere, but 0 nowhere
        return result

    monkeypatch.setattr(contract, name, sabotaged)
    case = Products(64, 128, 128, (32, 64), (0.5,))
    row = next(row for group in groups_of(case, device) for row in group if row["what"] == what)
    assert set(row["left_out"]) == {bad, worse}
    assert "a wrong answer" in row["left_out"][bad]
    assert row["left_out"][worse] == "RuntimeError: out of resources: shared memory"
    assert row["config"] not in row["left_out"]
    assert row["default_config"] == bad
    assert row["default_ms"] is None
    assert f"{bad} is left out: a wrong answer" in capsys.readouterr().err
    assert f"LEFT OUT {row['case']}, block:32x64: {bad}: a wrong answer" in linear_cuda.summary([row])


def test_nothing_is_timed_where_every_config_fails(device, monkeypatch):
    def fails(*given):
        raise ValueError("no")

    monkeypatch.setattr(contract, "block_linear_op", fails)
    with pytest.raises(RuntimeError, match=r"must run with one config at least, got {.*ValueError: no"):
        groups_of(TINY, device)


def test_nan_never_passes():
    want = torch.ones(4, dtype=torch.float64)
    assert not cuda_choice.wrong(torch.ones(4), want, "float32")
    assert cuda_choice.wrong(torch.tensor([1.0, torch.nan, 1.0, 1.0]), want, "bfloat16")
    assert cuda_choice.wrong(torch.full((4,), 1.02), want, "bfloat16")
    assert not cuda_choice.wrong(torch.full((4,), 1.005), want, "bfloat16")


def test_the_fastest_is_the_one_that_takes_the_shortest(device):
    calls = {str(ms): device.contender(str(ms), ms) for ms in (3.0, 1.0, 2.0)}
    assert cuda_choice.fastest(device.gpu(), calls) == ("1.0", {"3.0": 3.0, "1.0": 1.0, "2.0": 2.0})
    assert cuda_choice.fastest(device.gpu(), {"only": calls["3.0"]}) == ("only", {})
    assert cuda_choice.fastest(device.gpu(waits=lambda call: True), calls)[0] == "1.0"


def test_peers_that_a_torch_lacks_are_left_out_and_named(device, monkeypatch):
    monkeypatch.setattr("torch.sparse._triton_ops.bsr_dense_mm", None, raising=False)
    monkeypatch.setattr("torch.sparse._triton_ops.bsr_dense_addmm", None, raising=False)
    (row, *_), *_ = groups_of(TINY, device)
    assert "not callable" in row["left_out"][BSR]
    assert "Only CUDA tensors" in row["left_out"][TWO_FOUR]


def test_the_reference_is_timed_once_and_not_captured(device, torch_kernels):
    (row, *_), *_ = groups_of(TINY, device, "reference")
    assert (row["config"], row["default_config"]) == ("reference", "reference")
    assert "plain torch reference" in row["ours_not_captured"]


def test_rows_of_the_planned_layer_have_its_plan(device):
    (group,) = groups_of(GRID, device)
    assert [row["peer"] for row in group] == [DENSE, AGAIN]
    for row in group:
        assert set(row["plan"]) == set(PRODUCTS)
        assert all(kernel.startswith("dense (") for kernel in row["plan"].values())  # on a CPU
        assert row["planning_s"] >= 0 == row["compiling_s"]
    by_device, count, means, *eager = never_slower_cuda.verdict(group)
    assert by_device.startswith("by the device's time, never slower: 1 points of at least 0.05 ms, worst 1.000x dense")
    assert count.startswith("  0 points above 1.03")
    assert means.endswith("1.00x at 50%")
    assert eager[0].startswith("by the eager time, never slower: 1 points")


def test_the_verdict_of_a_gpu_is_by_the_devices_time(device):
    (group,) = groups_of(GRID, device)
    slow = [{**row, "ours_device_ms": 1.1} for row in group]
    assert "worst 1.100x" in never_slower_cuda.verdict(slow)[0]
    assert never_slower_cuda.verdict([{**row, "ours_device_ms": None} for row in group])[0].startswith("by the eager")


def test_the_grid_has_sixty_points():
    points = {(g.rows, g.cols, g.samples, g.pattern, s) for g in never_slower_cuda.GRID for s in g.sparsities}
    assert len(points) == 60


def test_cases_are_those_that_targets_are_set_for():
    main = [case for case in linear_cuda.CASES if isinstance(case, Products) and case.dtype is torch.bfloat16]
    found = {(c.pattern, s) for c in main for s in c.sparsities if (c.rows, c.cols, c.samples) == (4096, 4096, 8192)}
    for (_, pattern), goals in linear_cuda.TARGETS.items():
        assert {(pattern, sparsity) for sparsity in goals} <= found
    assert {c.dtype for c in linear_cuda.CASES if isinstance(c, Products)} == {
        torch.bfloat16, torch.float16, torch.float32,
    }  # fmt: skip
    for case in linear_cuda.CASES:
        if isinstance(case, Products):
            assert case.rows % case.block[0] == case.cols % case.block[1] == 0


def test_a_summary_names_the_target(device, torch_kernels):
    (row, *_), *_ = groups_of(TINY, device)
    row |= {"case": "4096->4096, 8192 samples, forward", "shape": [4096, 4096], "samples": 8192, "sparsity": 0.9}
    row |= {"pattern": "block:128x128", "device_speedup": 5.6}
    assert "5.60x" in (line := linear_cuda.summary([row]).splitlines()[1])
    assert line.endswith("(target 5.5x on an H200)")
    assert "target" not in linear_cuda.summary([{**row, "samples": 2048}])


def test_ceilings_are_rates_of_what_was_timed(device, monkeypatch):
    device.tick = 1.0
    monkeypatch.setattr(cuda_ceilings, "l2_reader", lambda gpu: (device.contender("read", 0.0), 1_000_000))
    found = cuda_ceilings.ceilings(device.gpu(), BUDGET)
    assert found == {
        "l2_read_gb_per_s": cuda_ceilings.TIMES, "l2_read_bytes": 1_000_000,
        "cublas_bf16_tflop_per_s": pytest.approx(2 * 64**3 / 1e9, rel=1e-3),
    }  # fmt: skip
    assert cuda_ceilings.line(found).startswith("reads from L2 64 GB/s; cuBLAS, 64 cubed in bfloat16, ")


def test_without_triton_reads_from_l2_are_not_measured(device, monkeypatch):
    def missing(gpu):
        raise ImportError("no triton")

    device.tick = 1.0
    monkeypatch.setattr(cuda_ceilings, "l2_reader", missing)
    found = cuda_ceilings.ceilings(device.gpu(), BUDGET)
    assert (found["l2_read_gb_per_s"], found["no_l2_read"]) == (None, "no triton")
    assert "reads from L2 not measured: no triton" in cuda_ceilings.line(found)


def test_quick_run_writes_rows_and_ceilings(device, torch_kernels, monkeypatch, tmp_path, capsys):
    device.tick = 1.0
    monkeypatch.setattr("acdc_kernels.benchmarks.run._why_no_cuda", lambda: "")
    monkeypatch.setattr(cuda_timing, "Gpu", lambda: device.gpu(machine=lambda: (132, (9, 0))))
    monkeypatch.setattr(cuda_timing, "ceiling", lambda gpu, budget: LIMIT)
    monkeypatch.setattr(cuda_timing, "QUICK", BUDGET)
    monkeypatch.setattr(cuda_ceilings, "l2_reader", lambda gpu: (device.contender("read", 0.0), 1_000_000))
    monkeypatch.setattr(stamps, "gpu", lambda: {"name": "Test GPU", "cuda": "13.0"})
    monkeypatch.setattr("acdc_kernels.benchmarks.run.has_kernel", lambda op, kind: op in BLOCK_OPS and kind == "cuda")
    monkeypatch.setattr(linear_cuda, "QUICK", (TINY, GRID))
    file = tmp_path / "out.json"
    assert run("linear", "cuda", quick=True, json=file) == 0
    written = json.loads(file.read_text())
    assert written["complete"]
    assert {"copy_gb_per_s", "l2_read_gb_per_s", "cublas_bf16_tflop_per_s"} <= set(written["machine"]["cuda"])
    assert {row["backend"] for row in written["rows"]} == {"triton"}
    printed = capsys.readouterr().out
    assert printed.startswith("reads from L2 64 GB/s; cuBLAS, ")
    assert all(row["peer"] in printed for row in written["rows"])
    assert "times cuBLAS, by the device's time" in printed
    assert "by the device's time, never slower: 1 points" in printed
