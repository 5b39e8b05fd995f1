"""What each CUDA kernel takes of a multiprocessor, as ptxas reports it: `python tests/native/cuda_resources.py` writes
docs/cuda-resources.md anew. Only kernels without spills and without a stack frame are accepted.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "cuda-resources.md"
ARCHITECTURES = {"sm_80": "8.0", "sm_90a": "9.0a", "sm_100": "10.0", "sm_120": "12.0"}
TARGETS = "80-real;90a-real;100-real;120-real"

HEAD = """# What the CUDA kernels take

Of each kernel, as nvcc {nvcc} reports it for compute capability {cards}: registers of a thread, and bytes of shared memory of a block and of
constant memory (arguments included; newer architectures don't tell). No kernel spills registers or has a stack frame, which a test holds.
`python tests/native/cuda_resources.py` writes this page.

| kernel | registers | shared | constant |
|---|---:|---:|---:|
"""


class Kernel(NamedTuple):
    registers: int
    shared: int
    constant: int | None
    stack: int
    spills: int


def sources() -> list[str]:
    """The kernels' files without suffix, as CMakeLists.txt lists them."""
    found = re.search(r"set\(ACDC_CUDA_KERNELS ([^)]*)\)", (ROOT / "CMakeLists.txt").read_text(encoding="utf-8"))
    return found[1].split()


def demangled(names: list[str]) -> list[str]:
    out = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return out.splitlines()


def short(name: str) -> str:
    """Without namespaces, return type and parameters."""
    name = name.replace("(anonymous namespace)::", "")
    name = re.sub(r"(acdc|_GLOBAL__N__\w+|_INTERNAL_\w+)::", "", name)
    depth, end = 0, len(name)
    for end, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            break
    else:
        end = len(name)
    name = name[:end].removeprefix("void ")
    name = re.sub(r"\((?:bool|int|unsigned int|long|unsigned char|\w+)\)(?=[\w-])", "", name)
    return name.replace("unsigned ", "u")


def parse(output: str) -> dict[str, dict[str, Kernel]]:
    """ptxas's report -> kernel -> architecture -> what it takes."""
    pattern = re.compile(
        r"Compiling entry function '(?P<name>\w+)' for '(?P<card>\w+)'\n"
        r"(?:.*\n)*?\s*(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\n"
        r".*Used (?P<registers>\d+) registers(?P<rest>.*)"
    )
    found = list(pattern.finditer(output))
    if len(found) != output.count("Compiling entry function"):
        raise ValueError("ptxas's report has changed its form")
    names = [short(name) for name in demangled([match["name"] for match in found])]
    kernels: dict[str, dict[str, Kernel]] = {}
    for name, match in zip(names, found, strict=True):

        def amount(pattern: str, rest: str = match["rest"]) -> int | None:
            number = re.search(pattern, rest)
            return int(number[1]) if number else None

        kernels.setdefault(name, {})[match["card"]] = Kernel(
            registers=int(match["registers"]),
            shared=amount(r"(\d+) bytes smem") or 0,
            constant=amount(r"(\d+) bytes cmem\[0\]"),
            stack=int(match["stack"]),
            spills=int(match["stores"]) + int(match["loads"]),
        )
    return kernels


def problems(kernels: dict[str, dict[str, Kernel]]) -> list[str]:
    """The kernels that spill, have a stack frame, or weren't compiled for all architectures."""
    found = []
    for name, cards in sorted(kernels.items()):
        found += [f"{name}: not compiled for {card}" for card in ARCHITECTURES if card not in cards]
        for card, kernel in cards.items():
            if kernel.stack or kernel.spills:
                found.append(f"{name} for {card}: {kernel.stack} bytes of stack frame, {kernel.spills} of spills")
    return found


def page(kernels: dict[str, dict[str, Kernel]], nvcc: str) -> str:
    def cell(values: list[int | None]) -> str:
        values = ["-" if value is None else value for value in values]
        return str(values[0]) if len(set(values)) == 1 else " / ".join(map(str, values))

    rows = []
    for name, cards in sorted(kernels.items()):
        each = [cards[card] for card in ARCHITECTURES]
        columns = [cell([getattr(kernel, field) for kernel in each]) for field in ("registers", "shared", "constant")]
        rows.append(f"| `{name}` | {' | '.join(columns)} |\n")
    return HEAD.format(nvcc=nvcc, cards=" / ".join(ARCHITECTURES.values())) + "".join(rows)


def compile_all(build: Path, nvcc: str) -> str:
    """ptxas's report of all kernels, compiled as the build compiles them."""
    options = ["-DACDC_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={nvcc}", f"-DCMAKE_CUDA_ARCHITECTURES={TARGETS}"]
    options += ["-DCMAKE_CUDA_FLAGS=-Xptxas=-v", f"-DPython_EXECUTABLE={sys.executable}", f"-DACDC_OUTPUT_DIR={build}"]
    run = subprocess.run(["cmake", "-S", ROOT, "-B", build, *options], capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(run.stdout[-4000:] + run.stderr[-4000:])
    command = ["cmake", "--build", build, "--target", "acdc_kernels_cuda", "-j", os.environ.get("MAX_JOBS") or "2"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(run.stdout[-8000:] + run.stderr[-4000:])
    return run.stdout + run.stderr


def release(nvcc: str) -> str:
    """The nvcc's version, to the last number: `13.0.88`."""
    out = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"V(\d+\.\d+\.\d+)", out)[1]


def main() -> int:
    nvcc = sys.argv[1] if len(sys.argv) > 1 else "nvcc"
    with tempfile.TemporaryDirectory() as build:
        kernels = parse(compile_all(Path(build), nvcc))
    PAGE.write_text(page(kernels, release(nvcc)), encoding="utf-8")
    print(f"{len(kernels)} kernels: {PAGE.relative_to(ROOT)}")
    found = problems(kernels)
    print("\n".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
