"""Extra memory of one call: what the process grows by at its peak, less the outputs, in a fresh process each time.

Two figures. *Touched*: growth of the peak resident set. *Reserved*: growth of the peak address space, which also counts
scratch that was allocated but never written. Before the call, freed heap goes back to the system, and the address space
and the resident set are filled up to their peaks so far: any growth of a peak is then the call's own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .cases import MODELS, TINY, Case

STATUS = Path("/proc/self/status")
PAGE = 4096


@dataclass(frozen=True)
class Extra:
    """Bytes beyond the outputs, and as percent of the weights."""

    touched: int
    reserved: int
    outputs: int
    weights: int

    @property
    def percent(self) -> float:
        return 100.0 * self.touched / self.weights

    @property
    def reserved_percent(self) -> float:
        return 100.0 * self.reserved / self.weights


def columns(who: str, extra: Extra | None) -> dict[str, Any]:
    """The keys that a row gets; none where nothing was measured."""
    if extra is None:
        return {}
    return {
        f"{who}_extra_bytes": extra.touched,
        f"{who}_extra_percent": round(extra.percent, 3),
        f"{who}_extra_reserved_percent": round(extra.reserved_percent, 3),
    }


def why_not() -> str:
    """Why memory cannot be measured here; empty when it can."""
    return "" if STATUS.exists() else "the system has no /proc/self/status"


def measure(case: Case, contender: str, threads: int) -> Extra | None:
    """Extra memory of one contender of `bench topk`; None where the system does not tell."""
    if why_not():
        return None
    task = json.dumps([case.model.name, case.sparsity, case.scope, contender, threads])
    # One malloc arena: else a thread's first allocation reserves 64 MiB that it never touches.
    done = subprocess.run(
        [sys.executable, "-m", __name__, task],
        env=os.environ | {"MALLOC_ARENA_MAX": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"bench: measuring the memory of {contender!r} failed:\n{done.stderr.strip()}")
    return Extra(**json.loads(done.stdout.splitlines()[-1]))


def _status(key: str) -> int:
    for line in STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"bench: {STATUS} must have {key}, got none")


def _fill_up_to_peaks() -> list[Any]:
    """Maps what lies between the process and its peaks; returned, for it has to live on."""
    import ctypes
    import mmap

    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    held: list[Any] = []
    for now, peak, touch in (("VmRSS", "VmHWM", True), ("VmSize", "VmPeak", False)):
        for _ in range(8):
            gap = _status(peak) - _status(now)
            if gap < PAGE:
                break
            filler = mmap.mmap(-1, gap)
            if touch:
                filler[::PAGE] = b"\1" * len(range(0, gap, PAGE))
            held.append(filler)
    return held


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def output_bytes(value: object) -> int:
    """Bytes of every tensor or array in `value`."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(value)}
    return sum(storages.values()) or int(getattr(value, "nbytes", 0))


def _child(task: str) -> None:
    from . import topk

    name, sparsity, scope, contender, threads = json.loads(task)
    torch.set_num_threads(threads)
    torch.zeros(1 << 22).add_(1)  # starts the threads
    tiny = Case(TINY, sparsity, scope)
    topk.contenders(tiny, tiny.model.weights())[contender]()  # loads and compiles whatever a first call does
    case = Case(MODELS[name], sparsity, scope)
    weights = case.model.weights()
    call = topk.contenders(case, weights)[contender]
    held = _fill_up_to_peaks()
    resident, mapped = _status("VmHWM"), _status("VmPeak")
    result = call()
    grown, reserved = _status("VmHWM") - resident, _status("VmPeak") - mapped
    outputs = output_bytes(result)
    del held
    extra = Extra(
        touched=max(0, grown - outputs),
        reserved=max(0, reserved - outputs),
        outputs=outputs,
        weights=sum(w.numel() * w.element_size() for w in weights),
    )
    print(json.dumps(asdict(extra)))


if __name__ == "__main__":
    _child(sys.argv[1])
