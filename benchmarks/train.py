"""`bench train`: whole training steps of perceptrons, dense and compressed, and the flips between the phases.

A step is zero_grad, forward, cross-entropy, backward, the optimizer's and the sparsifier's step; SGD with momentum 0.9
and weight decay, learning rate 0, so that however many steps are timed the numbers stay what they are. The compressed
and the dense step are those of AC/DC training (MaskedSGD, Sparsifier with kernels="auto"), each with its model; peers
are the plain model with torch's fused SGD, in float32 and with bfloat16 autocast.

Flips are timed in a training of its own whose phases are 1000 steps, without their planning, which has its own row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from acdc_kernels import MaskedSGD, Sparsifier, schedules

from . import layers
from .harness import (
    Budget,
    Row,
    Timing,
    interleave,
    involuntary_switches,
    let_go,
    rows,
    summarize,
    thread_counts,
)

SGD = {"lr": 0.0, "momentum": 0.9, "weight_decay": 5e-4}
WIDE = (784, 2048, 2048, 2048, 10)
DEMO = (64, 1024, 1024, 10)  # the preset's
DENSE = "dense step of the same training"
TORCH, TORCH_BF16 = "torch SGD fused, float32", "torch SGD fused, bfloat16 autocast"
OURS_AGAIN = "ours, entered twice (noise)"
PHASE = 1000  # steps of a phase between two flips
TRAINED = 20  # of these before a flip to compressed: the plan goes by what they take
FLIPS = 5
TARGETS = {128: 0.45, 256: 0.36, 512: 0.30}  # step ratio of WIDE at 90%, by batch


@dataclass(frozen=True)
class Case:
    """A perceptron with ReLU between its layers."""

    sizes: tuple[int, ...]
    batch: int
    sparsity: float
    flips: int = FLIPS

    @property
    def name(self) -> str:
        return f"mlp {'-'.join(map(str, self.sizes))}, batch {self.batch}"

    def model(self) -> nn.Sequential:
        torch.manual_seed(0)
        parts: list[nn.Module] = []
        for cols, rows_ in pairwise(self.sizes):
            parts += [nn.Linear(cols, rows_), nn.ReLU()]
        return nn.Sequential(*parts[:-1])

    def data(self) -> tuple[Tensor, Tensor]:
        return layers.inputs(self.batch, self.sizes[0]), torch.arange(self.batch) % self.sizes[-1]


CASES = (
    *(Case(WIDE, batch, sparsity) for batch in (128, 256, 512) for sparsity in (0.9, 0.95)),
    Case(DEMO, 32, 0.9),
)
QUICK = (Case(DEMO, 32, 0.9, flips=2),)


def step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: tuple[Tensor, Tensor],
    sparsifier: Sparsifier | None = None,
    autocast: bool = False,
) -> Callable[[], None]:
    """One training step, to be called any number of times."""
    inputs, targets = batch

    def call() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        if sparsifier is not None:
            sparsifier.step()

    return call


def contenders(case: Case) -> tuple[dict[str, Callable[[], None]], Sparsifier]:
    """Name -> step, and the sparsifier of the compressed one."""
    batch = case.data()
    model = case.model()
    compressed = layers.compressed(model, batch[0], case.sparsity, **SGD)
    calls = {"ours": step(model, compressed.optimizer, batch, compressed)}
    model = case.model()
    optimizer = MaskedSGD(model.parameters(), **SGD)
    dense = Sparsifier(model, optimizer, schedules.dense(total=layers.LONG), sparsity=case.sparsity)
    calls[DENSE] = step(model, optimizer, batch, dense)
    for name, autocast in ((TORCH, False), (TORCH_BF16, True)):
        model = case.model()
        calls[name] = step(model, torch.optim.SGD(model.parameters(), fused=True, **SGD), batch, autocast=autocast)
    return calls | {OURS_AGAIN: calls["ours"]}, compressed


def step_times(case: Case, budget: Budget) -> tuple[dict[str, Timing], list[list[str]]]:
    """Timings of the contenders, and the plan of the compressed one: layer, product and kernel."""
    calls, sparsifier = contenders(case)
    timings = interleave(calls, budget)
    return timings, [[each.layer, each.product, each.kernel] for each in sparsifier.plan()]


def flip_times(case: Case) -> dict[str, Timing]:
    """Timings of "flip to compressed", "flip to dense" and "planning", of phases of 1000 steps."""
    model, batch = case.model(), case.data()
    optimizer = MaskedSGD(model.parameters(), **SGD)
    cycles = 2 * case.flips
    schedule = schedules.acdc(
        total=(cycles + 2) * PHASE, warmup=PHASE, compressed=PHASE, dense=PHASE, final_dense=0, final_compressed=PHASE
    )
    sparsifier = Sparsifier(model, optimizer, schedule, sparsity=case.sparsity)
    train = step(model, optimizer, batch)
    seconds: dict[str, list[float]] = {"flip to compressed": [], "flip to dense": [], "planning": []}
    clean: dict[str, list[float]] = {name: [] for name in seconds}
    for _ in range(cycles):
        while sparsifier.step_count < sparsifier.phase.last_step:  # most of the phase only counts
            if sparsifier.phase.last_step - sparsifier.step_count < TRAINED:
                train()
            sparsifier.step()
        train()
        planned, switches, start = sparsifier.planning_seconds, involuntary_switches(), time.perf_counter()
        sparsifier.step()
        taken, planning = time.perf_counter() - start, sparsifier.planning_seconds - planned
        found = {f"flip to {sparsifier.phase.kind}": taken - planning}
        if sparsifier.phase.kind == "compressed":
            found["planning"] = planning
        for name, value in found.items():
            seconds[name].append(value)
            if involuntary_switches() == switches:
                clean[name].append(value)
    return {name: summarize(seconds[name], clean[name]) for name in seconds}


def measure(case: Case, threads: Sequence[int], budget: Budget, backend: str, with_memory: bool) -> Iterator[list[Row]]:
    """The rows of one case: steps, then flips, for each thread count; `torch.set_num_threads` is left changed."""
    del with_memory  # see tests/train/test_memory.py
    for count in thread_counts(threads):
        with layers.fresh_plans():
            timings, plan = step_times(case, budget)
            let_go()
            flips = flip_times(case)
        facts: dict[str, Any] = {
            "op": "train", "case": f"{case.name}, step", "pattern": "unstructured", "sparsity": case.sparsity,
            "dtype": "float32", "threads": count, "device": "cpu", "backend": backend,
        }  # fmt: skip
        group = rows(timings, facts=facts)
        ratio = timings["ours"].ms / timings[DENSE].ms
        for row in group:
            row["step_ratio"] = float(f"{ratio:.4g}")
            row["plan"] = plan
        yield group
        for name, timing in flips.items():
            pair = {"ours": timing, DENSE: timings[DENSE]}
            yield rows(pair, facts=facts | {"case": f"{case.name}, {name}"})


def summary(all_rows: Sequence[Row]) -> str:
    """Compressed step / dense step, beside the target where there is one."""
    goals = {f"{Case(WIDE, batch, 0.9).name}, step": target for batch, target in TARGETS.items()}
    lines = ["step ratio: compressed step / dense step, optimizer included"]
    for row in all_rows:
        if row["peer"] == DENSE and "step_ratio" in row:
            target = goals.get(row["case"]) if row["sparsity"] == 0.9 else None
            goal = f"  (target <= {target})" if target else ""
            where = (
                f"  {row['case']}, {row['sparsity']:.0%}, {row['threads']} thread{'s' if row['threads'] > 1 else ''}"
            )
            lines.append(f"{where:<66}{row['step_ratio']:>8.3f}{goal}")
    return "\n".join(lines)
