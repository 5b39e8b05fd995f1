"""`make gpu` without a GPU: what it needs, in which order it does things, and where it stops."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("bash", "timeout", "tee"))), reason="needs bash, timeout and tee"
)

# Stands in for python3: notes how it is called, and succeeds where it isn't told otherwise.
PYTHON = """#!/usr/bin/env bash
echo "$*" >>{calls}
case "$1 $2" in
  "- test" | "- sanitize" | "- bench") cat >/dev/null ;;
  "- "*) exec {python} "$@" ;;
  "-c import sys"*) exit ${{KERNELS_STATUS:-0}} ;;
  "-c "*) exit 1 ;;
  "-m pip") exit ${{PIP_STATUS:-0}} ;;
  "-m pytest") sleep "${{PYTEST_SECONDS:-0}}"; echo "${{PYTEST_SAYS:-3 passed in 0.1s}}"; exit ${{PYTEST_STATUS:-0}} ;;
  "-m acdc_kernels") [[ $3 == info ]] || cp {timings} "${{@: -1}}" ;;
esac
"""
TIMINGS = {
    "machine": {"gpu": "a card"},
    "complete": True,
    "rows": [
        {
            "case": "resnet50",
            "sparsity": 0.9,
            "dtype": "float32",
            "ours_ms": 0.05,
            "peer": "torch",
            "peer_ms": 0.5,
            "speedup": 10.0,
            "ours_device_ms": 0.04,
            "peer_device_ms": 0.44,
            "device_speedup": 11.0,
        }
    ],
}


@pytest.fixture
def machine(tmp_path):
    """Runs .ci/gpu on a machine that has everything; returns (exit status, output, the calls of python)."""
    tools, calls, file = tmp_path / "tools", tmp_path / "calls", tmp_path / "timings.json"
    tools.mkdir()
    python = PYTHON.format(calls=calls, python=sys.executable, timings=file)
    sanitizer = f'#!/bin/sh\necho "$@" >>{calls}\n'
    for name, text in {"python3": python, "nvcc": "", "cmake": "", "compute-sanitizer": sanitizer}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)

    def run(*arguments, timings=TIMINGS, **environment):
        file.write_text(json.dumps(timings))
        env = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "CUDA_HOME", "CUDA_PATH")}
        env |= {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "OUT": str(tmp_path / "out"), **environment}
        done = subprocess.run([ROOT / ".ci" / "gpu", *arguments], env=env, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr, calls.read_text().splitlines()

    return run


def steps(calls):
    """The calls that do something."""
    return [" ".join(call.split()[1:3]) for call in calls if call.startswith("-m")]


def test_builds_tests_and_times_in_this_order(machine, tmp_path):
    status, printed, calls = machine()
    assert status == 0, printed
    assert steps(calls) == ["pip install", "acdc_kernels info", *["pytest -q"] * 4, *["acdc_kernels bench"] * 4]
    tested = [call.partition("--maxfail=20 ")[2].split() for call in calls if call.startswith("-m pytest")]
    cuda, layers, conformance, blocks = tested
    assert (cuda[0], conformance[0]) == ("tests/cuda", "tests/conformance")
    assert cuda[-4:] == ["--ignore", layers[0], "--ignore", layers[1]]
    assert conformance[1:5] == ["--ignore", blocks[0], "--ignore", blocks[1]]
    assert any("--no-deps --no-build-isolation -e ." in call for call in calls)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "gpu-test.log",
        "linear-cuda.json",
        "topk-cuda.json",
        "train-cuda.json",
        "update-cuda.json",
    ]
    summary = printed.partition("== summary")[2]
    for line in (
        "build: ok",
        "tests that need a GPU: ok",
        "block layers on the GPU: ok",
        "conformance on the GPU: ok",
        "conformance of blocks on the GPU: ok",
        "bench topk: ok",
        "bench update: ok",
        "bench linear: ok",
        "bench train: ok",
    ):
        assert line in summary
    assert "topk-cuda.json: a card, complete" in summary
    assert "resnet50 0.9 float32, ours to torch: device 0.04 to 0.44 ms, 11x; eager 0.05 to 0.5 ms, 10x" in summary
    assert (tmp_path / "out" / "gpu-test.log").read_text().strip() == printed.strip()


@pytest.mark.parametrize(
    ("trouble", "says", "last"),
    [
        ({"PIP_STATUS": "1"}, "build: FAILED with status 1", "pip install"),
        ({"PYTEST_STATUS": "1"}, "tests that need a GPU: FAILED with status 1", "pytest -q"),
        ({"PYTEST_SAYS": "12 skipped in 0.1s"}, "no test ran", "pytest -q"),
    ],
)
def test_nothing_is_timed_that_is_not_right(trouble, says, last, machine, tmp_path):
    status, printed, calls = machine(**trouble)
    assert status != 0
    assert says in printed
    assert steps(calls)[-1] == last
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["gpu-test.log"]


def test_kernels_that_cannot_run_end_it_before_the_tests(machine):
    status, printed, calls = machine(KERNELS_STATUS="1")
    assert status != 0
    assert "kernels: FAILED with status 1" in printed
    assert steps(calls) == ["pip install", "acdc_kernels info"]


def test_a_step_that_hangs_is_stopped_within_the_budget(machine):
    began = time.monotonic()
    status, printed, calls = machine(PYTEST_SECONDS="300", BUDGET="4")
    assert status != 0
    assert "tests that need a GPU: STOPPED at its limit of" in printed
    assert steps(calls)[-1] == "pytest -q"
    assert time.monotonic() - began < 60


def benches(calls):
    return [call.split()[3:-2] for call in calls if "acdc_kernels bench" in call]


def test_where_time_is_short_the_quick_cases_are_timed(machine):
    status, printed, calls = machine(BUDGET="250")
    assert status == 0, printed
    assert [each[0] for each in benches(calls)] == ["topk", "update", "linear", "train"]
    assert ["--quick" in each for each in benches(calls)] == [False, False, True, False]
    assert "bench linear --quick: ok" in printed


def test_benches_alone_are_timed_in_full(machine, tmp_path):
    status, printed, calls = machine("bench", "linear", "train")
    assert status == 0, printed
    assert steps(calls) == ["pip install", "acdc_kernels info", *["acdc_kernels bench"] * 2]
    assert benches(calls) == [["linear", "--device", "cuda"], ["train", "--device", "cuda"]]
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "gpu-bench.log", "linear-cuda.json", "train-cuda.json",
    }  # fmt: skip


def test_products_are_summed_up_against_the_dense_ones(machine):
    rows = [
        {**TIMINGS["rows"][0], "pattern": "block:64x64", "peer": peer, "left_out": {"64x64 w4 s4": "a wrong answer"}}
        for peer in ("torch dense (cuBLAS)", "torch BSR")
    ]
    status, printed, _ = machine("bench", "linear", timings={**TIMINGS, "rows": rows})
    assert status == 0, printed
    summary = printed.partition("== summary")[2]
    assert "resnet50 block:64x64 0.9 float32, ours to torch dense (cuBLAS): device 0.04 to 0.44 ms" in summary
    assert "torch BSR" not in summary
    assert summary.count("LEFT OUT resnet50: ('64x64 w4 s4', 'a wrong answer')") == 1


def test_sanitizers_run_after_the_build(machine, tmp_path):
    status, printed, calls = machine("sanitize")
    assert status == 0, printed
    assert steps(calls) == ["pip install", "acdc_kernels info"]
    assert [call.split()[1] for call in calls if call.startswith("--tool")] == ["memcheck", "racecheck"]
    assert all(call.endswith("tests/cuda/sanitize.py") for call in calls if call.startswith("--tool"))
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["gpu-sanitize.log"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize(("target", "name"), [(name, f"make {name}") for name in ("gpu", "gpu-bench", "gpu-sanitize")])
def test_without_a_gpu_it_says_so_before_anything_else(target, name, tmp_path):
    environment = {**os.environ, "OUT": str(tmp_path / "out")}
    command = ["make", target, f"PYTHON={sys.executable}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    why = (
        "needs an NVIDIA GPU, and torch finds none"
        if torch.version.cuda
        else f"needs a torch with CUDA, got {torch.__version__}"
    )
    assert f"{name}: {why}" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_python_without_torch_is_told(tmp_path):
    command = [ROOT / ".ci" / "gpu"]
    bare = tmp_path / "python3"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n')
    bare.chmod(0o755)
    done = subprocess.run(command, env={**os.environ, "PYTHON": str(bare)}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "must have torch; PYTHON=... names another" in done.stderr


def test_an_unknown_wish_is_refused():
    done = subprocess.run([ROOT / ".ci" / "gpu", "fly"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "usage: .ci/gpu [test | sanitize | bench OP...]\n")
