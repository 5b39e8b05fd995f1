"""The plan on a GPU, without one: its clock on a device that doesn't exist, its cost model, and what it remembers."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from acdc_kernels import _plan_cost, _plan_memory
from acdc_kernels._plan_cost import GpuCostModel
from acdc_kernels._plan_timers import SLEEP_AT_MOST, CudaTimer, Gpu
from acdc_kernels.nn.block_linear import BlockProduct, BlockTrial
from acdc_kernels.nn.product import (
    DENSE,
    FORWARD,
    INPUT_GRADIENT,
    PRODUCTS,
    SPARSE,
    WEIGHT_GRADIENT,
    Observation,
    named,
)
from acdc_kernels.plan import COMPILING, Memory, Planner, PlanRow

H200 = {"capability": (9, 0), "sms": 132, "clock": 1.98e9, "memory": 4.9e12}


class Device:
    """A host and a GPU: calls take time on both, and the GPU works off what is enqueued."""

    def __init__(self, clock=1e9):
        self.host, self.busy_until, self.sweeps, self.inside = 10.0, 0.0, 0, 0
        self.gpu = Gpu(clock, self.sweep, self.current, self.event, self.synchronize, self.sleep, lambda: self.host)

    @contextlib.contextmanager
    def current(self):
        self.inside += 1
        yield
        self.inside -= 1

    def work(self, device, host=0.0):
        assert self.inside
        self.host += host
        self.busy_until = max(self.busy_until, self.host) + device

    def sweep(self):
        self.sweeps += 1
        self.work(5e-5)

    def sleep(self, cycles):
        self.work(cycles / self.gpu.clock)

    def synchronize(self):
        self.host = max(self.host, self.busy_until)

    def event(self):
        at = SimpleNamespace(time=0.0)

        def record():
            self.busy_until = at.time = max(self.busy_until, self.host)

        at.record = record
        at.query = lambda: at.time <= self.host
        at.elapsed_time = lambda end: 1e3 * (end.time - at.time)
        return at


@pytest.mark.parametrize(
    ("device", "host", "expected"),
    [(1e-3, 2e-5, 1e-3), (5e-6, 4e-5, 4e-5), (2e-4, 2e-4, 2e-4), (1e-3, 5e-3, 5e-3), (1e-3, 0.1, 0.1)],
)
def test_a_call_takes_what_the_slower_of_host_and_device_takes(device, host, expected):
    fake = Device()
    timer = CudaTimer(torch.device("cuda"), fake.gpu)
    for _ in range(2):
        seconds, _ = timer.run(lambda: fake.work(device, host))
        assert seconds == pytest.approx(expected)
    assert fake.sweeps >= 2


def test_the_sleep_grows_until_the_call_is_enqueued_in_it_and_no_further():
    fake = Device()
    timer, calls = CudaTimer(torch.device("cuda"), fake.gpu), []
    timer.run(lambda: (calls.append(1), fake.work(1e-5, 3e-4)))
    assert len(calls) == 3  # behind 0.1, 0.2 and 0.4 ms
    calls.clear()
    timer.run(lambda: (calls.append(1), fake.work(1e-5, 3e-4)))
    assert len(calls) == 1
    timer.run(lambda: fake.work(1e-5, 3.0))
    assert timer._sleep == SLEEP_AT_MOST


def test_time_to_compile_is_not_on_the_clock():
    fake = Device()
    timer = CudaTimer(torch.device("cuda"), fake.gpu)
    start = timer.now()
    call = timer.prepare(lambda: lambda: fake.work(1e-3, 2.0))
    assert timer.now() == pytest.approx(start)
    assert timer.compiling == pytest.approx(2.001)
    fake.inside = 1
    call()
    fake.inside = 0
    timer.prepare(lambda: lambda: fake.work(1e-3, 1e-4))  # it had been compiled before
    assert timer.compiling == pytest.approx(2.001)

    def in_vain():
        fake.work(1e-3, 1.0)  # what makes the call may compile too
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        timer.prepare(in_vain)
    assert timer.compiling == pytest.approx(3.001)


def varied(fakes, forward=(1.0, 0.5, 2.0), **others):
    """A layer whose forward has three ways to go about it: the default, and two more."""
    layer = fakes.layer(forward[0], **others)
    layer.times[FORWARD].update({named("fast"): forward[1], named("slow"): forward[2]})
    return layer


@pytest.fixture
def broken(monkeypatch, fakes):
    """Kernels, or "whole", that raise when they are first run."""
    names = set()

    def run(trial, product, kernel, forward):
        if kernel in names:
            raise RuntimeError(f"{kernel}: out of resources\nand more")
        return lambda: 1e-3 * trial.times[product][kernel]

    def step(trial, chosen):
        if "whole" in names and set(chosen.values()) != {DENSE}:
            raise RuntimeError("too large")
        return lambda: 1e-3 * sum(trial.times[product][kernel] for product, kernel in chosen.items())

    monkeypatch.setattr(type(fakes.layer()), "run", run)
    monkeypatch.setattr(type(fakes.layer()), "step", step)
    return names


def test_a_kernel_that_does_not_run_here_is_no_candidate(fakes, broken):
    broken.add("sparse fast")
    choices = fakes.plan(varied(fakes, forward=(1.0, 0.5, 0.7)))
    assert choices[FORWARD].kernel == "sparse slow"
    assert choices[FORWARD].reason.endswith(
        "; sparse fast doesn't run here (RuntimeError: sparse fast: out of resources)"
    )
    assert choices[INPUT_GRADIENT].kernel == SPARSE

    broken.add(SPARSE)
    choices = fakes.plan(fakes.layer())
    assert {choice.kernel for choice in choices.values()} == {DENSE}
    assert all("sparse doesn't run here" in choice.reason for choice in choices.values())

    broken.add(DENSE)
    with pytest.raises(RuntimeError, match="dense: out of resources"):
        fakes.plan(fakes.layer())


def test_a_layer_that_does_not_run_sparse_as_a_whole_is_dense(fakes, broken):
    broken.add("whole")
    for choice in fakes.plan(fakes.layer()).values():
        assert choice.kernel == DENSE
        assert choice.reason == "the whole layer doesn't run by sparse kernels here (RuntimeError: too large)"


def test_configs_are_candidates(fakes):
    choices = fakes.plan(varied(fakes))
    assert choices[FORWARD].kernel == "sparse fast"
    assert list(choices[FORWARD].times) == [DENSE, SPARSE, "sparse fast", "sparse slow"]
    assert choices[FORWARD].reason == "measured: sparse 1 ms, sparse fast 0.5 ms, sparse slow 2 ms against 4 ms dense"
    before = {FORWARD: "sparse slow"}
    assert fakes.plan(varied(fakes, (1, 1.95, 2)), before)[FORWARD].kernel == SPARSE
    assert fakes.plan(varied(fakes, (2.1, 1.95, 2)), before)[FORWARD].kernel == "sparse slow"
    assert fakes.plan(varied(fakes), {FORWARD: "sparse of another card"})[FORWARD].kernel == "sparse fast"


def test_without_timing_kernels_go_by_their_default(fakes):
    choices = fakes.plan(varied(fakes), measure=False)
    assert choices[FORWARD].kernel == SPARSE
    assert choices[FORWARD].reason == "the cost model expects sparse 1 ms against 4 ms dense"


def test_compiling_is_bounded(fakes):
    timer = fakes.timer()
    timer.compiles = COMPILING / 8
    trials = {name: varied(fakes, key=name) for name in "ab"}
    plan = fakes.planner(timer).plan(trials, {}, 10.0)
    assert plan["a"][FORWARD].kernel == "sparse fast"
    assert plan["b"][FORWARD].kernel == SPARSE
    planner = fakes.planner(timer)
    assert planner.compiling == timer.compiling
    assert planner.kernels(trials["a"], FORWARD) == (DENSE, SPARSE)


def test_a_small_budget_is_not_spread_over_configs(fakes, tmp_path):
    memory = Memory(tmp_path / "plans.json")
    trial = varied(fakes, (1.0, 1.0, 1.0))
    trial.times[FORWARD].update({named(f"way {i}"): 1.0 for i in range(40)})
    timer = fakes.timer()
    choices = fakes.planner(timer, memory).plan({"it": trial}, {}, 0.12)["it"]
    assert choices[FORWARD].times == pytest.approx({DENSE: 4e-3, SPARSE: 1e-3})
    choices = fakes.planner(timer, memory).plan({"it": trial}, {}, 10.0)["it"]
    assert len(choices[FORWARD].times) == 44
    choices = fakes.planner(timer, memory).plan({"it": trial}, {}, 0.12)["it"]
    assert len(choices[FORWARD].times) == 44  # remembered


def test_the_model_does_not_choose_among_configs(fakes):
    choices = fakes.plan(varied(fakes), budget=0.001)
    assert choices[FORWARD].kernel == SPARSE
    assert choices[FORWARD].reason.endswith("the cost model expects sparse 1 ms against 4 ms dense")


def test_what_a_run_takes_beside_its_call_counts(fakes):
    timer = fakes.timer()
    timer.overhead = 0.01
    assert "no round of timing fits" in fakes.plan(fakes.layer(1, 1, 1), timer=timer, budget=0.2)[FORWARD].reason
    timer.overhead = 0.0
    assert "measured" in fakes.plan(fakes.layer(1, 1, 1), timer=timer, budget=0.2)[FORWARD].reason


def test_a_gpu_without_memory_for_timing_goes_by_the_model(fakes):
    def run(product, kernel, forward):
        def call():
            raise torch.OutOfMemoryError("CUDA out of memory")

        return call

    trial = fakes.layer(1, 5, 1)
    trial.run = run
    choices = fakes.plan(trial)
    assert [choices[product].kernel for product in PRODUCTS] == [SPARSE, DENSE, SPARSE]
    assert choices[FORWARD].reason == (
        "there is no memory for timing: the cost model expects sparse 1 ms against 4 ms dense"
    )


def test_rows_hold_configs():
    row = PlanRow("a", WEIGHT_GRADIENT, "sparse 64x64 w4 s3 splits2", "as measured", {DENSE: 1.0}, 8, (64, 64), 0.5)
    assert PlanRow.from_dict(row.to_dict()) == row
    for kernel in ("sparse ", "sparsely", "sparse fp16", "dense 64x64"):
        with pytest.raises(ValueError, match="kernel must be one of the weight gradient's"):
            PlanRow.from_dict({**row.to_dict(), "kernel": kernel})


@pytest.fixture
def card(monkeypatch):
    """A GPU's description of itself."""
    properties = SimpleNamespace(
        name="NVIDIA H200", major=9, minor=0, multi_processor_count=132, clock_rate=1_980_000, L2_cache_size=50 << 20,
        memory_clock_rate=3_201_000, memory_bus_width=6144,
    )  # fmt: skip
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    _plan_memory.gpu_key.cache_clear()
    _plan_cost.gpu_cost_model.cache_clear()
    yield properties
    _plan_memory.gpu_key.cache_clear()
    _plan_cost.gpu_cost_model.cache_clear()


def trial_of(r, c, density, n=8192, side=4096, dtype="bfloat16", weight_dtype=torch.bfloat16):
    kept = round(side * side * density / (r * c)) * r * c
    weight = torch.empty(side, side, dtype=weight_dtype, device="meta")
    seen = Observation(n, True, "", dtype)
    return BlockTrial(BlockProduct, weight, None, (side, side, kept, r, c), seen, lambda: None)


def speedup(model, trial, product=FORWARD):
    best = "sparse 256x64 w8 s4" if product != WEIGHT_GRADIENT else f"sparse 64x{max(trial.meta[4], 128)} w8 s4"
    return model.seconds(trial.work(product, DENSE)) / model.seconds(trial.work(product, best))


def test_what_the_cost_model_expects_of_an_h200(card):
    model = GpuCostModel.of(torch.device("cuda"))
    assert model == GpuCostModel.made_of(**{**H200, "memory": 2 * 3.201e9 * 6144 / 8})
    trial = trial_of(128, 128, 0.1)
    rate = trial.work(FORWARD, DENSE).flops / model.seconds(trial.work(FORWARD, DENSE))
    assert 6.5e14 < rate < 9e14
    assert 4.5 < speedup(model, trial) < 8
    assert 2.5 < speedup(model, trial_of(64, 64, 0.1)) < 6
    assert speedup(model, trial_of(32, 32, 0.1)) < speedup(model, trial_of(64, 64, 0.1))
    assert speedup(model, trial_of(128, 128, 0.2)) < speedup(model, trial)
    assert speedup(model, trial, WEIGHT_GRADIENT) > 3
    assert speedup(model, trial_of(128, 128, 0.1, n=16, side=256)) < 1  # a call takes longer than its work
    low = trial_of(128, 128, 0.1, dtype="bfloat16", weight_dtype=torch.float32)
    for product in (FORWARD, WEIGHT_GRADIENT):  # casting what is read
        assert low.work(product, SPARSE).moved > trial.work(product, SPARSE).moved
    assert low.work(FORWARD, DENSE).moved > trial.work(FORWARD, DENSE).moved


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (13, 0)])
def test_every_card_has_rates(capability):
    model = GpuCostModel.made_of(capability, 100, 1.5e9, 1e12)
    for kind in ("dense", "blocks"):
        rates = [model.flops[f"{kind} {dtype}"] for dtype in ("bfloat16", "tf32", "float32")]
        assert rates == sorted(rates, reverse=True)
        assert model.flops[f"{kind} float16"] == rates[0]


def test_times_of_another_card_are_not_taken(card):
    device = torch.device("cuda", 0)
    key = _plan_memory.gpu_key(device)
    assert key.startswith(f"NVIDIA H200 9.0, 132 multiprocessors, torch {torch.__version__}, triton ")
    _plan_memory.gpu_key.cache_clear()
    card.name = "NVIDIA H100"
    assert _plan_memory.gpu_key(device) != key


def test_a_planner_of_a_gpu(card):
    planner = Planner(device=torch.device("cuda", 0), measure=False)
    assert isinstance(planner._timer, CudaTimer)
    assert isinstance(planner._model, GpuCostModel)
    trials = [trial_of(128, 128, 0.1), trial_of(64, 64, 0.5)]
    choices = planner.plan({"a": trials[0], "b": trials[1]}, {}, 1.0)
    assert {choice.kernel for choice in choices["a"].values()} == {SPARSE}
    assert choices["b"][INPUT_GRADIENT].kernel == DENSE


def test_layers_of_a_gpu_that_stay_dense_say_why(monkeypatch):
    """As far as a layer can be asked without a GPU."""
    from acdc_kernels.nn.sparse_linear import LinearProduct
    from acdc_kernels.nn.wrap import wrap

    layer = nn.Linear(64, 64)
    wrap(layer)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
    for pattern in ("unstructured", "1:4", "block:4x1", "block:16x16"):
        why = f"no sparse kernels on cuda for pattern {pattern!r}: dense on masked weights"
        assert LinearProduct.refusal(layer, layer.weight, pattern) == why
