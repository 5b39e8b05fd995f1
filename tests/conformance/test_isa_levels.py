"""The conformance cases once more at every other ISA level of this processor, each in a process of its own."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from acdc_kernels import _native

from .conftest import cpu_only

pytestmark = cpu_only("levels are a CPU's")
HERE = Path(__file__).parent


def levels():
    return importlib.import_module("acdc_kernels._C").isa_levels() if _native.available() else []


@pytest.mark.parametrize("level", ["generic", "avx2", "avx512"])
def test_conformance_at(level):
    if level not in levels():
        pytest.skip(f"this build and processor have {levels()}, not {level}")
    if level == _native.cpu_isa():
        pytest.skip(f"{level} is the level that the rest of this run is at")
    if os.environ.get("ACDC_CPU_ISA"):
        pytest.skip("ACDC_CPU_ISA names one level: this is that level's own run")
    files = [
        str(HERE / f"test_{name}.py")
        for name in (
            "topk_mask",
            "magnitude_histogram",
            "topk_patterns",
            "masked_sgd",
            "masked_adamw",
            "mask_bits",
            "roofline",
            "sparse_linear",
        )
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files]
    run = subprocess.run(
        command, env={**os.environ, "ACDC_CPU_ISA": level}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]


def test_half_precision_products_as_their_instructions_round():
    """Every processor can run the loops that stand in for AVX512-FP16."""
    if not _native.available():
        pytest.skip("no compiled kernels")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", "half_precision"]
    run = subprocess.run(
        [*command, str(HERE / "test_sparse_linear.py")],
        env={**os.environ, "ACDC_CPU_FP16": "emulated"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]


@pytest.mark.parametrize("request_", ["avx1024", "none"])
def test_an_unknown_level_is_an_error(request_):
    if not _native.available():
        pytest.skip("no compiled kernels: no level to choose")
    command = [sys.executable, "-c", "import acdc_kernels"]
    run = subprocess.run(
        command, env={**os.environ, "ACDC_CPU_ISA": request_}, capture_output=True, text=True, check=False
    )
    assert run.returncode != 0
    assert f"ACDC_CPU_ISA: must be avx512, avx2 or generic, got '{request_}'" in run.stderr
