"""`acdc-kernels bench OP`: times an op or training steps, prints tables and writes machine-stamped JSON."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from acdc_kernels.ops._registry import has_kernel
from acdc_kernels.train.machine import cores
from acdc_kernels.train.memory import peak_bytes

if __package__:
    from . import cuda_timing, harness
    from . import machine as stamps
    from .machine import machine
else:  # `python benchmarks/run.py`: the installed package is the same folder
    from acdc_kernels.benchmarks import cuda_timing, harness
    from acdc_kernels.benchmarks import machine as stamps
    from acdc_kernels.benchmarks.machine import machine

OPS = ("topk", "update", "linear", "train")
DEFAULT_THREADS = (1, 2)


Measure = Callable[[Any, int], Iterator[list[harness.Row]]]  # of a case and its number


def _why_no_cuda() -> str:
    if torch.cuda.is_available():
        return ""
    return "this torch is built without CUDA" if not torch.version.cuda else "torch finds no CUDA device"


def _problem(op: str, device: str, threads: list[int], json: Path | None) -> str:
    """What is wrong with the request, or nothing."""
    if op not in OPS:
        return f"op must be one of {', '.join(OPS)}, got {op!r}"
    if device not in ("cpu", "cuda"):
        return f"device must be cpu or cuda, got {device!r}"
    if device == "cuda" and (why := _why_no_cuda()):
        return f"device must be one that this machine has, got cuda: {why}"
    if device == "cuda" and threads:
        return f"threads must be left out for cuda, where the host only launches, got {', '.join(map(str, threads))}"
    for count in threads:
        if not 1 <= count <= cores():
            return f"threads must be in [1, {cores()}], the cores that this process may use, got {count}"
    if json is not None and not json.resolve().parent.is_dir():
        return f"json must lie in a folder that exists, got {json}"
    if json is not None and json.exists() and not json.is_file():
        return f"json must be a file, got {'the folder' if json.is_dir() else 'something else:'} {json}"
    if op == "topk" and device == "cpu" and importlib.util.find_spec("numpy") is None:
        return 'numpy must be installed, for it is one of the peers: pip install "acdc-kernels[bench]"'
    return ""


def _on_cpu(op: str, threads: list[int], quick: bool, stamp: dict[str, Any]) -> tuple[ModuleType, Measure]:
    """The op's bench and how it measures a case, once it is said what on."""
    from acdc_kernels import _native

    if not _native.available():
        print(f"The plain torch reference is timed, not the kernels: {_native.why_not()}", file=sys.stderr)
    backend = f"native {_native.cpu_isa()}" if _native.available() else "reference"
    print(
        f"{stamp['cpu']}, {stamp['cores']} cores, {stamp['kernels']}; torch {torch.__version__}; interleaved medians\n"
    )
    bench = importlib.import_module(f".{op}", harness.__package__)
    budget = harness.QUICK if quick else harness.Budget()

    def measure(case: Any, number: int) -> Iterator[list[harness.Row]]:
        return bench.measure(case, threads, budget, backend, with_memory=number == 0 and not quick)

    return bench, measure


def _on_cuda(op: str, quick: bool, stamp: dict[str, Any]) -> tuple[ModuleType, Measure]:
    """As `_on_cpu`; `stamp` also gets the device and what it can do, `cuda`."""
    bench = importlib.import_module(f".{op}_cuda", harness.__package__)
    backend = getattr(bench, "BACKEND", "native cuda") if has_kernel(bench.OP, "cuda") else "reference"
    if backend == "reference":
        print(f"The plain torch reference is timed: there is no CUDA kernel of {op} in this build", file=sys.stderr)
    budget = cuda_timing.QUICK if quick else cuda_timing.BUDGET
    gpu = cuda_timing.Gpu()
    limit = cuda_timing.ceiling(gpu, budget)
    stamp["cuda"] = {**stamps.gpu(), **asdict(limit)}  # now that it is awake: its clocks sleep with it
    if hasattr(bench, "ceilings"):
        stamp["cuda"] |= bench.ceilings(gpu, budget)
        print(bench.ceilings_line(stamp["cuda"]))
    print(
        f"{stamp['cuda']['name']}, a copy moves {limit.copy_gb_per_s:.4g} GB/s; torch {torch.__version__}, CUDA "
        f"{stamp['cuda']['cuda']}; interleaved medians, caches swept; device: without the host\n"
    )
    return bench, lambda case, number: bench.measure(case, gpu, limit, budget, backend)


def run(
    op: str, device: str = "cpu", threads: list[int] | None = None, quick: bool = False, json: Path | None = None
) -> int:
    """Times `op` and prints the tables.

    Args:
        op: `topk`, `update`, `linear` or `train`.
        device: `cpu` or `cuda`.
        threads: thread counts, timed one after the other; default 1 and 2, as far as there are cores. None on `cuda`.
        quick: the headline cases alone, few repetitions, no memory measurement but on `cuda`.
        json: file to write `{"machine": {...}, "complete": ..., "peak_bytes": ..., "rows": [...]}` to, one row a peer;
            written anew after each table, complete or not. `peak_bytes` is the most memory that the process has had
            resident, in a row until then.

    Returns:
        The exit status: 0, or 2 after saying on stderr what is wrong with the request.
    """
    threads = list(threads or [])
    if device == "cpu" and not threads:
        threads = [count for count in DEFAULT_THREADS if count <= cores()]
    if problem := _problem(op, device, threads, json):
        print(f"acdc-kernels bench: {problem}", file=sys.stderr)
        return 2
    threads_before = torch.get_num_threads()
    stamp = machine()
    bench, measure = _on_cuda(op, quick, stamp) if device == "cuda" else _on_cpu(op, threads, quick, stamp)
    all_rows: list[harness.Row] = []
    peak = 0

    def write(complete: bool) -> None:
        if json is not None:
            harness.write_json(json, stamp, all_rows, peak_bytes=peak, complete=complete)

    try:
        with harness.keep_freed_pages() as stamp["freed_pages_kept"]:
            for number, case in enumerate(bench.QUICK if quick else bench.CASES):
                for group in measure(case, number):
                    print(harness.table(group) + "\n", flush=True)
                    peak = max(peak, peak_bytes())  # the system's count may lag by some pages
                    all_rows += [{**row, "peak_bytes": peak} for row in group]
                    write(complete=False)
    finally:
        torch.set_num_threads(threads_before)
    write(complete=True)
    if hasattr(bench, "summary"):
        print(bench.summary(all_rows) + "\n")
    if harness.disturbed(all_rows):
        print(f"Some timings have fewer than {harness.FEWEST_CLEAN} clean samples: the machine was busy; run again.")
    if json is not None:
        print(f"written to {json}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="acdc-kernels bench", description=__doc__)
    parser.add_argument("op", choices=OPS)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--threads", type=int, action="append", metavar="N", help="of the CPU; may be repeated; default 1 and 2"
    )
    parser.add_argument("--quick", action="store_true", help="the headline cases alone, few repetitions")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here as they come")
    given = parser.parse_args(arguments)
    return run(given.op, given.device, given.threads, given.quick, given.json)


if __name__ == "__main__":
    raise SystemExit(main())
