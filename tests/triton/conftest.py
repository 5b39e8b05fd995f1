"""Triton kernels without a GPU: run by Triton's interpreter, and compiled ahead of time. Each in a process of its own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def pytest_collection_modifyitems(items):
    if importlib.util.find_spec("triton") is None:
        skip = pytest.mark.skip(reason="triton is not installed: there are wheels for Linux only")
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(skip)


@pytest.fixture(scope="session")
def run_python(tmp_path_factory):
    """Runs Python in a process with more in its environment; returns what it printed, or fails with that."""
    cache = tmp_path_factory.mktemp("triton")

    def run(*arguments, **environment):
        paths = [str(HERE), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONDONTWRITEBYTECODE": "1",
            "TRITON_CACHE_DIR": str(cache),
            **environment,
        }
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=ROOT)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-6000:]}{done.stderr[-2000:]}"
        return done.stdout

    return run
