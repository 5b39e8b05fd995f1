"""`bench linear --device cuda`: products of large blocks against cuBLAS, torch's BSR and 2:4 kernels, dense masked.

Ours read the kept blocks in the whole weight, as a compressed phase does, and write a dense weight gradient. Each of
`configs.candidates` is checked and timed by the device's time; the fastest is "ours", and a row has them all:
`config`, `config_ms`, and the one that the op takes by itself: `default_config`, `default_ms`. "forward + both
gradients" is the three with the fastest of each. What doesn't run, or gives wrong answers, is named in `left_out`.

Beside the products: the planned layer against the dense one (`never_slower_cuda`).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from acdc_kernels.ops._machine import arithmetic
from acdc_kernels.ops.block_linear import configs, contract
from acdc_kernels.ops.block_linear.configs import FORWARD, INPUT_GRADIENT, PRODUCTS, WEIGHT_GRADIENT

from . import cuda_ceilings, cuda_choice, cuda_timing, layers, linear_cuda_peers, never_slower_cuda
from .cuda_device import Call
from .cuda_timing import Ceiling, Gpu, rounded
from .harness import Budget, Row, let_go
from .linear_cuda_peers import AGAIN, ALL, BSR, BSR_TUNED, DENSE, MASKED, TWO_FOUR, Operands

OP, BACKEND = contract.block_linear_op, "triton"
BLOCKS = ((128, 128), (64, 64), (32, 32), (128, 64), (64, 32))
SPARSITIES = (0.50, 0.80, 0.90, 0.95)
NOT_ASKED = "not captured: compared by the device's time"
TARGETS = {  # times cuBLAS, bfloat16, 4096->4096, 8192 samples, on an H200
    (FORWARD, "block:128x128"): {0.50: 1.15, 0.80: 2.8, 0.90: 5.5, 0.95: 6.0},
    (FORWARD, "block:64x64"): {0.80: 1.7, 0.90: 3.3, 0.95: 6.0},
    (ALL, "block:128x128"): {0.90: 4.5},
    (ALL, "block:64x64"): {0.90: 3.0},
}

ceilings, ceilings_line = cuda_ceilings.ceilings, cuda_ceilings.line


@dataclass(frozen=True)
class Products:
    """One shape, batch, block and dtype, at several sparsities; `tf32` is what torch's setting says meanwhile."""

    rows: int
    cols: int
    samples: int
    block: tuple[int, int]
    sparsities: tuple[float, ...] = SPARSITIES
    dtype: torch.dtype = torch.bfloat16
    tf32: bool = False

    @property
    def name(self) -> str:
        return f"{self.cols}->{self.rows}, {self.samples} samples" + (", tf32" if self.tf32 else "")

    @property
    def pattern(self) -> str:
        return "block:{}x{}".format(*self.block)

    def measure(self, gpu: Gpu, limit: Ceiling, budget: Budget, backend: str) -> Iterator[list[Row]]:
        """The rows, a list for each sparsity and product, then for the three together."""
        for sparsity in self.sparsities:
            let_go()
            with tf32(self.tf32):
                o = linear_cuda_peers.operands(
                    (self.rows, self.cols), self.samples, self.block, sparsity, self.dtype, gpu.device
                )
                chosen: dict[str, str] = {}
                for what in PRODUCTS:
                    facts = self._facts(what, sparsity, backend)
                    check = checked(gpu, o, what)
                    call, configured, left_out = self._ours(gpu, o, what, backend, check)
                    chosen[what] = configured["config"] if backend != "reference" else ""
                    others, without = peers(gpu, o, what, check)
                    facts |= configured | ({"left_out": left_out | without} if left_out or without else {})
                    yield self._against(gpu, limit, budget, o, call, others, facts)
                facts = self._facts(ALL, sparsity, backend) | {"config": ", ".join(chosen.values())}
                call = ours(o, ALL, chosen)
                if problem := checked(gpu, o, ALL)(call()):
                    raise RuntimeError(f"bench linear: {facts['case']}: {problem}")
                yield self._against(gpu, limit, budget, o, call, peers(gpu, o, ALL)[0], facts)

    def _facts(self, what: str, sparsity: float, backend: str) -> dict[str, Any]:
        return {
            "op": "linear", "case": f"{self.name}, {what}", "pattern": self.pattern, "sparsity": sparsity,
            "dtype": str(self.dtype).removeprefix("torch."), "threads": 1, "device": "cuda", "backend": backend,
            "what": what, "shape": [self.rows, self.cols], "samples": self.samples, "tf32": self.tf32,
        }  # fmt: skip

    def _ours(
        self, gpu: Gpu, o: Operands, what: str, backend: str, check: cuda_choice.Check
    ) -> tuple[Call, dict[str, Any], dict[str, str]]:
        """Our fastest call, what rows say of configs, and those left out: name -> why."""
        texts = ["reference"]
        if backend != "reference":
            found = configs.candidates(what, arithmetic(o.x.dtype), o.topology.meta, self.samples, *gpu.machine())
            texts = [str(config) for config in found]
        calls = {text: ours(o, what, {what: text if backend != "reference" else ""}) for text in texts}
        cuda_choice.compiled(calls)
        where = f"{self.name}, {self.pattern}, {what}"
        good, left_out = cuda_choice.tried(where, calls, check)
        if not good:
            raise RuntimeError(f"bench linear: {where} must run with one config at least, got {left_out}")
        best, times = cuda_choice.fastest(gpu, good)
        told = {"config": best, "config_ms": times, "default_config": texts[0], "default_ms": times.get(texts[0])}
        return good[best], told, left_out

    def _against(
        self, gpu: Gpu, limit: Ceiling, budget: Budget, o: Operands, call: Call, others: dict[str, Call],
        facts: dict[str, Any],
    ) -> list[Row]:  # fmt: skip
        what, dense = facts["what"], linear_cuda_peers.dense(o, facts["what"])
        calls = {"ours": call, DENSE: dense, **others, AGAIN: dense}
        not_captured = dict.fromkeys(others, NOT_ASKED)
        if facts["backend"] == "reference":
            not_captured["ours"] = "the plain torch reference stands in for the kernel"
        moved = least_bytes(o, what)
        group = cuda_timing.compare(gpu, limit, calls, not_captured, budget, moved_bytes=moved, facts=facts)
        flops = 2 * self.samples * o.topology.kept * (3 if what == ALL else 1)
        for row in group:
            row["tflop_per_s"] = rounded(cuda_ceilings.tflop_per_s(flops, _ms(row, "ours")))
            if row["peer"] == DENSE:
                whole = flops / o.topology.kept * self.rows * self.cols
                row["dense_tflop_per_s"] = rounded(cuda_ceilings.tflop_per_s(whole, _ms(row, "peer")))
                row["of_dense_rate"] = rounded(row["tflop_per_s"] / row["dense_tflop_per_s"])
        return group


Case = Products | never_slower_cuda.Grid

MAIN = tuple(Products(4096, 4096, 8192, block) for block in BLOCKS)
QUICK: tuple[Case, ...] = (
    *(Products(4096, 4096, 8192, block, (0.90,)) for block in BLOCKS[:2]),
    *(Products(4096, 4096, 8192, block, (0.80, 0.95)) for block in BLOCKS[:2]),
    never_slower_cuda.QUICK,
)
CASES: tuple[Case, ...] = (
    *MAIN,
    *never_slower_cuda.GRID,
    *(Products(4096, 4096, samples, block, (0.90,)) for samples in (2048, 16384) for block in BLOCKS[:3]),
    *(
        Products(*shape, 8192, block, (0.90,))
        for shape in ((11008, 4096), (4096, 11008), (1024, 1024))
        for block in BLOCKS[:2]
    ),
    *(Products(4096, 4096, 8192, block, (0.90,), torch.float16) for block in BLOCKS[:2]),
    *(
        Products(4096, 4096, 8192, block, (0.90,), torch.float32, tf32)
        for tf32 in (True, False)
        for block in BLOCKS[:2]
    ),
)


@contextlib.contextmanager
def tf32(on: bool) -> Iterator[None]:
    """By the newer of torch's two settings, which the older one follows."""
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32" if on else "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def ours(o: Operands, what: str, config: Mapping[str, str]) -> Call:
    """The ops on the whole weight, by a config for each product; a dense weight gradient."""
    index, meta, dtype = [*o.topology.index], [*o.topology.meta], o.weight.dtype

    def forward() -> Tensor:
        return contract.block_linear_op(o.x, o.weight, index, meta, None, config[FORWARD])

    def backward(of_input: bool, of_weight: bool) -> tuple[Tensor, Tensor]:
        ways = config.get(INPUT_GRADIENT, ""), config.get(WEIGHT_GRADIENT, "")
        return contract.block_linear_backward_op(
            o.grad, o.x, o.weight, index, meta, of_input, of_weight, True, dtype, *ways
        )

    calls: dict[str, Call] = {
        FORWARD: forward,
        INPUT_GRADIENT: lambda: backward(True, False)[0],
        WEIGHT_GRADIENT: lambda: backward(False, True)[1],
        ALL: lambda: (forward(), *backward(True, True)),
    }
    return calls[what]


def checked(gpu: Gpu, o: Operands, what: str) -> cuda_choice.Check:
    """A wrong answer has no speed: near the dense product in float64, and exactly 0 where a gradient keeps nothing."""
    want, kind = o.results(what), arithmetic(o.x.dtype)
    cuda_choice.poison(gpu, *(each.to(o.x.dtype) for each in want))

    def check(result: object) -> str:
        results = result if isinstance(result, tuple) else (result,)
        found = [cuda_choice.wrong(got, each, kind) for got, each in zip(results, want, strict=True)]
        if what in (WEIGHT_GRADIENT, ALL) and results[-1][o.mask == 0].count_nonzero():
            found.append("a wrong answer, not 0 where nothing is kept")
        cuda_choice.poison(gpu, *results)
        return next(filter(None, found), "")

    return check


def peers(
    gpu: Gpu, o: Operands, what: str, check: cuda_choice.Check = lambda result: ""
) -> tuple[dict[str, Call], dict[str, str]]:
    """Name -> call, less those that don't run here or differ: name -> why. 2:4 where half of the weights are kept."""
    found, left_out = dict[str, Call](), dict[str, str]()
    if (call := linear_cuda_peers.masked(o, what)) is not None:
        found[MASKED] = call
    ways, without = _made(BSR, lambda: linear_cuda_peers.bsr(o, what))
    cuda_choice.compiled(ways)
    ways, wrong = cuda_choice.tried(what, ways, check)
    left_out |= without | wrong
    if BSR in ways:
        found[BSR] = ways.pop(BSR)
    if ways:
        found[BSR_TUNED] = ways[cuda_choice.fastest(gpu, ways)[0]]
    if what == FORWARD and 2 * o.topology.kept == o.weight.numel() and o.x.element_size() == 2:
        made, without = _made(TWO_FOUR, lambda: {TWO_FOUR: linear_cuda_peers.two_four(o)})
        left_out |= without
        for call, want in made.values():
            good, wrong = cuda_choice.tried(
                what, {TWO_FOUR: call}, lambda got, want=want: cuda_choice.wrong(got, want, arithmetic(o.x.dtype))
            )
            found, left_out = found | good, left_out | wrong
    return found, left_out


def _made(name: str, make: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], dict[str, str]]:
    """What it makes, or why it doesn't, whatever a torch of another version says."""
    try:
        return make(), {}
    except Exception as error:
        why = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        print(f"bench: {name} is left out: {why}", file=sys.stderr)
        return {}, {name: why}


def least_bytes(o: Operands, what: str) -> int:
    """Each factor read and each result written once: kept weights alone, of a weight gradient all."""
    x, y, kept, whole = o.x.numel(), o.grad.numel(), o.topology.kept, o.weight.numel()
    once = {FORWARD: x + y + kept, INPUT_GRADIENT: x + y + kept, WEIGHT_GRADIENT: x + y + whole}
    return o.x.element_size() * (sum(once.values()) if what == ALL else once[what])


def _ms(row: Row, who: str) -> float:
    return next(row[key] for key in (f"{who}_device_ms", f"{who}_graph_ms", f"{who}_ms") if row.get(key))


def measure(case: Case, gpu: Gpu, limit: Ceiling, budget: Budget, backend: str) -> Iterator[list[Row]]:
    """The rows of one case, in groups."""
    with layers.fresh_plans():
        yield from case.measure(gpu, limit, budget, backend)


def summary(all_rows: Sequence[Row]) -> str:
    """Speedup over cuBLAS by the device's time: beside its target where there is one."""
    lines = ["times cuBLAS, by the device's time"]
    for row in all_rows:
        if row["peer"] != DENSE or "what" not in row or "device_speedup" not in row:
            continue
        where = f"{row['case']}, {row['pattern']}, {row['sparsity']:.0%}, {row['dtype']}"
        goals = TARGETS if (row["shape"], row["samples"], row["dtype"]) == ([4096, 4096], 8192, "bfloat16") else {}
        target = goals.get((row["what"], row["pattern"]), {}).get(row["sparsity"])
        goal = f"  (target {target:g}x on an H200)" if target else ""
        found = f"{row['device_speedup']:>7.2f}x{row['of_dense_rate']:>7.0%} of its rate"
        lines.append(f"  {where:<84}{found}  {row['config']}{goal}")
    left = {
        f"{row['case']}, {row['pattern']}: {name}: {why}"
        for row in all_rows
        for name, why in row.get("left_out", {}).items()
    }
    lines += [f"LEFT OUT {each}" for each in sorted(left)]
    return "\n".join([*lines, *never_slower_cuda.verdict(all_rows)])
