"""The program that compute-sanitizer watches on a GPU finds the same masks and indices on the emulated kernels."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "cuda" / "sanitize.py"
GROUPS = ("mask_bits", "topk_unstructured", "topk_patterns", "steps", "topologies")


@pytest.mark.parametrize("group", GROUPS)
def test_every_case_runs(group, run_emulated):
    compiled = subprocess.run([sys.executable, PROGRAM, "cpu", group], capture_output=True, text=True, check=True)
    assert " cases ran on cpu: " in compiled.stdout
    assert run_emulated(PROGRAM, "cpu", group, order=8) == compiled.stdout
