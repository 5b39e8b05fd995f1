"""Large outputs come and go a thousand times, and the heap stays as it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import acdc_kernels
from acdc_kernels import _native

MEBIBYTE = 2**20


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="the system has no /proc/self/statm")
@pytest.mark.skipif(not _native.available(), reason=_native.why_not())
@pytest.mark.parametrize("layout", [0, 2])
def test_a_thousand_calls_do_not_grow_the_heap(layout):
    command = [sys.executable, str(Path(__file__).with_name("heap_growth.py")), str(layout)]
    environment = os.environ | {"PYTHONPATH": str(Path(acdc_kernels.__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300, env=environment)
    grown = {case["case"]: case["grown"] / MEBIBYTE for case in map(json.loads, done.stdout.splitlines())}
    assert len(grown) == 6
    # An output has one mebibyte. A few bytes lost in a call come to lie between two of them, and then malloc cannot use
    # the first one again: the heap grows by up to a thousand.
    assert {case: size for case, size in grown.items() if size > 50} == {}
