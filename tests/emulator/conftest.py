"""The CUDA kernels on the CPU: a copy of the package in which an emulated library stands in place of the compiled one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import acdc_kernels
from acdc_kernels import _native

ROOT = Path(__file__).parents[2]
PACKAGE = Path(acdc_kernels.__file__).parent


def checked(command, **options):
    run = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, **options)
    assert run.returncode == 0, f"{' '.join(map(str, command))}\n{run.stdout[-4000:]}{run.stderr[-2000:]}"
    return run.stdout


@pytest.fixture(scope="session")
def emulated(tmp_path_factory):
    """The folder to put on PYTHONPATH."""
    if not _native.available():
        pytest.skip(f"no C++ compiler: {_native.why_not()}")
    folder = tmp_path_factory.mktemp("emulated")
    target = folder / "acdc_kernels"
    shutil.copytree(PACKAGE, target, ignore=shutil.ignore_patterns("_ops.*", "__pycache__", "benchmarks"))
    build = folder / "build"
    options = ["-DACDC_EMULATED=ON", f"-DPython_EXECUTABLE={sys.executable}", f"-DACDC_OUTPUT_DIR={target}"]
    checked(["cmake", "-S", ROOT, "-B", build, *options])
    checked(["cmake", "--build", build, "--target", "acdc_ops", "-j", "2"])
    return folder


@pytest.fixture
def run_emulated(emulated):
    """Runs a command in a process whose acdc_kernels has the emulated kernels; returns what it printed."""

    def run(*arguments, order=0):
        env = {
            **os.environ,
            "PYTHONPATH": str(emulated),
            "ACDC_EMULATOR_ORDER": str(order),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        return checked([sys.executable, *arguments], env=env, cwd=emulated)  # python looks there first

    return run
