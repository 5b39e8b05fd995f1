"""What the plan remembers: times measured before, on disk, and what they depend on beside the layer."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import tempfile
from collections.abc import Mapping
from functools import cache, cached_property
from pathlib import Path

import torch

from . import _native
from ._version import __version__

__all__ = ["Memory", "gpu_key", "machine_key"]


class Memory:
    """Times measured before, on disk: ``$ACDC_PLAN_CACHE`` is the folder ("0": none); by default
    ``acdc-kernels`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.

    One JSON file, read when it is first asked, and replaced in one step; what can't be read is ignored, and what can't
    be written is not remembered. Of processes that write at the same time the last one wins.
    """

    FORMAT = 1
    LARGEST = 4096  # entries; the oldest go first
    RATE = 25e6  # bytes/s, of reading or writing

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._put: set[str] = set()

    @cached_property
    def entries(self) -> dict[str, dict[str, dict[str, float]]]:
        """Key -> group -> name -> seconds; the oldest first."""
        return self._read()

    @cached_property
    def reading(self) -> float:
        """Seconds that reading the file takes, by its size; saving takes about three times that."""
        try:
            return 0.0 if self.path is None else 2e-4 + self.path.stat().st_size / self.RATE
        except OSError:
            return 2e-4

    def fits(self, seconds: float) -> bool:
        """Whether it can be asked within that time."""
        return "entries" in self.__dict__ or self.reading <= seconds

    @classmethod
    def of_user(cls) -> Memory:
        """As the environment says."""
        folder = os.environ.get("ACDC_PLAN_CACHE")
        if folder == "0":
            return cls(None)
        if not folder:
            try:
                folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "acdc-kernels")
            except RuntimeError:  # nobody's home
                return cls(None)
        return cls(Path(os.path.expanduser(folder), "plans.json"))

    def get(self, key: str) -> dict[str, dict[str, float]]:
        """Group -> name -> seconds, of what was measured under ``key``; empty if nothing was."""
        return dict(self.entries.get(key, {}))

    def put(self, key: str, groups: Mapping[str, Mapping[str, float]]) -> None:
        """Remembers more groups under ``key``."""
        self.entries[key] = {**self.entries.pop(key, {}), **{name: dict(times) for name, times in groups.items()}}
        self._put.add(key)

    def save(self) -> None:
        """Writes what was put, beside what others have written meanwhile."""
        if self.path is None or not self._put:
            return
        entries = self._read()
        for key, groups in self.entries.items():
            if key in self._put:  # now it is the latest
                entries[key] = {**entries.pop(key, {}), **groups}
        entries = dict(list(entries.items())[-self.LARGEST :])
        temporary = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=".plans-", suffix=".tmp")
            with os.fdopen(handle, "w") as file:
                file.write(json.dumps({"format": self.FORMAT, "entries": entries}))
            os.replace(temporary, self.path)
        except OSError:  # a cache alone: a full or read-only disk must not end a run
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)

    def _read(self) -> dict[str, dict[str, dict[str, float]]]:
        if self.path is None:
            return {}
        try:
            content = json.loads(self.path.read_text())
            entries = content["entries"] if content["format"] == self.FORMAT else {}
            return {key: groups for key, groups in entries.items() if _is_entry(groups)}
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return {}


def _is_entry(groups: object) -> bool:
    return isinstance(groups, dict) and all(
        isinstance(times, dict) and all(isinstance(t, float) and math.isfinite(t) and t > 0 for t in times.values())
        for times in groups.values()
    )


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def machine_key() -> str:
    """What times depend on, beside the layer."""
    ours = f"threads={torch.get_num_threads()} {_native.cpu_isa()} {__version__}"
    return f"float32 {ours}, torch {torch.__version__}, {_processor()}"


@cache
def gpu_key(device: torch.device) -> str:
    """The same of layers on a GPU; dtype and TF32 are the layer's."""
    p = torch.cuda.get_device_properties(device)
    card = f"{p.name} {p.major}.{p.minor}, {p.multi_processor_count} multiprocessors"
    return f"{card}, torch {torch.__version__}, triton {_version_of('triton')}, {__version__}"


def _version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"
