"""What a run reports, and how several runs are compared."""

import copy
import functools
import json
import operator
import re
import struct

import pytest

from acdc_kernels.train import tables
from acdc_kernels.train.command import show_reports
from acdc_kernels.train.comparison import comparison, costs
from acdc_kernels.train.errors import UserError
from acdc_kernels.train.report import read_report, summary
from acdc_kernels.train.saving import Saving, saving, training_seconds

from .conftest import quiet


def png_size(path):
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">2I", head[16:24])


def test_the_report_of_an_acdc_run(finished):
    report = read_report(finished())
    sparse, dense = report["models"]["sparse"], report["models"]["dense"]
    assert sparse["nonzeros"] == sparse["weights"] - round(0.9 * sparse["weights"])
    assert sparse["sparsity"] == pytest.approx(0.9, abs=1e-6)
    assert sum(layer["nonzeros"] for layer in sparse["layers"]) == sparse["nonzeros"]
    assert [layer["name"] for layer in sparse["layers"]] == ["1", "3", "5"]
    for model in (sparse, dense):
        row = report["history"][model["epoch"] - 1]
        assert model["val_accuracy"] == row["val_accuracy"]
        assert 0.5 < model["test_accuracy"] <= 1
    flops = [row["flops"] for row in report["history"]]
    assert report["flops"]["training"] == pytest.approx(sum(flops) / 5)
    assert report["flops"]["compressed_step"] == pytest.approx((flops[1] + flops[4]) / 2)
    assert report["flops"]["inference"] == sparse["inference_flops"]
    assert report["data"]["samples"] == {"train": 1197, "validation": 240, "test": 360}
    assert report["data"]["unit"] == "images"
    weights, biases = 64 * 2048 + 2048 * 2048 + 2048 * 10, 2048 + 2048 + 10
    held = {name: report["memory"][f"{name}_bytes"] for name in ("model", "optimizer", "mask", "twin_on_disk")}
    size = 4 * (weights + biases)
    assert held == {"model": size, "optimizer": size, "mask": weights // 8, "twin_on_disk": size}
    assert report["memory"]["peak_bytes"] > 3 * size
    rows = report["plan"]
    assert {row["layer"] for row in rows} == {"1", "3", "5"}
    assert {row["product"] for row in rows} <= {"forward", "input gradient", "weight gradient"}
    assert all(row["reason"] for row in rows)
    step = {kind: report["time"][kind]["median_ms"] for kind in ("dense", "compressed")}
    assert report["saving"]["step_ratio"] == pytest.approx(step["compressed"] / step["dense"])
    assert report["saving"]["theoretical"] == pytest.approx(1 - report["flops"]["compressed_step"])
    assert report["command"] == "a test"
    assert {"acdc-kernels", "torch", "python"} <= report["versions"].keys()
    assert report["machine"]["cores"] >= 1


def test_the_report_of_a_dense_run_claims_nothing_sparse(finished):
    report = read_report(finished("dense"))
    assert report["models"]["sparse"] is None
    assert report["flops"]["training"] == pytest.approx(1, abs=1e-3)
    assert report["flops"]["compressed_step"] is None
    assert "saving" not in report
    assert report["plan"] == []
    text = summary(report)
    assert "sparse model" not in text
    assert "twin" not in text
    assert "dense model" in text


def row(layer, product, kernel, reason="measured", **times):
    return {
        "layer": layer, "product": product, "kernel": kernel, "reason": reason, "times": times, "samples": 128,
        "shape": [1024, 64], "sparsity": 0.9,
    }  # fmt: skip


PLAN = [
    row("1", "forward", "sparse", sparse=0.25, dense=1.0),
    row("1", "input gradient", "dense", "x needs no gradient"),
    row("1", "weight gradient", "sparse", sparse=0.5, dense=2.25),
    row("5", "forward", "dense", "0.25 ms sparse, 0.2 dense", sparse=0.25, dense=0.2),
    row("5", "input gradient", "dense", "0.31 ms sparse, 0.3 dense", sparse=0.31, dense=0.3),
]


def test_the_plan_is_shown_layer_by_layer_with_the_reasons_for_dense(finished):
    text = summary(read_report(finished()) | {"plan": PLAN})
    assert [re.split("  +", line) for line in text.splitlines() if re.match(r"layer|1 |5 ", line)] == [
        ["layer", "shape", "sparsity", "forward", "input gradient", "weight gradient"],
        ["1", "1024x64", "90.0%", "sparse 0.25 ms (dense 1)", "dense", "sparse 0.5 ms (dense 2.25)"],
        ["5", "1024x64", "90.0%", "dense 0.2 ms", "dense 0.3 ms", "-"],
    ]
    assert (
        "2 of 5 products are sparse, dense are\n  1 input gradient: x needs no gradient\n"
        "  5 forward and 1 more: e.g. 0.25 ms sparse, 0.2 dense\n"
    ) in text
    assert "Every product of" not in text
    dense = summary(read_report(finished()) | {"plan": PLAN[-2:]})
    assert "Every product of the last compressed phase was dense, with zeros in the weights." in dense
    many = [row(f"layer {i}", "forward", "sparse") for i in range(20)]
    assert "and 8 more layers: see plan in report.json\n20 of 20 products are sparse" in summary(
        read_report(finished()) | {"plan": many}
    )


@pytest.mark.parametrize(("ratio", "flops", "want"), [(0.4, 0.1, (0.6, 0.9, 2 / 3)), (1.1, 1.0, (-0.1, 0.0, None))])
def test_saving(finished, ratio, flops, want):
    report = read_report(finished())
    report["time"]["dense"]["median_ms"], report["time"]["compressed"]["median_ms"] = 10.0, 10 * ratio
    report["flops"]["compressed_step"] = flops
    found = saving(report)
    assert (found.realized, found.theoretical, found.share) == pytest.approx(want)
    assert f"a compressed step takes {ratio:.3f} of a dense one" in summary(report)
    assert saving(read_report(finished("dense"))) is None
    assert Saving(0.5, 0.8).share == pytest.approx(0.625)


def test_the_summary_shows_the_pair_and_both_savings(finished):
    text = summary(read_report(finished()) | {"plan": []})
    assert re.search(r"^dense twin +\d\d\.\d\d% +\d\d\.\d\d% ", text, re.M)
    assert re.search(r"^sparse model +\d\d\.\d\d% +\d\d\.\d\d% +90\.0% +10\.\d% ", text, re.M)
    assert re.search(r"^training FLOPs +6\d\.\d% of dense training; a compressed step 10\.\d%$", text, re.M)
    assert re.search(
        r"^training time +[\d.]+ s in dense phases .* ms a step\), [\d.]+ s in compressed phases", text, re.M
    )
    assert re.search(
        r"^memory +peak [\d,.]+ [MG]iB; model 16.6 MiB, optimizer 16.6 MiB, mask 530.5 KiB(, topology [\d.]+ [KM]iB)?; "
        r"dense twin on disk 16.6 MiB$",
        text,
        re.M,
    )
    assert re.search(
        r"^saving +a compressed step takes [\d.]+ of a dense one: -?[\d.]+% saved on the clock, 89\.\d% in FLOPs; "
        r"realized / theoretical -?[\d.]+$",
        text,
        re.M,
    )
    assert re.search(r", [\d.]+ s planning \([\d.]+% of the compressed steps\), ", text)
    assert "Every product of this run was dense" in text


def test_reports_of_before_these_settings_are_still_compared(finished):
    """Those in benchmarks/results: no memory, plan or planning, no optimizer, pattern or precision."""
    new, old = read_report(finished()), read_report(finished(seed=1))
    new["config"]["kernels"] = "dense"
    del old["memory"], old["plan"], old["time"]["planning"], old["saving"]
    for setting in ("optimizer", "pattern", "precision", "augment", "model_args", "data_args", "kernels"):
        del old["config"][setting]
    assert not {"memory", "planning"} & set(summary(old).split())
    assert "Every product of this run was dense" in summary(old)
    assert [row[3] for row in comparison([new, old])[1]] == ["2", "2"]


def test_another_pattern_has_its_name(finished):
    report = read_report(finished())
    report["config"] |= {"pattern": "2:4", "sparsity": 0.5}
    assert [row[0] for row in comparison([report])[1]] == ["demo acdc 2:4 50% kernels=model"] * 2


@pytest.mark.parametrize("schedule", ["acdc", "dense"])
def test_the_curves_are_drawn(finished, schedule):
    assert png_size(finished(schedule) / "curves.png") == (1200, 960)


def test_seeds_are_averaged(finished):
    reports = [read_report(finished("acdc", seed)) for seed in (0, 1)] + [read_report(finished("dense"))]
    for report, accuracy in zip(reports, (0.90, 0.92, 0.95), strict=True):
        report["models"]["dense"]["test_accuracy"] = accuracy
        if report["models"]["sparse"]:
            report["models"]["sparse"]["test_accuracy"] = accuracy - 0.1
    header, rows = comparison(reports)
    column = {name: [row[header.index(name)] for row in rows] for name in ("run", "model", "seeds", "test accuracy")}
    assert column == {
        "run": ["demo acdc 90% kernels=model", "demo acdc 90% kernels=model", "demo dense"],
        "model": ["sparse", "dense twin", "dense"],
        "seeds": ["2", "2", "1"],
        "test accuracy": ["81.00 ± 1.41%", "91.00 ± 1.41%", "95.00%"],
    }


def test_costs_set_acdc_beside_its_dense_run(finished):
    reports = [read_report(finished("acdc", seed)) for seed in (0, 1)] + [read_report(finished("dense"))]
    for report, dense, compressed, seconds in zip(
        reports, (10.0, 12.0, 11.0), (4.0, 6.0, None), (30.0, 50.0, 50.0), strict=True
    ):
        time = report["time"]
        time["dense"] |= {"median_ms": dense, "seconds": seconds - 5}
        time["compressed"] |= {"median_ms": compressed, "seconds": 4.0}
        time["flip"]["seconds"], time["planning"]["seconds"], time["evaluation"]["seconds"] = 0.9, 0.1, 100.0
        assert training_seconds(report) == pytest.approx(seconds)
        if compressed:
            report["flops"]["compressed_step"] = 0.1
    header, rows = costs(reports)
    acdc, alone = (dict(zip(header, row, strict=True)) for row in rows)
    assert {name: acdc[name] for name in header if name not in ("test accuracy", "training FLOPs")} == {
        "run": "demo acdc 90% kernels=model",
        "seeds": "2",
        "training time": "40.0 s",
        "of dense": "60.0%",  # seed 0 alone has a dense run
        "planning": "2.5 ± 0.0%",
        "dense step": "11.0 ms",
        "step ratio": "0.450",
        "saved on the clock": "55.0 ± 7.1%",
        "saved in FLOPs": "90.0 ± 0.0%",
        "realized / theoretical": "0.61",
    }
    assert [alone[name] for name in ("run", "training time", "of dense", "step ratio", "saved on the clock")] == [
        "demo dense", "50.0 s", "-", "-", "-",
    ]  # fmt: skip


@pytest.mark.parametrize("change", [{"threads": 2}, {"lr": 0.5}, {"seed": 3}])
def test_a_dense_run_of_other_settings_is_no_yardstick(finished, change):
    acdc, dense = read_report(finished()), read_report(finished("dense"))
    column = costs([acdc, dense])[0].index("of dense")
    assert costs([acdc, dense])[1][0][column] != "-"
    dense["config"] |= change
    assert costs([acdc, dense])[1][0][column] == "-"


def test_runs_of_other_settings_are_not_averaged(finished):
    report = read_report(finished())
    other = copy.deepcopy(report)
    other["config"] |= {"lr": 1.0, "seed": 1}
    assert [row[3] for row in comparison([report, other])[1]] == ["1"] * 4


def test_a_run_given_twice(finished):
    with pytest.raises(UserError, match=r"demo acdc is given twice for one seed \(seeds \[0, 0\]\)"):
        show_reports([finished(), finished() / "report.json"], None, None, quiet)


def test_several_runs_as_markdown_and_plot(finished, tmp_path):
    said = []
    folders = [finished(), finished("acdc", 1), finished("prune-once"), finished("dense")]
    show_reports(folders, tmp_path / "table.md", tmp_path / "curves.png", said.append)
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[0].startswith("| run | model | epochs | seeds | test accuracy |")
    assert lines[1].startswith("| --- | --- | ---: |")
    assert [line.split(" | ")[:2] for line in lines[2:6]] == [
        ["| demo acdc 90% kernels=model", "sparse"],
        ["| demo acdc 90% kernels=model", "dense twin"],
        ["| demo prune-once 90% kernels=model", "sparse"],
        ["| demo dense", "dense"],
    ]
    assert lines[7].startswith("| run | seeds | test accuracy | training FLOPs | training time | of dense |")
    assert [line.split(" | ")[:2] for line in lines[9:]] == [
        ["| demo acdc 90% kernels=model", "2"],
        ["| demo prune-once 90% kernels=model", "1"],
        ["| demo dense", "1"],
    ]
    assert said[0].splitlines()[0].split()[:2] == ["run", "model"]
    assert png_size(tmp_path / "curves.png")[0] == 1200


def test_benchmark_files(tmp_path):
    row = {
        "op": "topk",
        "case": "resnet50",
        "pattern": "unstructured",
        "sparsity": 0.9,
        "dtype": "float32",
        "threads": 2,
    }
    row |= {"device": "cpu", "ours_ms": 7.1, "peer": "torch.topk", "peer_ms": 255.6, "speedup": 36.0}
    (tmp_path / "bench.json").write_text(
        json.dumps({"machine": {}, "rows": [row, {**row, "ours_ms": None, "speedup": None}]})
    )
    said = []
    show_reports([tmp_path / "bench.json"], tmp_path / "table.md", None, said.append)
    assert said[0].splitlines()[2].split() == [
        "topk",
        "resnet50",
        "float32",
        "torch.topk",
        "2",
        "7.10",
        "255.60",
        "36.00x",
    ]
    assert "| topk | resnet50 | float32 | torch.topk | 2 | - | 255.60 | - |" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("absent", None, "cannot be read"),
        ("broken.json", "{", "cannot be read"),
        ("other.json", "{}", "not the report of a run"),
        ("list.json", "[1]", "not the report of a run"),
        ("deep.json", "[" * 100_000, "cannot be read .it is nested too deeply"),
        ("later.json", '{"format": 2}', "not the report of a run .it is of format 2, must be of 1"),
        ("short.json", '{"format": 1, "models": {}}', "not the report of a run .report: missing config, flops, time"),
        ("rows.json", '{"rows": [{}]}', "not a file of bench --json .rows.0.: missing op, case"),
        ("three.json", '{"rows": 3}', "not a file of bench --json .rows: must be a list, got '3'"),
    ],
)
def test_what_is_no_report(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"{name}: {message}"):
        show_reports([tmp_path / name], None, None, quiet)


# place in the report, what stands there, message
SPOILT = [
    (("models",), {"sparse": None}, "report.models: missing dense"),
    (("models", "dense"), {}, "report.models.dense: missing epoch, val_accuracy"),
    (("models", "sparse", "sparsity"), None, "report.models.sparse.sparsity: must be a number, got 'None'"),
    (("config", "schedule"), 3, "report.config.schedule: must be a string, got '3'"),
    (("flops", "training"), "all", "report.flops.training: must be a number, got 'all'"),
    (("time", "dense", "seconds"), float("nan"), "report.time.dense.seconds: must be a number, got 'nan'"),
    (("time", "flip"), None, "report.time.flip: must be an object"),
    (("memory",), {"peak_bytes": 3}, "report.memory: missing model_bytes"),
    (("plan",), [{"layer": "1"}], r"report.plan\[0\]: missing product, kernel"),
    (("history",), [], "report.history: must have a row for each of 5 epochs, got 0"),
    (("history", 2), {}, r"report.history\[2\]: missing epoch, phase"),
]


@pytest.mark.parametrize(("place", "value", "message"), SPOILT)
def test_a_report_that_lacks_what_is_shown(finished, tmp_path, place, value, message):
    report = read_report(finished())
    *way, last = place
    functools.reduce(operator.getitem, way, report)[last] = value
    (tmp_path / "report.json").write_text(json.dumps(report))
    with pytest.raises(UserError, match=rf"report.json: not the report of a run \({message}"):
        show_reports([tmp_path / "report.json"], None, None, quiet)


def test_a_sparse_model_without_a_twin_is_shown(finished):
    report = read_report(finished())
    report["models"]["dense"] = None
    assert "twin's zeros" not in summary(report)


@pytest.mark.parametrize("name", ["curves.xyz", "curves", "."])
def test_curves_of_another_format_are_refused_before_anything_is_shown(finished, tmp_path, name):
    said = []
    with pytest.raises(UserError, match=r"plot: must be a file ending in .png, .pdf, .svg, got "):
        show_reports([finished()], tmp_path / "table.md", tmp_path / name, said.append)
    assert said == list(tmp_path.iterdir()) == []


def test_folders_without_a_report(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        read_report(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="holds an unfinished run; continue it with --resume"):
        read_report(tmp_path)


def test_an_output_folder_that_is_missing(finished, tmp_path):
    with pytest.raises(UserError, match="its folder does not exist"):
        show_reports([finished()], tmp_path / "none" / "table.md", None, quiet)


@pytest.mark.parametrize(
    ("values", "text"),
    [([], "-"), ([None], "-"), ([0.5], "50.0%"), ([0.5, 0.52], "51.0 ± 1.4%"), ([0.5, 0.5, 0.5], "50.0 ± 0.0%")],
)
def test_mean_and_spread(values, text):
    assert tables.mean_and_spread(values) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (60, "1 min 00 s"), (125.4, "2 min 05 s")]
)
def test_duration(seconds, text):
    assert tables.duration(seconds) == text


def test_text_table_aligns():
    assert tables.text_table(["name", "value"], [["a", "1"], ["long name", "1000"]]).splitlines() == [
        "name       value",
        "---------  -----",
        "a              1",
        "long name   1000",
    ]
