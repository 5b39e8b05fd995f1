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

| file | kernel | registers | shared | constant |
|---|---|---:|---:|---:|
"""


class Kernel(NamedTuple):
    registers: int
    shared: int
    constant: int | None
    stack: int
    spills: int


Kernels = dict[tuple[str, str], dict[str, Kernel]]  # (file, kernel) -> architecture -> what it takes


def sources() -> list[str]:
    """The kernels' files without suffix, as CMakeLists.txt lists them."""
    found = re.search(r"set\(ACDC_CUDA_KERNELS ([^)]*)\)", (ROOT / "CMakeLists.txt").read_text(encoding="utf-8"))
    return found[1].split()


def readable(mangled: list[str]) -> list[tuple[str, str]]:
    """Of each name: the file it is in, or "common"; itself without namespaces, return type and parameters."""
    done = subprocess.run(["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True)
    files = [re.search(r"_GLOBAL__N__[0-9a-f]+_\d+_(\w+?)_cu_[0-9a-f]+", name) for name in mangled]
    names = done.stdout.splitlines()
    return [(file[1] if file else "common", short(name)) for file, name in zip(files, names, strict=True)]


def short(name: str) -> str:
    name = re.sub(r"acdc::|\(anonymous namespace\)::", "", name).removeprefix("void ")
    name = re.sub(r"\(\w[\w ]*\)(?=[\w-])", "", name)  # (int)3
    depth = 0
    for end, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return name[:end]
    return name


def parse(output: str) -> Kernels:
    """ptxas's report, read."""
    pattern = re.compile(
        r"Compiling entry function '(?P<name>\w+)' for '(?P<card>\w+)'\n"
        r"(?:.*\n)*?\s*(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\n"
        r".*Used (?P<registers>\d+) registers(?P<rest>.*)"
    )
    found = list(pattern.finditer(output))
    if len(found) != output.count("Compiling entry function"):
        raise ValueError("ptxas's report has changed its form")
    names = readable([match["name"] for match in found])
    kernels: Kernels = {}
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


def problems(kernels: Kernels) -> list[str]:
    """The files without kernels; the kernels that spill, have a stack frame, or weren't compiled for all architectures."""
    files = {file for file, _ in kernels}
    found = [f"{name}.cu: no kernel in the report" for name in sources() if name.rpartition("/")[2] not in files]
    for (file, kernel_name), cards in sorted(kernels.items()):
        name = f"{kernel_name} in {file}"
        found += [f"{name}: not compiled for {card}" for card in ARCHITECTURES if card not in cards]
        for card, kernel in cards.items():
            if kernel.stack or kernel.spills:
                found.append(f"{name} for {card}: {kernel.stack} bytes of stack frame, {kernel.spills} of spills")
    return found


def page(kernels: Kernels, nvcc: str) -> str:
    def cell(values: list[int | None]) -> str:
        values = ["-" if value is None else value for value in values]
        return str(values[0]) if len(set(values)) == 1 else " / ".join(map(str, values))

    rows = []
    for (file, name), cards in sorted(kernels.items()):
        each = [cards[card] for card in ARCHITECTURES]
        columns = [cell([getattr(kernel, field) for kernel in each]) for field in ("registers", "shared", "constant")]
        rows.append(f"| {file} | `{name}` | {' | '.join(columns)} |\n")
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
    if found := problems(kernels):
        print("\n".join(found))
        return 1
    PAGE.write_text(page(kernels, release(nvcc)), encoding="utf-8")
    print(f"{len(kernels)} kernels: {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
