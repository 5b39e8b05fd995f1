"""Layers that don't exist, on a clock that doesn't tick by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest

from acdc_kernels.nn.product import DENSE, FORWARD, FP16, PRODUCTS, SPARSE, Work
from acdc_kernels.plan import CostModel, Memory, Planner


class FakeTimer:
    """A call takes what it returns; every ``disturbed``-th one is interrupted."""

    overhead = 0.0

    def __init__(self, disturbed: int = 0) -> None:
        self.clock, self.calls, self.disturbed = 100.0, 0, disturbed
        self.compiling, self.compiles = 0.0, 0.0  # seconds in all, and of each kernel when it is first prepared

    def now(self) -> float:
        return self.clock

    def prepare(self, make: Callable[[], Callable[[], float]]) -> Callable[[], float]:
        self.compiling += self.compiles
        return make()

    def run(self, call: Callable[[], float]) -> tuple[float, bool]:
        self.calls += 1
        clean = not self.disturbed or self.calls % self.disturbed != 0
        seconds = call() * (1 if clean else 10)
        self.clock += seconds
        return seconds, clean


@dataclass
class FakeTrial:
    """Milliseconds by product and kernel; ``estimates`` where the cost model is to think otherwise."""

    times: Mapping[str, Mapping[str, float]]
    estimates: Mapping[str, Mapping[str, float]] | None = None
    whole: float | None = None  # milliseconds of the planned layer; None: the sum of its products
    key: str = "a layer"
    runs: list[tuple[str, ...]] = field(default_factory=list)

    @property
    def computed(self) -> tuple[str, ...]:
        return tuple(self.times)

    def kernels(self, product: str) -> tuple[str, ...]:
        return tuple(self.times[product])

    def work(self, product: str, kernel: str) -> Work:
        milliseconds = (self.estimates or self.times)[product][kernel]
        return Work(kernel if kernel == DENSE else "sparse", milliseconds, 0)

    def run(self, product: str, kernel: str, forward: str) -> Callable[[], float]:
        self.runs.append((product, kernel, forward))
        return lambda: 1e-3 * self.times[product][kernel]

    def step(self, chosen: Mapping[str, str]) -> Callable[[], float]:
        self.runs.append(("whole", *chosen.values()))
        total = sum(self.times[product][kernel] for product, kernel in chosen.items())
        if self.whole is not None and set(chosen.values()) != {DENSE}:
            total = self.whole
        return lambda: 1e-3 * total


MODEL = CostModel({"dense": 1e3, "sparse": 1e3}, bandwidth=1.0, dense_call=0, sparse_call=0)


@dataclass
class Fakes:
    """What tests make plans with."""

    trial = staticmethod(lambda *args, **kwargs: FakeTrial(*args, **kwargs))
    timer = staticmethod(FakeTimer)

    @staticmethod
    def layer(forward=1.0, input_gradient=1.0, weight_gradient=1.0, dense=4.0, **others) -> FakeTrial:
        """A layer whose sparse products take these milliseconds; each dense one takes ``dense``."""
        sparse = dict(zip(PRODUCTS, (forward, input_gradient, weight_gradient), strict=True))
        times = {product: {DENSE: dense, SPARSE: t} for product, t in sparse.items()}
        if (fp16 := others.pop("fp16", None)) is not None:
            times[FORWARD][FP16] = fp16
        return FakeTrial(times, **others)

    @staticmethod
    def planner(timer=None, memory=None, measure=True) -> Planner:
        return Planner(measure, timer or FakeTimer(), memory or Memory(None), MODEL)

    def plan(self, trial, previous=None, budget=10.0, **settings):
        """Product -> choice of one layer."""
        return self.planner(**settings).plan({"it": trial}, {"it": previous or {}}, budget)["it"]


@pytest.fixture
def fakes() -> Fakes:
    return Fakes()
