"""The plan: which kernel computes each product of each layer in a compressed phase, so that none is slower than dense.

A cost model first drops what it expects to be much slower than dense. What is left is timed on the real shapes, dense
included, within a budget, and remembered on disk (``_plan_memory``); a sparse kernel has to be clearly faster, and at
last the whole layer with its overheads too. Nothing here knows of a kind of layer: a *trial* (``nn.product.Trial``)
stands for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from statistics import median
from typing import Any

import torch

from ._plan_cost import CostModel, GpuCostModel, gpu_cost_model
from ._plan_memory import Memory, gpu_key, machine_key
from ._plan_timers import CudaTimer, Timer
from .nn.product import DENSE, FORWARD, FP16, KINDS, PRODUCTS, SPARSE, Trial, is_kernel

__all__ = ["Choice", "CostModel", "GpuCostModel", "Memory", "PlanRow", "Planner", "Timer"]

NOT_SLOWER = 0.97  # of the dense time: what a sparse kernel must not exceed
WHOLE_NOT_SLOWER = 0.9  # the same of a whole layer: it is timed with warm caches, in which sparse kernels gain the most
CLEARLY_FASTER = 0.95  # of the time of the last phase's choice: what another must not exceed to take its place
HOPELESS = 2.0  # times the dense estimate: what is not timed
MODEL_MARGIN = 0.8  # of the dense estimate: what a sparse estimate must not exceed where the model alone decides
ROUNDS = 7
TRUSTED_ROUNDS = 3  # fewer are not remembered
PLANNED = "planned"  # beside "dense": the whole layer as its products were chosen
ONE_KERNEL = "there is no sparse kernel for this product"
COMPILING = 60.0  # seconds of compiling for one plan, after which kernels are compiled in their default way alone
BUDGET = 0.0065  # of the phase as the cost model expects it: 1% where it takes 0.65 of that


@dataclass(frozen=True)
class PlanRow:
    """Which kernel computes one product of one layer in a compressed phase, and why.

    layer: its name. product: "forward", "input gradient" or "weight gradient". kernel: "dense", "sparse", "sparse
    fp16", or "sparse <config>" of a kernel that goes about it in one of several ways ("sparse": by its default for the
    shape). times: kernel -> milliseconds; empty where nothing was timed. samples: rows of input of one call, 0
    where none was seen. shape: of the weight. sparsity: the share of the layer's weights that are masked.
    """

    layer: str
    product: str
    kernel: str
    reason: str
    times: Mapping[str, float] = field(hash=False)
    samples: int
    shape: tuple[int, ...]
    sparsity: float

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        row = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**row, "times": dict(self.times), "shape": list(self.shape)}

    @classmethod
    def from_dict(cls, row: object) -> PlanRow:
        """From what ``to_dict`` gave. Raises ValueError, naming what is wrong."""
        kinds = {"layer": str, "product": str, "kernel": str, "reason": str, "times": Mapping, "samples": int}
        kinds |= {"shape": list, "sparsity": float}
        if not isinstance(row, Mapping) or row.keys() != kinds.keys():
            raise ValueError(f"must have the keys {', '.join(kinds)}, got {row!r}")
        for name, kind in kinds.items():
            if not isinstance(row[name], kind) or isinstance(row[name], bool):
                raise ValueError(f"{name} must be a {kind.__name__.lower()}, got {row[name]!r}")
        if row["product"] not in PRODUCTS:
            raise ValueError(f"product must be {' or '.join(map(repr, PRODUCTS))}, got {row['product']!r}")
        if not is_kernel(row["kernel"]) or (row["kernel"] == FP16 and row["product"] != FORWARD):
            raise ValueError(f"kernel must be one of the {row['product']}'s, got {row['kernel']!r}")
        if row["samples"] < 0:
            raise ValueError(f"samples must be at least 0, got {row['samples']}")
        times = {str(kernel): float(t) for kernel, t in row["times"].items()}
        return cls(**{**row, "times": times, "shape": tuple(row["shape"])})


@dataclass(frozen=True)
class Choice:
    """A kernel for one product, why, and the seconds that kernels took."""

    kernel: str
    reason: str
    times: Mapping[str, float] = field(default_factory=dict)


class Planner:
    """Chooses the kernels of all layers of a model for one phase.

    measure: False: the cost model alone decides, and kernels go about it by their default. device: of the layers.
    Timer, memory and model are the machine's, or the GPU's, unless given.

    Attributes:
        compiling: seconds that kernels took to compile, which are no part of the budget.
    """

    def __init__(
        self,
        measure: bool = True,
        timer: Timer | None = None,
        memory: Memory | None = None,
        model: CostModel | GpuCostModel | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.measure = measure
        self._gpu = device if device is not None and device.type == "cuda" else None
        self._timer = timer if timer is not None else Timer() if self._gpu is None else CudaTimer(self._gpu)
        self._memory = memory if memory is not None else Memory.of_user() if measure else Memory(None)
        self._model = model
        if model is None:
            self._model = CostModel.here() if self._gpu is None else gpu_cost_model(self._gpu)

    @property
    def compiling(self) -> float:
        return self._timer.compiling

    def kernels(self, trial: Trial, product: str) -> tuple[str, ...]:
        """The kernels that could compute it, "dense" first: without variations where nothing is timed."""
        varied = self.measure and self._timer.compiling < COMPILING
        return tuple(kernel for kernel in trial.kernels(product) if varied or kernel in KINDS)

    def estimate(self, trial: Trial, product: str, kernel: str) -> float:
        """Seconds, by the cost model."""
        return self._model.seconds(trial.work(product, kernel))

    def dense_step(self, trial: Trial) -> float:
        """Seconds that the layer's products take dense, by the cost model."""
        return sum(self.estimate(trial, product, DENSE) for product in trial.computed)

    def hoped(self, trials: Iterable[Trial]) -> float:
        """What the layers' products take by the kernels that the cost model prefers, over dense; 1 of no layers."""
        pairs = [(self._hoped_step(trial), self.dense_step(trial)) for trial in trials]
        return sum(hoped for hoped, _ in pairs) / sum(dense for _, dense in pairs) if pairs else 1.0

    def _hoped_step(self, trial: Trial) -> float:
        return sum(min(self.estimate(trial, p, kernel) for kernel in self.kernels(trial, p)) for p in trial.computed)

    def favours(self, trial: Trial, chosen: Mapping[str, str]) -> bool:
        """Whether the cost model expects ``chosen`` to be faster than dense."""
        seconds = sum(self.estimate(trial, product, chosen[product]) for product in trial.computed)
        return seconds <= MODEL_MARGIN * self.dense_step(trial)

    def plan(
        self, trials: Mapping[str, Trial], previous: Mapping[str, Mapping[str, str]], budget: float
    ) -> dict[str, dict[str, Choice]]:
        """Layer -> product -> choice, for the products that each layer computes.

        previous: what the phase before chose. budget: seconds that all of this may take, but for one run that turns out
        to be longer than the cost model thought. Layers that are alike, in which times are the same, are timed once;
        the largest first.
        """
        end = self._timer.now() + budget
        alike: dict[tuple[str, str], list[str]] = {}
        for name, trial in trials.items():
            before = {product: previous.get(name, {}).get(product) for product in trial.computed}
            alike.setdefault((trial.key, str(before)), []).append(name)
        costs = {group: self.dense_step(trials[names[0]]) for group, names in alike.items()}
        saving = 3 * self._memory.reading
        if saves := saving <= budget / 4:
            end -= saving
        left = sum(costs.values())
        plan: dict[str, dict[str, Choice]] = {}
        for group in sorted(alike, key=lambda group: -costs[group]):
            names = alike[group]
            remaining = end - self._timer.now()
            share = remaining * costs[group] / left if left > 0 else 0.0
            left -= costs[group]
            choices = self._choose(trials[names[0]], previous.get(names[0], {}), share, remaining)
            plan.update(dict.fromkeys(names, choices))
        if saves:
            self._memory.save()
        return {name: plan[name] for name in trials}

    def _choose(self, trial: Trial, previous: Mapping[str, str], share: float, remaining: float) -> dict[str, Choice]:
        estimates = {
            product: {kernel: self.estimate(trial, product, kernel) for kernel in self.kernels(trial, product)}
            for product in trial.computed
        }
        hopeful = {
            product: [kernel for kernel in times if kernel != DENSE and times[kernel] <= HOPELESS * times[DENSE]]
            for product, times in estimates.items()
        }
        choices = {
            product: Choice(
                DENSE, f"the cost model expects {_against(times)}: not timed" if len(times) > 1 else ONE_KERNEL
            )
            for (product, kernels), times in zip(hopeful.items(), estimates.values(), strict=True)
            if not kernels
        }
        open_ = {product: [DENSE, *kernels] for product, kernels in hopeful.items() if kernels}
        if not open_:
            return choices
        if not self.measure:
            why = "the cost model"
        else:
            measured = self._measured(trial, open_, estimates, share, remaining)
            if measured.times(next(iter(open_)), DENSE) is not None:
                return {**choices, **self._from_times(trial, measured.open, estimates, previous, measured)}
            why = f"{measured.why_not('no round')}: the cost model"
        for product, kernels in open_.items():
            choices[product] = self._from_model(estimates[product], kernels, why)
        return choices

    def _from_model(self, estimates: Mapping[str, float], kernels: Sequence[str], why: str) -> Choice:
        plain = [kernel for kernel in kernels if kernel in KINDS]  # among ways to go about it the model can't choose
        times = {kernel: estimates[kernel] for kernel in (plain if len(plain) > 1 else kernels)}
        best = min(times, key=times.__getitem__)
        return Choice(best if times[best] <= MODEL_MARGIN * times[DENSE] else DENSE, f"{why} expects {_against(times)}")

    def _from_times(
        self,
        trial: Trial,
        open_: Mapping[str, Sequence[str]],
        estimates: Mapping[str, Mapping[str, float]],
        previous: Mapping[str, str],
        measured: _Measured,
    ) -> dict[str, Choice]:
        choices: dict[str, Choice] = {}
        for product, kernels in open_.items():
            times = measured.times(product, _kernel_of(choices, FORWARD))
            if times is None:
                why = f"{measured.why_not('no further round')}: the cost model"
                choices[product] = self._from_model(estimates[product], kernels, why)
            else:
                choices[product] = _pick(times, previous.get(product), measured.left_out(product))
        chosen = {product: _kernel_of(choices, product) for product in trial.computed}
        if all(kernel == DENSE for kernel in chosen.values()):
            return choices
        whole = measured.whole(chosen)
        if whole is None:  # its products alone must leave room for what was not measured
            timed = [choice for choice in choices.values() if choice.times]
            planned, dense = (sum(c.times[k or c.kernel] for c in timed) for k in ("", DENSE))
            whole = {PLANNED: planned / MODEL_MARGIN * WHOLE_NOT_SLOWER, DENSE: dense}
        if PLANNED not in whole:
            why = f"the whole layer doesn't run by sparse kernels here ({measured.failed[PLANNED]})"
        elif whole[PLANNED] <= WHOLE_NOT_SLOWER * whole[DENSE]:
            return choices
        else:
            why = f"the whole layer takes {_ms(whole[PLANNED])} by sparse kernels, {_ms(whole[DENSE])} dense"
        return {product: Choice(DENSE, why, choice.times) for product, choice in choices.items()}

    def _measured(
        self,
        trial: Trial,
        open_: Mapping[str, Sequence[str]],
        estimates: Mapping[str, Mapping[str, float]],
        share: float,
        remaining: float,
    ) -> _Measured:
        key = f"{trial.key} | {machine_key() if self._gpu is None else gpu_key(self._gpu)}"
        memory = self._memory if self._memory.fits(remaining) else Memory(None)
        least = self._least(trial, open_, estimates)
        if least > remaining and not memory.get(key):  # fewer kernels may fit
            open_ = {product: [kernel for kernel in kernels if kernel in KINDS] for product, kernels in open_.items()}
            least = self._least(trial, open_, estimates)
        allowance = max(share, least) if least <= remaining else 0.0
        return _Measured(trial, open_, self._timer, memory, key, self._timer.now(), allowance)

    def _least(
        self, trial: Trial, open_: Mapping[str, Sequence[str]], estimates: Mapping[str, Mapping[str, float]]
    ) -> float:
        """Seconds for two runs of each kernel, and two of the whole layer in both ways."""
        runs = [estimates[product][kernel] for product, kernels in open_.items() for kernel in kernels]
        runs += [self.dense_step(trial), self._hoped_step(trial)]
        return 2 * (sum(runs) + self._timer.overhead * len(runs))


class _Measured:
    """Times of one trial: remembered ones, else taken now, within an allowance of seconds."""

    def __init__(
        self,
        trial: Trial,
        open_: Mapping[str, Sequence[str]],
        timer: Timer,
        memory: Memory,
        key: str,
        start: float,
        allowance: float,
    ) -> None:
        self._trial, self.open, self._timer, self._memory = trial, open_, timer, memory
        self._key, self._start, self._allowance = key, start, allowance
        self._groups = memory.get(key)
        self._interrupted, self._no_memory = 0, False
        self.failed: dict[str, str] = {}  # what was to be timed -> the error that its first run raised

    def why_not(self, none: str) -> str:
        """Why there are no more times; ``none``: what to call rounds that there are none of."""
        if self._no_memory:
            return "there is no memory for timing"
        if self._interrupted:
            return f"all {self._interrupted} rounds of timing that fit into the budget were interrupted"
        return f"{none} of timing fits into the budget"

    def times(self, product: str, forward: str) -> dict[str, float] | None:
        """Kernel -> seconds of one product, beside a forward by kernel ``forward``."""
        if product == FORWARD:
            group, until, alike = FORWARD, 0.35, {FORWARD: self.open[FORWARD]}
        else:
            group, until = f"backward of a {DENSE if forward == DENSE else SPARSE} forward", 0.7
            alike = {p: kernels for p, kernels in self.open.items() if p != FORWARD}
        wanted = {f"{p}: {kernel}": (p, kernel) for p, kernels in alike.items() for kernel in kernels}
        times = self._group(
            group, until, {name: lambda p=p, k=k: self._trial.run(p, k, forward) for name, (p, k) in wanted.items()}
        )
        if times is None:
            return None
        of_kernels = {kernel: times.get(f"{product}: {kernel}") for kernel in self.open[product]}
        return {kernel: seconds for kernel, seconds in of_kernels.items() if seconds is not None}

    def left_out(self, product: str) -> str:
        """Which kernels of a product don't run here, and why; empty if all do."""
        errors = {name.removeprefix(f"{product}: "): e for name, e in self.failed.items() if name.startswith(product)}
        return "".join(f"; {kernel} doesn't run here ({error})" for kernel, error in errors.items())

    def whole(self, chosen: Mapping[str, str]) -> dict[str, float] | None:
        """Seconds of the layer's forward and backward: "planned", unless that doesn't run here, and "dense"."""
        name = ", ".join(f"{product} {kernel}" for product, kernel in chosen.items())
        runs = {
            DENSE: lambda: self._trial.step(dict.fromkeys(chosen, DENSE)),
            PLANNED: lambda: self._trial.step(chosen),
        }
        return self._group(f"whole: {name}", 0.9, runs)

    def _group(
        self, group: str, until: float, runs: Mapping[str, Callable[[], Callable[[], object]]]
    ) -> dict[str, float] | None:
        known = self._groups.get(group, {})
        if runs.keys() - self.failed.keys() <= known.keys():
            return known
        if self._allowance <= 0:
            return None
        limit, made = self._start + until * self._allowance, {}
        try:
            for name, make in runs.items():
                call = self._prepared(name, make)
                if self._timer.now() > limit:  # it took an index to build
                    return None
                if call is not None:
                    made[name] = call
            times, rounds = interleaved(made, self._timer, limit)
        except torch.OutOfMemoryError:  # training may still fit
            self._no_memory = True
            return None
        if times is None:
            self._interrupted = rounds
            return None
        self._groups[group] = times
        if rounds >= TRUSTED_ROUNDS and not self.failed.keys() & runs.keys():
            self._memory.put(self._key, {group: times})
        return times

    def _prepared(self, name: str, make: Callable[[], Callable[[], object]]) -> Callable[[], object] | None:
        """None where a sparse kernel doesn't compile or start here, which ``failed`` tells: it is no candidate then."""
        if name in self.failed:
            return None
        try:
            return self._timer.prepare(make)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if name.endswith(DENSE):
                raise
            self.failed[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
            return None


def interleaved(
    runs: Mapping[str, Callable[[], object]], timer: Timer, until: float
) -> tuple[dict[str, float] | None, int]:
    """(name -> median seconds, number of rounds without an interruption), or None and how many were interrupted.

    A round runs each once, in turns from either end, after one that is not counted. Up to seven rounds without an
    interruption count, and another starts only if it can be expected to end before ``until``. On a machine so busy that
    there are none, what was interrupted counts after all, if there are three rounds of it.
    """
    clean: dict[str, list[float]] = {name: [] for name in runs}
    every: dict[str, list[float]] = {name: [] for name in runs}
    start = timer.now()
    for run in runs.values():
        timer.run(run)
        if timer.now() > until:
            return None, 0
    longest = (timer.now() - start) / 2  # the first calls are slower
    for attempt in range(2 * ROUNDS):
        now = timer.now()
        if min(map(len, clean.values())) >= ROUNDS or now + longest > until:
            break
        order = list(runs) if attempt % 2 == 0 else list(reversed(runs))
        for name in order:
            seconds, undisturbed = timer.run(runs[name])
            every[name].append(seconds)
            if undisturbed:
                clean[name].append(seconds)
        longest = max(longest, timer.now() - now)
    rounds, interrupted = min(map(len, clean.values())), min(map(len, every.values()))
    if rounds == 0 and interrupted < TRUSTED_ROUNDS:
        return None, interrupted
    return {name: median(each) for name, each in (clean if rounds else every).items()}, rounds


def _pick(times: Mapping[str, float], previous: str | None, left_out: str) -> Choice:
    """The fastest, if it is clearly faster than dense, and than what the phase before chose."""
    if len(times) == 1:
        return Choice(DENSE, f"measured: {_ms(times[DENSE])} dense{left_out}", times)
    best = min((kernel for kernel in times if kernel != DENSE), key=times.__getitem__)
    if previous in times and previous not in (DENSE, best) and times[best] > CLEARLY_FASTER * times[previous]:
        best = previous
    bound = CLEARLY_FASTER if previous == DENSE else NOT_SLOWER
    if times[best] <= bound * times[DENSE]:
        return Choice(best, f"measured: {_against(times)}{left_out}", times)
    return Choice(DENSE, f"measured: {_against(times)}, not below {bound:.0%} of dense{left_out}", times)


def _kernel_of(choices: Mapping[str, Choice], product: str) -> str:
    return choices[product].kernel if product in choices else DENSE


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def _against(times: Mapping[str, float]) -> str:
    sparse = ", ".join(f"{kernel} {_ms(t)}" for kernel, t in times.items() if kernel != DENSE)
    return f"{sparse} against {_ms(times[DENSE])} dense"
