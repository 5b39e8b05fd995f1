"""The command line: help that helps, plain errors, and a hint when the extra is missing."""

import subprocess
import sys
import types

import pytest
from typer.testing import CliRunner

from acdc_kernels import _native
from acdc_kernels.train.cli import app
from acdc_kernels.train.data import DATASETS
from acdc_kernels.train.info import kernel_rows

from .conftest import SHORT

HELP = {
    "": ["info", "train", "bench", "report", "AC/DC"],
    "info": ["acdc-kernels info", "ACDC_CPU_ISA"],
    "train": [
        *("--preset", "--data", "--data-dir", "--download", "--out", "--epochs", "--batch-size", "--lr", "--seed"),
        *("--sparsity", "--scope", "--schedule", "--threads", "--resume", "Examples:"),
        *("--optimizer", "--pattern", "--precision", "--model", "--model-args", "--data-args", "--no-augment"),
        *("--kernels", "auto|model|dense|sparse|fp16"),
        *("unstructured;", "n:m", "2:4-transposable", "block:RxC", "--pattern 2:4 "),
        *DATASETS,
        *("demo ", "fashion-mnist-mlp", "prune-once", "prune-late"),
    ],
    "bench": ["topk|update|linear|train", "--device", "--threads", "--quick", "--json", "Examples:"],
    "report": ["RUN_OR_JSON", "--markdown", "--plot", "Examples:"],
}


def run(*arguments, code=0):
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result


@pytest.mark.parametrize("command", HELP)
def test_help(command):
    text = run(*command.split(), "--help").output
    assert [word for word in HELP[command] if word not in text] == []
    assert all(len(line) <= 102 for line in text.splitlines())


def test_info_tells_build_machine_and_kernels():
    text = run("info").output
    for part in (
        *("Built", "This machine", "Sparse products", "AVX512-FP16", "processor", "torch", "Kernels"),
        *("topk_mask", "masked_sgd_", "pack_mask"),
    ):
        assert part in text
    on_cpu = {name: cpu for name, cpu, _ in kernel_rows()}
    assert {"topk_mask", "masked_sgd_", "pack_mask", "unpack_mask"} <= on_cpu.keys()
    if _native.available():
        assert on_cpu["topk_mask"] == f"C++ ({_native.cpu_isa()})"
    else:
        assert _native.why_not() in text
        assert set(on_cpu.values()) == {"plain torch (reference)"}


def test_train_from_the_command_line(tmp_path):
    settings = [f"--{name.replace('_', '-')}={value}" for name, value in (SHORT | {"epochs": 4}).items()]
    out = tmp_path / "run"
    lines = run("train", *settings, "--out", out).output.splitlines()
    assert [line.split()[:3] for line in lines if line.startswith("epoch")] == [
        ["epoch", "1/4", "dense"],
        ["epoch", "2/4", "compressed"],
        ["epoch", "3/4", "dense"],
        ["epoch", "4/4", "compressed"],
    ]
    assert f"curves  {out / 'curves.png'}" in lines
    assert run("report", out).output.splitlines()[0].startswith("demo acdc, seed 0: 4 epochs in ")
    assert "holds this run, finished" in run("train", *settings, "--out", out, code=1).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--epochs", "2"], "error: epochs: must be at least 4 for schedule 'acdc', got 2\n"),
        (
            ["train", "--preset", "fashion-mnist", "--data-dir", "/nowhere"],
            "error: fashion-mnist is not in /nowhere: get it",
        ),
        (["train", "--optimizer", "adamw"], "error: lr: must be given with optimizer 'adamw', as preset 'demo' has"),
        (["train", "--pattern", "zigzag"], "error: pattern must be 'unstructured'"),
        (["train", "--model", "perceptron"], "error: model: must be one of mlp-WIDTH"),
        (["train", "--model-args", "{}x"], "error: model-args: "),
        (["train", "--data-args", "[" * 100_000], "error: data-args: must be a JSON object, got '[[["),
        (["train", "--augment"], "error: augment: only for "),
        (["report", "/nowhere"], "error: /nowhere: cannot be read"),
    ],
)
def test_errors_are_one_plain_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments, code=1)
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["topk"], ("topk", "cpu", None, False, None)),
        (
            ["update", "--threads", "1", "--threads", "2", "--quick", "--json", "x"],
            ("update", "cpu", [1, 2], True, "x"),
        ),
        (["topk", "--device", "cuda"], ("topk", "cuda", None, False, None)),
    ],
)
def test_bench_hands_its_options_on(monkeypatch, arguments, asked):
    calls = []

    def fake(op, device, threads, quick, json):
        calls.append((op, device, threads or None, quick, json and str(json)))
        return 2

    module = types.ModuleType("acdc_kernels.benchmarks.run")
    module.run = fake
    monkeypatch.setitem(sys.modules, "acdc_kernels.benchmarks", types.ModuleType("acdc_kernels.benchmarks"))
    monkeypatch.setitem(sys.modules, "acdc_kernels.benchmarks.run", module)
    run("bench", *arguments, code=2)
    assert calls == [asked]


@pytest.mark.parametrize("missing", ["typer", "tqdm", "safetensors", "matplotlib"])
def test_a_missing_package_of_the_extra_is_named(missing, tmp_path):
    code = f"import sys; sys.modules[{missing!r}] = None; from acdc_kernels.__main__ import main; sys.exit(main())"
    run = subprocess.run(
        [sys.executable, "-c", code, "train", "--epochs=4"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert run.returncode == 1
    assert run.stderr.endswith(f'acdc-kernels: the command line needs {missing}: pip install "acdc-kernels[train]"\n')
    assert list(tmp_path.iterdir()) == []
