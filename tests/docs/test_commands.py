"""Every shell block in the README and the docs runs: with small data, few epochs and quick benchmarks (commands.py)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

STAND_INS = ("acdc-kernels", "make", "pip")


@pytest.mark.slow
def test_sh(sh, tmp_path):
    programs, work = tmp_path / "bin", tmp_path / "work"
    programs.mkdir()
    work.mkdir()
    for name in STAND_INS:
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).parent}/commands.py {name} "$@"\n')
        program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    environment["REAL_MAKE"] = shutil.which("make")  # the stand-in hides it
    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", sh], cwd=work, env=environment, capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stdout + run.stderr
