"""Interleaved timing of several callables in one process, and the rows and table that come of it.

Every round runs each contender once, in an order shuffled anew, so that slow drifts of a shared machine and whatever
the predecessor left in the caches hit all of them alike. A sample during which the system took a core away from this
process counts only if too few undisturbed ones could be had. Medians are compared, never minima.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import json
import platform
import random
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from acdc_kernels.train.replacing import replacing

Row = dict[str, Any]
Name = TypeVar("Name", bound=Hashable)

ROW_KEYS = (
    "op", "case", "pattern", "sparsity", "dtype", "threads", "device", "ours_ms", "peer", "peer_ms", "speedup",
)  # fmt: skip
FEWEST_CLEAN = 3


@dataclass(frozen=True)
class Timing:
    """Milliseconds a call: median of the clean samples; with fewer than three, of the fastest third (three or more)."""

    ms: float
    spread: float  # interquartile range / median of the samples that were used
    clean: int  # samples without an involuntary context switch
    samples: int


@dataclass(frozen=True)
class Budget:
    """When to stop: every contender has `clean` clean samples, or the rounds or the seconds are used up."""

    clean: int = 11
    rounds: int = 40
    seconds: float = 25.0
    fewest_rounds: int = 5


QUICK = Budget(clean=3, rounds=6, seconds=6.0, fewest_rounds=3)


def involuntary_switches() -> int:
    """Involuntary context switches of this process so far, worker threads included; 0 where nobody counts."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


@contextlib.contextmanager
def keep_freed_pages() -> Iterator[bool]:
    """Makes glibc's malloc keep freed memory, so that after the warm-up no contender's outputs are page-faulted again.

    Without it a 100 MB temporary is mapped and faulted in at every call, which would flatter whoever allocates less.
    Yields whether it could be done; glibc's defaults are back afterwards.
    """
    if platform.libc_ver()[0] != "glibc":
        yield False
        return
    trim_threshold, mmap_max, largest_int = -1, -4, 2**31 - 1
    libc = ctypes.CDLL(None)
    try:
        yield bool(libc.mallopt(mmap_max, 0) and libc.mallopt(trim_threshold, largest_int))
    finally:
        libc.mallopt(mmap_max, 65536)
        libc.mallopt(trim_threshold, 128 * 1024)
        libc.malloc_trim(0)


def let_go() -> None:
    """Gives the memory of earlier contenders back to the system: what reference cycles hold, and glibc's free heap."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def thread_counts(threads: Sequence[int]) -> Iterator[int]:
    """Each count in turn, once torch is set to it and the memory of the one before is let go."""
    for count in threads:
        let_go()
        torch.set_num_threads(count)
        yield count


def _timed(call: Callable[[], object], calls: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(calls):
        call()
    return (clock() - start) / calls


def summarize(seconds: Sequence[float], clean: Sequence[float]) -> Timing:
    """The timing of samples in seconds, of which `clean` are those that nothing disturbed."""
    used = sorted(clean)
    if len(used) < FEWEST_CLEAN:
        used = sorted(seconds)[: max(FEWEST_CLEAN, len(seconds) // 3)]
    median = statistics.median(used)
    quartiles = statistics.quantiles(used, n=4, method="inclusive") if len(used) > 1 else [median] * 3
    spread = (quartiles[2] - quartiles[0]) / median if median > 0 else 0.0
    return Timing(ms=median * 1e3, spread=spread, clean=len(clean), samples=len(seconds))


def interleave(
    contenders: Mapping[Name, Callable[[], object]],
    budget: Budget | None = None,
    *,
    sample_seconds: float = 0.002,
    clock: Callable[[], float] = time.perf_counter,
    switches: Callable[[], int] = involuntary_switches,
    timed: Callable[[Callable[[], object], int], float] | None = None,
    seed: int = 0,
) -> dict[Name, Timing]:
    """Times the contenders against each other and returns one `Timing` for each name.

    A contender faster than `sample_seconds` is called several times a sample. The same callable may be entered under
    two names: their ratio then shows the noise. `clock` (seconds) and `switches` are there for tests; `timed(call, n)`,
    the seconds that each of n calls takes, for devices with a clock of their own.
    """
    if not contenders:
        raise ValueError("interleave: contenders must not be empty")
    budget = budget or Budget()
    timed = timed or functools.partial(_timed, clock=clock)
    shuffle = random.Random(seed).shuffle
    seconds: dict[Name, list[float]] = {name: [] for name in contenders}
    clean: dict[Name, list[float]] = {name: [] for name in contenders}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        calls = {}
        for name, call in contenders.items():
            call()  # faults pages in, starts threads, fills caches
            calls[name] = max(1, round(sample_seconds / max(timed(call, 1), 1e-7)))
        start = clock()
        for round_ in range(budget.rounds):
            order = list(contenders)
            shuffle(order)
            for name in order:
                before = switches()
                sample = timed(contenders[name], calls[name])
                seconds[name].append(sample)
                if switches() == before:
                    clean[name].append(sample)
            if all(len(samples) >= budget.clean for samples in clean.values()):
                break
            if clock() - start > budget.seconds and round_ + 1 >= budget.fewest_rounds:
                break
    finally:
        if collecting:
            gc.enable()
    return {name: summarize(seconds[name], clean[name]) for name in contenders}


def rows(
    timings: Mapping[str, Timing], *, ours: str = "ours", roofline: str | None = None, facts: Mapping[str, Any]
) -> list[Row]:
    """One row a peer. `facts` are op, case, pattern, sparsity, dtype, threads, device and any extra keys.

    `speedup` is the peer's time over ours. With `roofline` naming a contender, every row also tells how far ours is
    from it (`of_roofline`: our time over the roofline's, 1.0 is the machine's limit).
    """
    mine = timings[ours]
    common: Row = dict(facts)
    if roofline is not None:
        common |= {"roofline_ms": _round(timings[roofline].ms), "of_roofline": _round(mine.ms / timings[roofline].ms)}
    result = []
    for name, peer in timings.items():
        if name == ours:
            continue
        row = common | {"ours_ms": _round(mine.ms), "peer": name, "peer_ms": _round(peer.ms)}
        row |= {"speedup": _round(peer.ms / mine.ms), "ours_spread": _round(mine.spread)}
        row |= {"peer_spread": _round(peer.spread), "ours_clean": f"{mine.clean}/{mine.samples}"}
        row |= {"peer_clean": f"{peer.clean}/{peer.samples}"}
        result.append({key: row[key] for key in ROW_KEYS} | {k: v for k, v in row.items() if k not in ROW_KEYS})
    return result


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def table(group: Sequence[Row]) -> str:
    """The rows of one case at one thread count, or on a device that has none to choose, as text."""
    first = group[0]
    head = f"{first['op']}  {first['case']}  {first['sparsity']:.0%} {first['pattern']}  {first['dtype']}  "
    if first["device"] == "cpu":
        head += f"{first['threads']} thread{'s' if first['threads'] > 1 else ''}  "
    head += first["device"]
    ours = f"  {'ours (' + first.get('backend', '?') + ')':<36}{first['ours_ms']:>10.4g} ms{'':10}"
    ours += f"  ±{first['ours_spread']:.1%}  clean {first['ours_clean']}"
    if "of_roofline" in first:
        ours += f"  {first['of_roofline']:.2f}x of the roofline's time"
    ours += _without_host(first, "ours")
    if "of_copy" in first:
        ours += f"  {first['ours_gb_per_s']:.4g} GB/s, {first['of_copy']:.0%} of a copy's"
    if "tflop_per_s" in first:
        ours += f"  {first['tflop_per_s']:.4g} TFLOP/s of kept weights, {first['config']}"
    lines = [head, ours + _memory(first, "ours")]
    for row in group:
        line = f"  {row['peer']:<36}{row['peer_ms']:>10.4g} ms{row['speedup']:>9.2f}x"
        line += f"  ±{row['peer_spread']:.1%}  clean {row['peer_clean']}"
        lines.append(line + _without_host(row, "peer") + _memory(row, "peer"))
    return "\n".join(lines)


def disturbed(all_rows: Sequence[Row]) -> bool:
    """Whether some timing had too few samples that the system left alone."""
    return any(int(row[key].split("/")[0]) < FEWEST_CLEAN for row in all_rows for key in ("ours_clean", "peer_clean"))


def _memory(row: Row, who: str) -> str:
    percent = row.get(f"{who}_extra_percent")
    return "" if percent is None else f"  extra memory {percent:.2f}% of the weights"


def _without_host(row: Row, who: str) -> str:
    text = ""
    for basis, why_not in (("device", "no_device_time"), ("graph", "not_captured")):
        if row.get(f"{who}_{basis}_ms") is None:
            text += f"  no {basis}" if f"{who}_{why_not}" in row else ""
            continue
        text += f"  {basis} {row[f'{who}_{basis}_ms']:.4g} ms"
        if who == "peer" and f"{basis}_speedup" in row:
            text += f" {row[f'{basis}_speedup']:.2f}x"
    return text


def write_json(
    path: Path, machine: Mapping[str, Any], all_rows: Sequence[Row], *, peak_bytes: int, complete: bool
) -> None:
    """`{"machine": {...}, "complete": ..., "peak_bytes": ..., "rows": [...]}`, a row a line, so that diffs read well.

    A file that is there is replaced in one step.
    """
    head = f'"machine": {json.dumps(machine)},\n  "complete": {json.dumps(complete)},\n  "peak_bytes": {peak_bytes}'
    body = ",\n    ".join(json.dumps(row) for row in all_rows)
    with replacing(path.resolve()) as temporary:
        temporary.write_text(f'{{\n  {head},\n  "rows": [\n    {body}\n  ]\n}}\n', encoding="utf-8")
