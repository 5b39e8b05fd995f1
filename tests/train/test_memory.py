"""Peak memory of a run, in fresh processes: what AC/DC adds to dense training is what the design allows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import acdc_kernels

WEIGHTS = 784 * 4096 + 4096 * 4096 + 4096 * 10
BYTES = 4 * (WEIGHTS + 4096 + 4096 + 10)
SLACK = 1 << 20  # code that only one of the two runs loads


def measured(schedule: str, saving: bool, folder: Path, kernels: str = "dense") -> dict[str, int]:
    script = Path(__file__).with_name("peak_of_a_run.py")
    # One arena, and freed tensors go back to the system: what malloc keeps for later is not what is measured.
    malloc = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "131072"}
    here = {"PYTHONPATH": str(Path(acdc_kernels.__file__).parents[1]), "TMPDIR": str(folder)}
    done = subprocess.run(
        [sys.executable, str(script), schedule, "4096", str(saving), kernels],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | malloc | here,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the system has no /proc/self/status")
@pytest.mark.parametrize("saving", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_acdc_run_peaks_where_a_dense_one_does(tmp_path, saving):
    """3% of the weights and 1 MiB for a flip, 1/32 for the masks; the dense twin is on disk, saving copies nothing."""
    dense, acdc = (measured(schedule, saving, tmp_path) for schedule in ("dense", "acdc"))
    facts = {"model_bytes": BYTES, "optimizer_bytes": BYTES, "mask_bytes": WEIGHTS // 8, "twin_on_disk_bytes": BYTES}
    assert {name: acdc[name] for name in facts} == facts
    assert {name: dense[name] for name in facts} == {**facts, "mask_bytes": 0, "twin_on_disk_bytes": 0}
    assert dense["growth"] > 3 * BYTES  # weights, gradients and momentum are seen, so a copy would be
    extra = acdc["growth"] - dense["growth"]
    print(f"AC/DC adds {extra / 2**20:.1f} MiB to {dense['growth'] / 2**20:.1f}; weights {BYTES / 2**20:.1f} MiB")
    assert extra <= 0.03 * BYTES + (1 << 20) + BYTES / 32 + SLACK
