"""Finds Python, torch and CUDA, says what it found, and drives CMake; CMakeLists.txt holds every compile rule."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
OLDEST_CARD = (8, 0)
OLDEST_NVCC = (12, 1)  # arguments of a kernel may take 32 KB


def refuse(why):
    raise SystemExit(f"acdc-kernels: {why}")


def version(numbers):
    return ".".join(map(str, numbers))


def works(compiler):
    """Whether `compiler` is there and answers: macOS has a stub that needs the developer tools."""
    command = [*compiler.split(), "--version"]
    return bool(shutil.which(command[0])) and subprocess.run(command, capture_output=True, check=False).returncode == 0


def asked_for_cuda():
    """What ACDC_CUDA says: True, False, or None for auto."""
    asked = os.environ.get("ACDC_CUDA") or "auto"
    meaning = {"1": True, "on": True, "0": False, "off": False, "auto": None}
    if asked.lower() not in meaning:
        refuse(f"ACDC_CUDA must be auto, 1 (on) or 0 (off), got {asked!r}")
    return meaning[asked.lower()]


def find_nvcc():
    """(its path, "") or (None, why not). Where CUDA_HOME or CUDA_PATH is set, no other place is looked at."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if home := os.environ.get(name):
            nvcc = shutil.which("nvcc", path=os.path.join(home, "bin"))
            return (nvcc, "") if nvcc else (None, f"{name} names a folder that has no bin/nvcc")
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    return (nvcc, "") if nvcc else (None, "nvcc was found neither on PATH nor in /usr/local/cuda")


def nvcc_version(nvcc):
    run = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"release (\d+)\.(\d+)", run.stdout)
    if run.returncode or not found:
        refuse(f"{nvcc} doesn't tell its version; it printed:\n{run.stdout}{run.stderr}")
    return tuple(map(int, found.groups()))


def check_versions(nvcc, found, torch):
    if found < OLDEST_NVCC:
        refuse(f"nvcc must be {version(OLDEST_NVCC)} or newer, got {version(found)} ({nvcc}); ACDC_CUDA=0 does without")
    major = int((torch.version.cuda or str(found[0])).split(".")[0])
    if found[0] != major:
        isolated = "pip-build-env" in torch.__file__
        hint = (
            "\n(pip built in isolation, with a torch of its own: --no-build-isolation takes yours)" if isolated else ""
        )
        refuse(
            f"nvcc is of CUDA {version(found)} ({nvcc}), but torch {torch.__version__} is built for CUDA "
            f"{torch.version.cuda}, and the major versions must agree. Ways out:\n"
            f"  - the nvcc of CUDA {major}: set CUDA_HOME to the folder of that toolkit\n"
            f"  - a torch that is built for CUDA {found[0]}\n"
            f"  - ACDC_CUDA=0: no CUDA kernels; plain torch runs on GPUs{hint}"
        )


def card_versions(torch):
    """The compute capabilities of this machine's cards."""
    if not torch.cuda.is_available():
        return []
    return sorted({torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())})


def listed_architecture(item):
    """`9.0a`, `10.0` or `12.0+PTX`, as CMake spells it; None of cards that are too old."""
    found = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", item)
    if not found:
        refuse(f"TORCH_CUDA_ARCH_LIST must hold versions like 8.0, 9.0a or 12.0+PTX, not names; got {item!r}")
    major, minor, variant, ptx = found.groups()
    if (int(major), int(minor)) < OLDEST_CARD:
        return None
    return f"{major}{minor}{variant}{'' if ptx else '-real'}"


def architectures(nvcc, cards):
    """TORCH_CUDA_ARCH_LIST, else this machine's cards, else none: CMakeLists.txt's own."""
    known = set(
        re.findall(
            r"compute_(\d+)",
            subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=False).stdout,
        )
    )
    if listed := re.findall(r"[^;,\s]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "")):
        spelled = {item: listed_architecture(item) for item in listed}
        chosen = list(dict.fromkeys(filter(None, spelled.values())))
        left_out = [item for item, name in spelled.items() if name is None]
        if not chosen:
            refuse(f"TORCH_CUDA_ARCH_LIST must hold {version(OLDEST_CARD)} or newer, got {', '.join(left_out)}")
    else:
        left_out = [version(card) for card in cards if card < OLDEST_CARD]
        cards = [card for card in cards if card >= OLDEST_CARD]
        chosen = ["90a-real" if card == (9, 0) else f"{card[0]}{card[1]}-real" for card in cards]
    if left_out:
        print(f"acdc-kernels: no kernels for {', '.join(left_out)}: older than {version(OLDEST_CARD)}", file=sys.stderr)
    for name in chosen:
        number = re.match(r"\d+", name)[0]
        if number not in known:
            refuse(
                f"{nvcc} can't compile for compute capability {number[:-1]}.{number[-1]}: it takes a newer one, "
                'TORCH_CUDA_ARCH_LIST="9.0+PTX" (the driver compiles the rest), or ACDC_CUDA=0'
            )
    if not chosen and "120" not in known:
        chosen = ["80-real", "90a-real", "90-virtual"]
    return chosen


def choose_cuda(torch):
    """(nvcc, its version, architectures, ""), or (None, None, [], why there will be no CUDA kernels)."""
    asked = asked_for_cuda()
    if asked is False:
        return None, None, [], "ACDC_CUDA=0"
    if asked is None and not torch.version.cuda:
        return None, None, [], f"torch {torch.__version__} is built without CUDA"
    nvcc, why = find_nvcc()
    if nvcc is None:
        if asked:
            refuse(f"ACDC_CUDA=1, but {why}")
        return None, None, [], why
    found = nvcc_version(nvcc)
    check_versions(nvcc, found, torch)
    cards = card_versions(torch)
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    if asked is None and not listed and cards and cards[-1] < OLDEST_CARD:
        return (
            None,
            None,
            [],
            f"the cards here have compute capability {cards[-1][0]}.{cards[-1][1]}, less than {version(OLDEST_CARD)}",
        )
    return nvcc, found, architectures(nvcc, cards), ""


def is_stale(build, nvcc, found):
    """Whether the build folder was configured with another nvcc, which CMake doesn't notice or takes badly."""
    for file in build.glob("CMakeFiles/*/CMakeCUDACompiler.cmake"):
        text = file.read_text(encoding="utf-8")
        if (
            f'(CMAKE_CUDA_COMPILER "{nvcc}")' not in text
            or f'(CMAKE_CUDA_COMPILER_VERSION "{version(found)}.' not in text
        ):
            return True
    return False


class CMakeBuild(build_ext):
    """Builds `_ops` and `_C` into the package: beside the sources for an editable install, else into the wheel."""

    def run(self):
        asked = asked_for_cuda()
        if not any(map(works, filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")))):
            if asked:
                refuse("ACDC_CUDA=1, but no C++ compiler was found")
            print("acdc-kernels: no C++ compiler found, so no kernels are built: plain torch will run", file=sys.stderr)
            return
        if not (cmake := shutil.which("cmake")):
            refuse("cmake >= 3.25 is needed to build (pip install cmake)")
        import pybind11
        import torch

        nvcc, found, targets, why_not = choose_cuda(torch)
        cuda = (
            f"CUDA kernels by nvcc {version(found)} for {' '.join(targets) or 'the usual cards'}"
            if nvcc
            else f"no CUDA kernels ({why_not})"
        )
        print(
            f"acdc-kernels: torch {torch.__version__}, {sys.implementation.cache_tag}, CPU kernels, {cuda}",
            file=sys.stderr,
        )
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
            f"-DACDC_CUDA={'ON' if nvcc else 'OFF'}",
            f"-DACDC_NO_CUDA={why_not}",
        ]
        if ninja:
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        if nvcc:
            configure.append(f"-DCMAKE_CUDA_COMPILER={nvcc}")
            configure.append(
                f"-DCMAKE_CUDA_ARCHITECTURES={';'.join(targets)}" if targets else "-UCMAKE_CUDA_ARCHITECTURES"
            )
            if is_stale(build, nvcc, found):
                configure.append("--fresh")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        hint = "; ACDC_CUDA=0 builds without the CUDA kernels" if nvcc else ""
        if subprocess.call(configure):
            refuse(f"cmake could not configure the build: its first error above says why{hint}")
        if subprocess.call([cmake, "--build", str(build), "-j", os.environ.get("MAX_JOBS") or str(cores)]):
            refuse(f"the build failed: the first error above says where{hint}")


if __name__ == "__main__":
    setup(
        # The benchmarks live at the top of the repository and are installed as a part of the package.
        packages=[*find_packages(include=["acdc_kernels*"]), "acdc_kernels.benchmarks"],
        package_dir={"acdc_kernels.benchmarks": "benchmarks"},
        ext_modules=[Extension("acdc_kernels._C", sources=[])],
        cmdclass={"build_ext": CMakeBuild},
    )
