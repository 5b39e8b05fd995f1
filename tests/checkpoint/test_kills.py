"""kill -9 at any moment, then resume: the bits of a run that was never stopped."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import acdc_kernels

BY_LINE, BY_TIME = 18, 8  # by line: 3 in each phase and place, drawn anew by every run


def test_kills_at_random_moments_change_no_bit(tmp_path):
    seed = random.SystemRandom().randrange(2**32)
    command = [sys.executable, str(Path(__file__).with_name("killed_runs.py")), str(tmp_path / "run")]
    package = Path(acdc_kernels.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(package), "TMPDIR": str(tmp_path)}  # a kill leaves its dense twin
    command += [str(seed), str(BY_LINE), str(BY_TIME)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    kills = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(kills) == BY_LINE + BY_TIME
    assert [kill for kill in kills if not (kill["same"] and kill["clean"])] == [], f"seed {seed}"
    placed = [kill for kill in kills if "step" in kill]
    assert Counter((kill["phase"], kill["place"]) for kill in placed) == {
        (phase, place): BY_LINE // 6 for phase in ("dense", "compressed") for place in ("loop", "save", "write")
    }
    assert [kill for kill in placed if bool(kill["left"]) != (kill["place"] == "write")] == [], f"seed {seed}"
