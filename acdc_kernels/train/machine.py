"""What this machine is: recorded with every run, shown by ``info``."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path

import torch

from .. import __version__, _native

ISA_FLAGS = ("avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_bf16", "avx512_fp16", "amx_bf16")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, object]:
    """Processor, cores this process may use, memory in GiB, ISA extensions, operating system, GPU (None: no CUDA)."""
    cpuinfo = _cpuinfo()
    return {
        "cpu": cpuinfo.get("model name") or platform.processor() or platform.machine(),
        "cores": cores(),
        "memory_gib": _memory_gib(),
        "isa": [flag for flag in ISA_FLAGS if flag in cpuinfo.get("flags", "").split()],
        "os": platform.platform(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def versions() -> dict[str, str]:
    return {
        "acdc-kernels": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "kernels": f"C++ {_native.cpu_isa()}" if _native.available() else "plain torch reference",
        **{name: _version(name) for name in ("numpy", "scikit-learn")},
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if sys.platform != "linux" or not path.is_file():
        return {}
    pairs = (line.split(":", 1) for line in path.read_text().split("\n\n")[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
