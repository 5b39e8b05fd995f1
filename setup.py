"""Finds Python, torch and CUDA, says what it found, and drives CMake; CMakeLists.txt holds every compile rule."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def works(compiler):
    """Whether `compiler` is there and answers: macOS has a stub that needs the developer tools."""
    command = [*compiler.split(), "--version"]
    return bool(shutil.which(command[0])) and subprocess.run(command, capture_output=True, check=False).returncode == 0


class CMakeBuild(build_ext):
    """Builds `_ops` and `_C` into the package: beside the sources for an editable install, else into the wheel."""

    def run(self):
        cuda = os.environ.get("ACDC_CUDA", "auto").lower()
        if cuda not in ("auto", "0", "off"):
            raise SystemExit(f"acdc-kernels: ACDC_CUDA must be auto or 0 in this CPU-only version, got {cuda!r}")
        if not any(map(works, filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")))):
            print("acdc-kernels: no C++ compiler found, so no kernels are built: plain torch will run", file=sys.stderr)
            return
        if not (cmake := shutil.which("cmake")):
            raise SystemExit("acdc-kernels: cmake >= 3.25 is needed to build (pip install cmake)")
        import pybind11
        import torch

        print(f"acdc-kernels: torch {torch.__version__}, {sys.implementation.cache_tag}, CPU kernels", file=sys.stderr)
        output = ROOT / "acdc_kernels" if self.inplace else Path(self.build_lib).resolve() / "acdc_kernels"
        ninja = shutil.which("ninja")
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}-{'ninja' if ninja else 'make'}"
        configure = [
            *(cmake, "-S", str(ROOT), "-B", str(build)),
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DTORCH_DIR={Path(torch.__file__).parent}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DACDC_OUTPUT_DIR={output}",
            f"-DACDC_VERSION={self.distribution.get_version()}",
        ]
        if ninja:
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        subprocess.check_call(configure)
        subprocess.check_call([cmake, "--build", str(build), "-j", os.environ.get("MAX_JOBS") or str(cores)])


setup(
    # The benchmarks live at the top of the repository and are installed as a part of the package.
    packages=[*find_packages(include=["acdc_kernels*"]), "acdc_kernels.benchmarks"],
    package_dir={"acdc_kernels.benchmarks": "benchmarks"},
    ext_modules=[Extension("acdc_kernels._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
