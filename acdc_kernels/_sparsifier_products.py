"""The Sparsifier's products: what stands in the places of its layers, from observing them to the plan of a phase."""

from __future__ import annotations

import contextlib
import json
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from .nn import product_type
from .nn.obstacles import without_autocast
from .nn.product import DENSE, FORWARD, FP16, MASK_CHANGED, PRODUCTS, Calls, Observation, Product, Trial
from .ops.distributed import from_first, is_sharded, local_part
from .ops.values import count_bits
from .plan import BUDGET, ONE_KERNEL, Choice, Planner, PlanRow
from .policy.schedules import Phase, Schedule

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from .optim.masks import Masks

__all__ = ["KERNELS", "Products"]

KERNELS = ("auto", "model", "dense", "sparse", "fp16")
OBSERVED_STEPS = 8  # of a dense phase, the last ones


class Products:
    """Observes layers, plans each compressed phase, and starts and stops what runs in them.

    layers: name -> (wrapped layer, its weight). schedule, pattern, kernels and group are the Sparsifier's. Raises
    ValueError if ``kernels`` names what no layer here can have.

    Attributes:
        seconds: spent on planning by this process, without the building of indexes and the compiling of kernels.
        compiling: seconds spent on compiling kernels for planning.
    """

    def __init__(
        self,
        layers: Mapping[str, tuple[nn.Module, Parameter]],
        masks: Masks,
        schedule: Schedule,
        pattern: str,
        kernels: str,
        group: ProcessGroup | None,
    ) -> None:
        self._layers, self._masks, self._schedule = dict(layers), masks, schedule
        self._pattern, self._kernels, self._group = pattern, kernels, group
        self._products: dict[str, Product] = {}
        self._refusals: dict[str, str] = {}
        for name, (layer, weight) in self._layers.items():
            made = self._make(layer, weight)
            if isinstance(made, Product):
                self._products[name] = made
            else:
                self._refusals[name] = made
        if kernels in ("sparse", "fp16") and not self._products:
            alike: dict[str, list[str]] = {}
            for name, why in self._refusals.items():
                alike.setdefault(why, []).append(name)
            why = "; ".join(f"{', '.join(names)}: {why}" for why, names in alike.items()) or "no Linear layer competes"
            raise ValueError(f"Sparsifier: kernels must be 'auto', 'model' or 'dense' here, got {kernels!r}: {why}")
        self.seconds = self.compiling = 0.0
        self._rows: list[PlanRow] = []
        self._calls = {name: product.calls for name, product in self._products.items()}
        self._observed: dict[str, Observation] = {}
        self._pending = False  # a compressed phase has begun, and no layer was seen in training yet
        self._running: dict[str, Product] = {}
        self._once_sparse: set[str] = set()
        self._topologies = _Topologies(pattern)
        self._dense_steps: deque[float] = deque(maxlen=32)
        self._last_step: float | None = None
        masks.listen(self._masks_changed)
        places = [(self._layers[name][0], product) for name, product in self._products.items()]
        weakref.finalize(self, _empty, places).atexit = False
        self._observe()

    @property
    def rows(self) -> list[PlanRow]:
        """The plan of the latest compressed phase; a layer whose latest training forward stepped aside says so."""
        self._masks_changed()
        aside = {name: product.aside for name, product in self._running.items() if product.aside}
        return [] if self._pending else [_dense(row, aside.get(row.layer)) for row in self._rows]

    def begin(self, phase: Phase, step: int) -> None:
        """Called where ``phase`` has begun and its masks are set; ``step`` is the first of it that is to come."""
        self._last_step = None
        self._take_observations()
        if phase.kind == "compressed":
            self._pending = True
            self._plan(phase, step)
        elif self._is_watched(phase, step):
            self._observe()

    def end(self) -> None:
        """Called before the masks of a compressed phase go: from here on the layers are dense."""
        for product in self._running.values():
            product.stop()
        self._running.clear()
        self._topologies.clear()  # those of a plan that failed
        self._pending = False
        for name in self._products:
            self._place(name, None)

    def step(self, phase: Phase, step: int) -> None:
        """Called after an update that ends no phase; ``step`` is the next one."""
        self._masks_changed()
        for product in self._running.values():
            if self._masks.untouched(product.weight):
                product.weight_is_masked()
            if product.aside is None:
                product.aside = "no training forward came to it: not run, or autocast or transforms in a compiled model"
        watched = self._is_watched(phase, step)
        self._take_observations(go_on=watched)
        if watched:
            self._observe()  # batches may be of another size by now
        if phase.kind == "dense":
            now = time.perf_counter()
            if self._last_step is not None:
                self._dense_steps.append(now - self._last_step)
            self._last_step = now
        elif self._pending:
            self._plan(phase, step)

    def state_dict(self) -> dict[str, Any]:
        """As plain data."""
        self._masks_changed()
        return {
            "kernels": self._kernels,
            "pending": self._pending,
            "rows": [row.to_dict() for row in self._rows],
            "observed": {name: calls.to_dict() for name, calls in self._calls.items() if calls.observed()},
        }

    def differences(self, state: object, phase: Phase) -> list[str]:
        """A line for each thing that keeps ``state`` from being a plan, in ``phase``, for the layers here."""
        lines = _differences(state, self._layers)
        if not lines and not state["rows"] and self._layers and phase.kind == "compressed" and not state["pending"]:
            lines.append(f"plan's rows must be {len(PRODUCTS)} a layer in a compressed phase, got none")
        return lines

    def load_state_dict(self, state: Mapping[str, Any], phase: Phase, step: int) -> None:
        """Goes on with the plan of ``state``, of which ``differences`` names none; the masks of ``phase`` are set.

        Made under another setting of ``kernels`` it is made anew: at once where nothing is to be timed, no training
        forward is to be seen first, and no other process is to agree; else after the next update.
        """
        self.end()
        self._last_step = None
        self._rows = [PlanRow.from_dict(row) for row in state["rows"]]
        watched = self._is_watched(phase, step)
        self._calls = {name: Calls.from_dict(calls) for name, calls in state["observed"].items()}
        self._observed = {name: calls.observed() for name, calls in self._calls.items()}
        for name, product in self._products.items():
            product.observing = watched
            product.calls = self._calls.setdefault(name, Calls())
        same = state["kernels"] == self._kernels
        if phase.kind == "compressed":
            self._pending = state["pending"] if same else True
            alone = self._kernels in ("dense", "sparse") or (self._group is None and not self._measures)
            if self._pending and alone:
                self._plan(phase, step)
            elif not self._pending:
                self._start()
        unseen = not self._products.keys() <= self._observed.keys()
        if watched or (unseen and (phase.kind == "dense" or self._pending)):
            self._observe()

    def _make(self, layer: nn.Module, weight: Parameter) -> Product | str:
        """The layer's product, or why it can't have one."""
        if self._kernels == "dense":
            return "kernels='dense'"
        if is_sharded(weight):
            return "the weight is sharded"
        kind = product_type(layer, self._pattern, weight.device.type)
        if kind is None:
            return f"no sparse kernels for {type(layer)._own.__name__}"
        why = kind.refusal(layer, weight, self._pattern)
        if why is None:
            why = self._missing(kind, weight, self._kernels == "fp16")
        if why is not None:
            return why
        product = kind(weight)
        product.vouch = partial(self._masks.untouched, weight)
        return product

    def _missing(self, kind: type[Product], weight: Tensor, fp16: bool) -> str | None:
        """Why kernels are missing; an explicit request runs on the reference, which warns."""
        if self._kernels == "sparse":
            return None
        with torch.cuda.device(weight.device) if weight.is_cuda else contextlib.nullcontext():
            return kind.missing(fp16, self._pattern, weight.device.type)

    def _place(self, name: str, product: Product | None) -> None:
        _fill(self._layers[name][0], product)

    def _is_watched(self, phase: Phase, step: int) -> bool:
        """Whether the step is one of the last dense ones before a compressed phase, which the plan will be made for."""
        if phase.kind != "dense" or step <= phase.last_step - OBSERVED_STEPS:
            return False
        return self._schedule.at(phase.last_step + 1).kind == "compressed"

    def _observe(self) -> None:
        for name, product in self._products.items() if self._kernels != "sparse" else ():
            if not product.observing:
                product.start_observing()
            self._place(name, product)

    def _take_observations(self, go_on: bool = False) -> None:
        for name, product in self._products.items():
            if product.observing and (seen := product.observed()) is not None:
                product.calls.taken()
                self._observed[name] = seen
                if not go_on:
                    product.observing = False
                    self._place(name, None)

    def _plan(self, phase: Phase, step: int) -> None:
        """Makes the plan and starts it; it stays pending while no layer was seen in training."""
        if self._group is None or self._kernels in ("dense", "sparse"):
            rows = self._make_plan(phase, step)
        else:
            rows = self._plan_of_first(phase, step)
        if rows is not None:
            self._rows, self._pending = rows, False
            self._start()

    def _plan_of_first(self, phase: Phase, step: int) -> list[PlanRow] | None:
        """The plan that rank 0 makes. Raises on every process if that fails, so that none waits for another."""
        rows, error = None, None
        if torch.distributed.get_rank(self._group) == 0:
            try:
                rows = self._make_plan(phase, step)
            except BaseException as failure:
                error = failure
        why = "" if error is None else f"{type(error).__name__}: {error}"
        text = json.dumps([why, None if rows is None else [row.to_dict() for row in rows]])
        why, plain = json.loads(from_first(text, self._group, self._device))
        if error is not None:
            raise error
        if why:
            raise RuntimeError(f"Sparsifier: rank 0 must make the plan for all processes, but got {why}")
        return None if plain is None else [PlanRow.from_dict(row) for row in plain]

    def _make_plan(self, phase: Phase, step: int) -> list[PlanRow] | None:
        """None if no layer was seen in training yet, and one may still be."""
        if self._kernels == "sparse":
            asked = {name: product.asked() for name, product in self._products.items()}
            return self._table({name: {p: _as_asked(kernel) for p, kernel in of.items()} for name, of in asked.items()})
        if not self._products:
            return self._table({})
        if not self._observed:
            return None
        start, built = time.perf_counter(), self._topologies.seconds
        trials: dict[str, Trial] = {}
        for name, product in self._products.items():
            seen = self._observed.get(name)
            if seen is not None and not seen.obstacle:
                bits = self._masks[product.weight]
                build = self._topologies.builder(product, bits)
                trials[name] = product.trial(self._layers[name][0], self._pattern, bits, seen, build, self._fp16)
        parts: dict[torch.device, dict[str, Trial]] = {}  # layers of one device share its clock
        for name, trial in trials.items():
            parts.setdefault(self._products[name].weight.device, {})[name] = trial
        planners = {device: Planner(self._measures, device=device) for device in parts}
        estimates = {device: sum(map(planners[device].dense_step, part.values())) for device, part in parts.items()}
        dense = total = sum(estimates.values())
        if self._dense_steps:  # the clock of a host that runs ahead of its GPU shows too little
            dense = max(median(self._dense_steps), dense if self._device.type == "cuda" else 0.0)
        hoped = sum(estimates[device] * planners[device].hoped(part.values()) for device, part in parts.items())
        expected = dense * hoped / total if total else 0.0
        budget = BUDGET * (phase.last_step + 1 - step) * expected - (time.perf_counter() - start)
        choices: dict[str, dict[str, Choice]] = {}
        for device, part in parts.items():
            with without_autocast(device.type), torch.enable_grad():
                choices |= planners[device].plan(part, self._chosen(), budget * estimates[device] / total)
        rows, compiling = self._table(choices), sum(planner.compiling for planner in planners.values())
        self.compiling += compiling
        self.seconds += time.perf_counter() - start - (self._topologies.seconds - built) - compiling
        return rows

    @property
    def _device(self) -> torch.device:
        """Of the competing weights; of the first, where they are on several."""
        return next((weight.device for _, weight in self._layers.values()), torch.device("cpu"))

    @property
    def _measures(self) -> bool:
        return self._kernels != "model" and not torch.are_deterministic_algorithms_enabled()

    @property
    def _fp16(self) -> bool:
        return self._kernels == "fp16"

    def _chosen(self) -> dict[str, dict[str, str]]:
        """Layer -> product -> kernel, of the latest plan."""
        chosen: dict[str, dict[str, str]] = {}
        for row in self._rows:
            chosen.setdefault(row.layer, {})[row.product] = row.kernel
        return chosen

    def _table(self, choices: Mapping[str, Mapping[str, Choice]]) -> list[PlanRow]:
        rows = []
        for name, (_, weight) in self._layers.items():
            seen, numel = self._observed.get(name), local_part(weight).numel()
            sparsity = 1 - count_bits(self._masks[weight]) / numel if numel else 0.0
            about = (seen.samples if seen else 0, tuple(weight.shape), sparsity)
            for product in PRODUCTS:
                choice = choices.get(name, {}).get(product) or Choice(DENSE, self._why_dense(name, seen, choices))
                times = {kernel: 1e3 * t for kernel, t in choice.times.items()}
                rows.append(PlanRow(name, product, choice.kernel, choice.reason, times, *about))
        return rows

    def _why_dense(self, name: str, seen: Observation | None, choices: Mapping[str, object]) -> str:
        """Of a product that was not to be chosen for."""
        if name in self._refusals:
            return self._refusals[name]
        if name in choices:
            return "the input needs no gradient"
        return "no training forward was seen" if seen is None else seen.obstacle

    def _start(self) -> None:
        """Starts what the rows say; what can't run here stays dense, and its rows say so."""
        for name, kernels in self._chosen().items():
            product, sparse = self._products.get(name), set(kernels.values()) != {DENSE}
            if product is not None:
                product.observing = False
                self._place_dense(name, product)
            if not sparse:
                continue
            if product is None:
                self._make_dense(name, self._refusals[name])
            elif (why := self._missing(type(product), product.weight, kernels[FORWARD] == FP16)) is not None:
                self._make_dense(name, why)
            elif set(known := self._known(name, product, kernels)) != {DENSE}:
                self._run(name, product, dict(zip(kernels, known, strict=True)))
        self._topologies.clear()

    def _known(self, name: str, product: Product, kernels: Mapping[str, str]) -> list[str]:
        """``kernels``, but dense where a plan of elsewhere names one that there isn't here; its row says so."""
        known = []
        for each, kernel in kernels.items():
            why = product.unknown(each, kernel, self._pattern) if kernel != DENSE else None
            known.append(DENSE if why else kernel)
            if why:
                mine = (name, each)
                self._rows = [_dense(row, why if (row.layer, row.product) == mine else None) for row in self._rows]
        return known

    def _run(self, name: str, product: Product, kernels: Mapping[str, str]) -> None:
        bits, seen = self._masks[product.weight], self._observed.get(name)
        build = self._topologies.builder(product, bits)
        samples, favours = 0, None
        if seen is not None and self._kernels != "sparse":
            samples, favours = (
                seen.samples,
                _Favours(product, self._layers[name][0], self._pattern, bits, seen, kernels),
            )
        product.start(build(), kernels, samples, favours)
        self._running[name] = product
        self._once_sparse.add(name)
        self._place(name, product)

    def _make_dense(self, name: str, why: str) -> None:
        self._rows = [_dense(row, why if row.layer == name else None) for row in self._rows]

    def _place_dense(self, name: str, product: Product) -> None:
        """In a compressed phase. Where a compiled model has a graph with the product in it, the product computes it:
        from phase to phase fewer and fewer sets of layers are new to the compiler, of which it takes only a few."""
        self._place(name, product if product.compiled and name in self._once_sparse else None)

    def _masks_changed(self) -> None:
        """Layers that run by a mask which was replaced, deleted or changed in place go on dense."""
        for name, product in tuple(self._running.items()):
            bits, own = self._masks.get(product.weight), product.topology.bits
            if bits is not own and (bits is None or not torch.equal(bits, own)):
                why = f"its mask was {'deleted' if bits is None else 'replaced'} in this phase"
            elif product.mask_changed():
                why = MASK_CHANGED
            else:
                continue
            self._running.pop(name).stop()
            self._place_dense(name, product)
            self._make_dense(name, why)


def _as_asked(kernel: str) -> Choice:
    return Choice(kernel, ONE_KERNEL if kernel == DENSE else "as asked")


def _dense(row: PlanRow, why: str | None) -> PlanRow:
    return row if why is None else replace(row, kernel=DENSE, reason=why)


class _Topologies:
    """Builds each topology when it is asked for, once for a mask that layers share; ``seconds`` is what that took."""

    def __init__(self, pattern: str) -> None:
        self._pattern, self.seconds = pattern, 0.0
        self._built: dict[tuple[type[Product], int], tuple[Tensor, Any]] = {}

    def builder(self, product: Product, bits: Tensor) -> Callable[[], Any]:
        key = type(product), id(bits)

        def build() -> Any:
            if key not in self._built:
                start = time.perf_counter()
                self._built[key] = bits, product.build(bits, self._pattern)
                self.seconds += time.perf_counter() - start
            return self._built[key][1]

        return build

    def clear(self) -> None:
        self._built.clear()


class _Favours:
    """Whether the cost model expects a layer's kernels to be faster than dense for another number of samples."""

    def __init__(self, product: Product, layer: nn.Module, pattern: str, bits: Tensor, seen: Observation, kernels: Any):
        self._make = lambda samples: product.trial(
            layer, pattern, bits, replace(seen, samples=samples), lambda: product.topology, FP16 in kernels.values()
        )
        self._kernels, self._device = kernels, product.weight.device

    def __call__(self, samples: int) -> bool:
        return Planner(measure=False, device=self._device).favours(self._make(samples), self._kernels)


def _fill(layer: nn.Module, product: Product | None) -> None:
    """An empty place has no attribute at all: a compiled model would tell that from None, and compile again."""
    if product is None:
        layer.__dict__.pop("product", None)
    else:
        layer.product = product


def _empty(places: list[tuple[nn.Module, Product]]) -> None:
    """When nobody watches over the masks any more."""
    for layer, product in places:
        if layer.__dict__.get("product") is product:
            _fill(layer, None)
        product.stop()


def _differences(plan: object, layers: Mapping[str, object]) -> list[str]:
    """A line for each thing that keeps ``plan`` from being a plan for ``layers``."""
    kinds = {"kernels": str, "pending": bool, "rows": list, "observed": Mapping}
    if not isinstance(plan, Mapping):
        return [f"plan must be a mapping, got {plan!r}"]
    wrong = [name for name, kind in kinds.items() if not isinstance(plan.get(name), kind)]
    wrong += [str(name) for name in plan if name not in kinds]
    if wrong:
        return [f"plan must hold {', '.join(kinds)}; not so: {', '.join(wrong)}"]
    lines = []
    for i, row in enumerate(plan["rows"]):
        try:
            name = PlanRow.from_dict(row).layer
        except (TypeError, ValueError) as error:
            lines.append(f"plan's rows[{i}]: {error}")
            continue
        if name not in layers:
            lines.append(f"plan has no layer {name!r} here")
    if not lines and len({(row["layer"], row["product"]) for row in plan["rows"]}) != len(plan["rows"]):
        lines.append("plan's rows must be one a layer and product")
    if not lines and plan["rows"] and len(plan["rows"]) != len(PRODUCTS) * len(layers):
        lines.append(f"plan's rows must be {len(PRODUCTS)} a layer, got {len(plan['rows'])} for {len(layers)} layers")
    return lines + [line for name, seen in plan["observed"].items() if (line := _misfit(name, seen, layers))]


def _misfit(name: str, calls: object, layers: Mapping[str, object]) -> str:
    try:
        fits = name in layers and Calls.from_dict(calls).observed() is not None
    except ValueError as error:
        return f"plan's observed[{name!r}]: {error}"
    return "" if fits else f"plan's observed[{name!r}] must be of a layer here and hold calls, got {calls!r}"
