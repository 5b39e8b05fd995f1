"""What a timing was taken on: enough to judge it by, nothing that identifies the host."""

from __future__ import annotations

import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from acdc_kernels import _native
from acdc_kernels.train.machine import machine as processor
from acdc_kernels.train.machine import versions


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
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


def machine() -> dict[str, Any]:
    """Processor, caches, memory, system, versions, the kernels' ISA level, commit and date; no host name, no path."""
    return {
        **processor(),
        "arch": platform.machine(),
        "caches": _caches(),
        "kernels": _native.cpu_isa(),
        "versions": versions(),
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


SMI = {  # what nvidia-smi calls it -> key
    "driver_version": "driver", "clocks.sm": "sm_mhz", "clocks.mem": "memory_mhz", "clocks.max.sm": "max_sm_mhz",
    "clocks.max.mem": "max_memory_mhz", "power.limit": "power_limit_w", "temperature.gpu": "celsius",
}  # fmt: skip


def smi(gpu: str) -> dict[str, Any]:
    """Driver, clocks of this moment and limits of a GPU, as far as nvidia-smi tells. `gpu` is its name there."""
    command = ["nvidia-smi", f"--id={gpu}", f"--query-gpu={','.join(SMI)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    values = [value.strip() for value in done.stdout.split(",")] if done.returncode == 0 else []
    if len(values) != len(SMI):
        return {}
    told = {key: value for key, value in zip(SMI.values(), values, strict=True) if not value.startswith("[")}
    return {key: value if key == "driver" else float(value) for key, value in told.items()}


def gpu() -> dict[str, Any]:
    """The current CUDA device, as torch and nvidia-smi tell of it."""
    it = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": it.name,
        "capability": f"{it.major}.{it.minor}",
        "multiprocessors": it.multi_processor_count,
        "l2_bytes": it.L2_cache_size,
        "memory_bytes": it.total_memory,
        "cuda": torch.version.cuda,
        **smi(f"GPU-{it.uuid}"),
    }
