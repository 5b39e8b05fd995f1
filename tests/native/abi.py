"""What a compiled library asks of the libraries that it is loaded beside."""

import re
import subprocess
from pathlib import Path

import torch

HEADERS = Path(torch.__file__).parent / "include" / "torch" / "csrc"
C_API = ("stable/c/shim.h", "inductor/aoti_torch/c/shim.h")
BEFORE_VERSIONS = (2, 9)  # what no guard names was there when torch began to guard


def undefined(library: Path) -> list[str]:
    """The names that somebody else must define, without version."""
    out = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True).stdout
    return [line.split()[-1].partition("@")[0] for line in out.splitlines()]


def c_api() -> dict[str, tuple[int, int]]:
    """Each function of torch's C API, with the version that brought it, as the guards of its headers say."""
    functions = {}
    for header in C_API:
        guards: list[tuple[int, int]] = []
        for line in (HEADERS / header).read_text().splitlines():
            if line.startswith("#if"):
                since = re.match(r"#if TORCH_FEATURE_VERSION >= TORCH_VERSION_(\d+)_(\d+)_\d+", line)
                guards.append((int(since[1]), int(since[2])) if since else BEFORE_VERSIONS)
            elif line.startswith("#endif"):
                guards.pop()
            else:
                for name in re.findall(r"\b((?:aoti_)?torch_\w+)\s*\(", line):
                    functions.setdefault(name, max(guards, default=BEFORE_VERSIONS))
    return functions


def newer_than(version: tuple[int, int], library: Path) -> list[str]:
    """What `library` asks of torch and `version` doesn't have, or doesn't promise."""
    known = c_api()
    torch_cpp = re.compile(r"_Z.*(2at|3c10|5torch|6caffe2)(?=[A-Z0-9N])")
    names = undefined(library)
    ours = [name for name in names if re.match(r"(aoti_)?torch_|c10_|at_", name)]
    assert names  # nm saw the library
    late = [f"{name}: {known.get(name, 'not in the C API')}" for name in ours if known.get(name, (99, 0)) > version]
    return late + [f"{name}: C++" for name in names if torch_cpp.match(name)]


def folders(library: Path) -> str:
    """Where the loader is told to look for other libraries (RUNPATH), and which it asks for (NEEDED)."""
    out = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    return "\n".join(re.findall(r"\((?:NEEDED|RUNPATH|RPATH)\).*\[(.*)\]", out))
