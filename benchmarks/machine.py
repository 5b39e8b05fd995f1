"""What a timing was taken on: enough to judge it by, nothing that identifies the host."""

from __future__ import annotations

import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

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
