"""What a timing was taken on: enough to judge it by, nothing that identifies the host."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import acdc_kernels
from acdc_kernels import _native


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _field(path: str, key: str) -> str:
    for line in _read(Path(path)).splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _caches() -> dict[str, str]:
    caches = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind = {"Data": "d", "Instruction": "i"}.get(_read(index / "type"), "")
        caches[f"L{_read(index / 'level')}{kind}"] = _read(index / "size")
    return caches


def commit() -> str:
    """The checkout's commit, with `+changes` if tracked files differ; empty outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():  # an installed copy may sit inside somebody else's repository
        return ""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        head = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no") if head else ""
    except OSError:  # no git here
        return ""
    return head + ("+changes" if changed else "")


def machine(device: str = "cpu") -> dict[str, Any]:
    """CPU model, cores, ISA, caches, memory, system, versions, commit and date; no host name, no path."""
    kibibytes = _field("/proc/meminfo", "MemTotal").removesuffix("kB").strip()
    stamp: dict[str, Any] = {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cpu_family_model_stepping": [_field("/proc/cpuinfo", key) for key in ("cpu family", "model", "stepping")],
        "arch": platform.machine(),
        "cores": cores(),
        "isa": _native.cpu_isa(),
        "caches": _caches(),
        "memory_gib": round(int(kibibytes) / 2**20, 1) if kibibytes.isdigit() else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "acdc_kernels": acdc_kernels.__version__,
        "native": _native.available(),
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    if device == "cuda":
        stamp["gpu"] = torch.cuda.get_device_name()
    return stamp
