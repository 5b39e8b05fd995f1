"""Sparse products in training: what is planned and when, and that nobody but the clock notices."""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import acdc_kernels as acdc
from acdc_kernels import _native, plan
from acdc_kernels import _sparsifier_products as products
from acdc_kernels.nn.product import DENSE, FP16, PRODUCTS, SPARSE
from acdc_kernels.nn.sparse_linear import LinearProduct
from acdc_kernels.ops._registry import has_kernel
from acdc_kernels.ops.sparse_linear.contract import sparse_linear_op
from acdc_kernels.plan import PlanRow

pytestmark = pytest.mark.usefixtures("quiet_references")

KERNELS = has_kernel(sparse_linear_op, "cpu")
needs_kernels = pytest.mark.skipif(not KERNELS, reason="no compiled kernels: the plan is dense")
# D2 C3 D3 C4
SCHEDULE = acdc.schedules.acdc(total=12, warmup=2, compressed=3, dense=3, final_dense=3, final_compressed=4)
# C2 D2 C4
COMPRESSED = acdc.schedules.acdc(total=8, warmup=0, compressed=2, dense=2, final_dense=2, final_compressed=4)


@pytest.fixture
def measured(monkeypatch):
    """Every layer is timed, without a clock: sparse kernels take ``ratio`` of the dense time. Counts the timings."""
    case = SimpleNamespace(ratio=0.1, rounds=0)

    def interleaved(runs, timer, until):
        for run in runs.values():
            run()
        case.rounds += 1
        sparse = ("sparse", "planned", "sparse fp16")
        return {name: 1e-3 * (case.ratio if name.rpartition(": ")[2] in sparse else 1.0) for name in runs}, 7

    monkeypatch.setattr(plan, "interleaved", interleaved)
    monkeypatch.setattr(plan, "HOPELESS", 1e9)
    monkeypatch.setattr(products, "BUDGET", 1e9)
    return case


def net(width=16) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(12, width), nn.LayerNorm(width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 4)
    )


class Run:
    """Training; update t sees batch t."""

    def __init__(self, kernels="sparse", schedule=SCHEDULE, make=net, sparsity=0.8, batch=8, **settings):
        self.model = make()
        self.optimizer = acdc.MaskedSGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.sparsifier = acdc.Sparsifier(
            self.model, self.optimizer, schedule, sparsity=sparsity, kernels=kernels, **settings
        )
        self.batch, self.forward = batch, self.model

    def data(self):
        generator = torch.Generator().manual_seed(self.sparsifier.step_count)
        return torch.randn(self.batch, 12, generator=generator), torch.randint(4, (self.batch,), generator=generator)

    def update(self):
        x, y = self.data()
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.forward(x), y).backward()
        self.optimizer.step()

    def train(self, updates=None):
        for _ in range(
            self.sparsifier.schedule.total_steps - self.sparsifier.step_count if updates is None else updates
        ):
            self.update()
            self.sparsifier.step()
        return self

    def weights(self):
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}

    def running(self):
        """The indices of the layers that have a product with a topology in their place."""
        return [
            i
            for i, layer in enumerate(self.model)
            if (product := getattr(layer, "product", None)) is not None and product.topology is not None
        ]


def close(one, other):
    for name, p in one.weights().items():
        torch.testing.assert_close(p, other.weights()[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pattern", ["unstructured", "block:4x1"])
@pytest.mark.parametrize("schedule", [SCHEDULE, COMPRESSED], ids=["dense first", "compressed first"])
def test_training_ends_where_dense_products_end(schedule, pattern):
    sparse = Run("sparse", schedule, pattern=pattern).train()
    dense = Run("dense", schedule, pattern=pattern).train()
    close(sparse, dense)
    assert sparse.sparsifier.achieved_sparsity() >= 0.79
    assert sparse.running() == [0, 3, 5]
    assert dense.running() == []


def test_products_come_and_go_with_phases():
    r = Run("sparse")
    seen = []
    while r.sparsifier.step_count < 12:
        seen.append(("C" if r.running() else "D") == r.sparsifier.phase.kind[0].upper())
        r.train(1)
    assert all(seen)
    plan_of = r.sparsifier.plan()
    assert [(row.layer, row.product) for row in plan_of] == [(n, p) for n in ("0", "3", "5") for p in PRODUCTS]
    assert {row.kernel for row in plan_of} == {SPARSE}
    assert {row.reason for row in plan_of} == {"as asked"}
    assert {row.shape for row in plan_of} == {(16, 12), (16, 16), (4, 16)}
    kept = {name: int(acdc.unpack_mask(bits, [8 * len(bits)]).sum()) for name, bits in r.sparsifier.masks.items()}
    assert plan_of[0].sparsity == pytest.approx(1 - kept["0.weight"] / (16 * 12))


def test_topologies_are_freed_when_a_dense_phase_begins():
    import weakref

    r = Run("sparse").train(2)
    topology = weakref.ref(r.model[3].product.topology)
    assert topology() is not None
    r.optimizer.zero_grad()
    r.train(3)
    assert r.sparsifier.phase.kind == "dense"
    assert "product" not in vars(r.model[3])
    gc.collect()
    assert topology() is None
    assert len(r.sparsifier.plan()) == 9  # of the phase that was


def test_there_is_no_plan_before_the_first_compressed_phase():
    r = Run("auto")
    assert r.sparsifier.plan() == []
    assert r.sparsifier.planning_seconds == 0.0


@needs_kernels
def test_a_plan_is_measured_at_the_flip(measured):
    r = Run("auto").train(1)
    assert measured.rounds == 0
    assert [i for i, layer in enumerate(r.model) if "product" in vars(layer)] == [0, 3, 5]  # the last dense steps
    r.train(1)
    assert measured.rounds > 0
    rows = {(row.layer, row.product): row for row in r.sparsifier.plan()}
    assert rows["0", "input gradient"].kernel == DENSE
    assert rows["0", "input gradient"].reason == "the input needs no gradient"
    del rows["0", "input gradient"]
    assert {row.kernel for row in rows.values()} == {SPARSE}
    assert all(row.times == pytest.approx({DENSE: 1.0, SPARSE: 0.1}) for row in rows.values())
    assert all(row.samples == 8 for row in rows.values())
    assert r.running() == [0, 3, 5]
    assert r.sparsifier.planning_seconds > 0
    close(r.train(), Run("dense").train())


@needs_kernels
def test_dense_choices_leave_the_layer_to_itself(measured):
    measured.ratio = 1.1
    r = Run("auto").train(2)
    assert measured.rounds > 0
    assert {row.kernel for row in r.sparsifier.plan()} == {DENSE}
    assert not any("product" in vars(layer) for layer in r.model)


@needs_kernels
def test_a_run_that_starts_compressed_plans_after_its_first_update(measured):
    r = Run("auto", COMPRESSED)
    assert r.sparsifier.plan() == []
    assert r.running() == []
    r.train(1)
    assert len(r.sparsifier.plan()) == 9
    assert r.running() == [0, 3, 5]
    rounds = measured.rounds
    r.train(1)
    assert measured.rounds == rounds
    close(r.train(), Run("dense", COMPRESSED).train())


def test_a_run_that_is_asked_to_starts_sparse_at_once():
    assert Run("sparse", COMPRESSED).running() == [0, 3, 5]


@needs_kernels
@pytest.mark.parametrize("how", ["model", "deterministic"])
def test_the_model_alone_decides(how, measured):
    torch.use_deterministic_algorithms(how == "deterministic")
    try:
        r = Run("model" if how == "model" else "auto").train(2)
    finally:
        torch.use_deterministic_algorithms(False)
    assert measured.rounds == 0
    assert all(row.times == {} for row in r.sparsifier.plan())
    assert r.sparsifier.plan()[0].reason.startswith("the cost model expects")


def test_dense_as_asked():
    r = Run("dense")
    assert not any("product" in vars(layer) for layer in r.model)
    r.train(2)
    assert {(row.kernel, row.reason) for row in r.sparsifier.plan()} == {(DENSE, "kernels='dense'")}


@needs_kernels
def test_the_clock_of_dense_steps_gives_the_budget(monkeypatch):
    seen = []

    def note(self, trials, previous, budget):
        seen.append((budget, self.hoped(trials.values())))
        now[0] += 7.0
        return {name: {} for name in trials}

    now = [0.0]
    monkeypatch.setattr(plan.Planner, "plan", note)
    monkeypatch.setattr(products.time, "perf_counter", lambda: now[0])
    schedule = acdc.schedules.acdc(total=40, warmup=10, compressed=20, dense=5, final_dense=0, final_compressed=20)
    r = Run("auto", schedule)
    trial = LinearProduct.trial

    def slowly(self, *args):
        now[0] += 0.01
        return trial(self, *args)

    monkeypatch.setattr(LinearProduct, "trial", slowly)
    for _ in range(10):
        now[0] += 0.5
        r.train(1)
    ((budget, hoped),) = seen
    assert budget == pytest.approx(0.0065 * 30 * 0.5 * hoped - 3 * 0.01)  # what it takes to begin counts as well
    assert r.sparsifier.planning_seconds == pytest.approx(7.03)


@needs_kernels
def test_hysteresis_hands_on_the_last_plan(measured, monkeypatch):
    seen = []
    plan_of = plan.Planner.plan

    def note(self, trials, previous, budget):
        seen.append(previous)
        return plan_of(self, trials, previous, budget)

    monkeypatch.setattr(plan.Planner, "plan", note)
    Run("auto").train()
    assert seen[0] == {}
    assert seen[1]["3"] == dict.fromkeys(PRODUCTS, SPARSE)


@needs_kernels
def test_batches_that_grew_are_seen_in_the_last_dense_step(measured):
    r = Run("auto")
    r.train(1)
    r.batch = 64
    r.train(1)
    assert {row.samples for row in r.sparsifier.plan()} == {64}


# D10 C2 D10 C2
LONGER = acdc.schedules.acdc(total=24, warmup=10, compressed=2, dense=10, final_dense=10, final_compressed=2)


@needs_kernels
def test_a_short_last_batch_is_not_planned_for(measured):
    for schedule, batches in ((LONGER, [256] * 4 + [8]), (SCHEDULE, [64, 8])):
        r = Run("auto", schedule)
        while not r.sparsifier.plan():
            r.batch = batches[r.sparsifier.step_count % len(batches)]
            r.train(1)
        assert {row.samples for row in r.sparsifier.plan()} == {batches[0]}
        assert not any("product" in vars(layer) and layer.product.observing for layer in r.model)


@needs_kernels
def test_batches_that_have_shrunk_are_planned_for(measured):
    r = Run("auto", LONGER, batch=64).train(10)
    assert {row.samples for row in r.sparsifier.plan()} == {64}
    r.train(2)
    r.batch = 8
    r.train(1)
    assert not any("product" in vars(layer) for layer in r.model)
    r.train(9)
    assert {row.samples for row in r.sparsifier.plan()} == {8}


@needs_kernels
def test_an_obstacle_of_a_few_calls_does_not_count(measured):
    for usual in (False, True):
        r = Run("auto", LONGER)
        while not r.sparsifier.plan():
            step = r.sparsifier.step_count
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=usual != (step % 3 == 0)):
                r.update()
            r.sparsifier.step()
        kernels = {row.kernel for row in r.sparsifier.plan() if (row.layer, row.product) != ("0", PRODUCTS[1])}
        assert kernels == {DENSE if usual else SPARSE}


@needs_kernels
@pytest.mark.parametrize("at", range(1, 10))
def test_observations_are_part_of_the_state(at, measured):
    """A run that stops anywhere plans for the same batches as one that doesn't."""
    batches = [24, 8, 8, 24, 16, 16, 16, 24, 8, 24]

    def train(r, until):
        while r.sparsifier.step_count < until:
            r.batch = batches[r.sparsifier.step_count]
            r.train(1)
        return r

    r = train(Run("auto", LONGER), at)
    state = through_a_file(r.sparsifier.state_dict())
    other = Run("auto", LONGER)
    other.sparsifier.load_state_dict(state)
    train(r, 10), train(other, 10)
    assert r.sparsifier.state_dict()["plan"]["observed"] == other.sparsifier.state_dict()["plan"]["observed"]
    assert {row.samples for one in (r, other) for row in one.sparsifier.plan()} == {24}


def test_planning_takes_nothing_from_the_random_generator(measured):
    states = []
    for kernels in ("dense", "sparse", "auto"):
        r = Run(kernels)
        torch.manual_seed(5)
        r.train()
        states.append(torch.get_rng_state())
    assert all(torch.equal(state, states[0]) for state in states)


# What stays dense, and says why


class Scaled(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


def of_kinds():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(12, 8), Scaled(8, 8), nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 2, 1), nn.Flatten(), nn.Linear(8, 4)
    )


def test_every_layer_that_could_be_sparse_has_its_reason():
    r = Run("sparse", make=of_kinds, schedule=COMPRESSED)
    rows = {row.layer: row for row in r.sparsifier.plan()}
    assert rows["1"].reason == "Scaled has a forward of its own"
    assert rows["3"].reason == "no sparse kernels for Conv2d"
    assert rows["0"].kernel == rows["5"].kernel == SPARSE
    close(r.train(), Run("dense", make=of_kinds, schedule=COMPRESSED).train())


@needs_kernels
def test_a_layer_that_training_never_ran(measured):
    class Idle(nn.Sequential):
        def forward(self, x):
            return self[2](torch.tanh(self[0](x)))

    def make():
        torch.manual_seed(0)
        return Idle(nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, 4))

    r = Run("auto", make=make).train(3)
    reasons = {row.layer: row.reason for row in r.sparsifier.plan()}
    assert reasons["1"] == "no training forward was seen"
    assert reasons["2"].startswith("measured")


@needs_kernels
@pytest.mark.parametrize("kernels", ["auto", "sparse"])
def test_autocast_stays_dense_and_says_so(measured, kernels):
    r = Run(kernels)
    for _ in range(4):
        x, y = r.data()
        r.optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(r.model(x), y)
        loss.backward()
        r.optimizer.step()
        r.sparsifier.step()
    assert {row.kernel for row in r.sparsifier.plan()} == {DENSE}
    assert r.sparsifier.plan()[0].reason == "autocast to torch.bfloat16"
    if kernels == "sparse":  # as asked, as soon as it can be
        assert r.running() == [0, 3, 5]
        r.train(1)
        assert {row.kernel for row in r.sparsifier.plan()} == {SPARSE}


def test_a_compiled_model_under_autocast_says_so():
    torch.compiler.reset()
    r = Run("sparse", COMPRESSED)
    forward = torch.compile(r.model, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        forward(r.data()[0]).sum().backward()
    r.optimizer.step()
    r.sparsifier.step()
    row = r.sparsifier.plan()[0]
    assert row.kernel == DENSE
    assert row.reason.startswith("no training forward came to it: not run, or autocast")


def test_a_plan_says_so_while_its_layers_step_aside():
    r = Run("sparse").train(4)
    with torch.no_grad():
        r.model[3].weight.data.add_(0)
        r.model[3].weight.add_(0.1)
    with torch.no_grad():
        r.model(r.data()[0])  # no training forward
    assert {row.kernel for row in r.sparsifier.plan()} == {SPARSE}
    r.model(r.data()[0])
    rows = r.sparsifier.plan()
    assert {row.reason for row in rows if row.kernel == DENSE} == {"the weight was written to outside of its mask"}
    assert {row.layer for row in rows if row.kernel == DENSE} == {"3"}
    r.train(1)  # masks it again
    r.model(r.data()[0])
    assert {row.kernel for row in r.sparsifier.plan()} == {SPARSE}


REFUSED = {
    "pattern": ({"pattern": "2:4"}, net, "no sparse kernels for pattern '2:4'"),
    "dtype": ({}, lambda: net().double(), "no sparse kernels for torch.float64"),
    "no linear layer": ({}, lambda: nn.Conv1d(2, 2, 1), "no Linear layer competes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_layer_can_have_is_refused(case):
    settings, make, why = REFUSED[case]
    settings = {"sparsity": None, **settings}
    with pytest.raises(ValueError, match=f"kernels must be 'auto', 'model' or 'dense' here, got 'sparse': .*{why}"):
        Run("sparse", make=make, **settings)
    r = Run("auto", make=make, schedule=COMPRESSED, **settings)
    assert {row.kernel for row in r.sparsifier.plan()} <= {DENSE}


def test_a_refusal_leaves_the_model_as_it_was():
    model = net().double()
    before = str(model)
    optimizer = acdc.MaskedSGD(model.parameters())
    with pytest.raises(ValueError, match="got 'sparse'"):
        acdc.Sparsifier(model, optimizer, COMPRESSED, kernels="sparse")
    assert str(model) == before
    assert not optimizer.masks


def test_half_precision_needs_its_processor(monkeypatch):
    monkeypatch.setattr(_native, "cpu_fp16", lambda: "none")
    with pytest.raises(
        ValueError,
        match=r"got 'fp16': 0, 3, 5: (.* no AVX512-FP16.*; ACDC_CPU_FP16=emulated is slow|no compiled kernels)",
    ):
        Run("fp16")


@needs_kernels
def test_half_precision_is_a_candidate(monkeypatch, measured):
    monkeypatch.setattr(_native, "cpu_fp16", lambda: "native")
    seen = []
    monkeypatch.setattr(plan.Planner, "plan", lambda self, trials, previous, budget: seen.append(trials) or {})
    Run("fp16").train(2)
    assert seen[0]["3"].kernels("forward") == (DENSE, SPARSE, FP16)
    assert seen[0]["3"].kernels("weight gradient") == (DENSE, SPARSE)


def test_without_compiled_kernels(monkeypatch):
    monkeypatch.setattr("acdc_kernels.nn.sparse_linear.has_kernel", lambda op, device: False)
    monkeypatch.setattr(_native, "why_not", lambda: "it was not built")
    r = Run("auto").train(2)
    assert {(row.kernel, row.reason) for row in r.sparsifier.plan()} == {
        (DENSE, "no compiled kernels: it was not built")
    }
    assert Run("sparse").train(2).running() == [0, 3, 5]  # an explicit request runs on the reference, which warns
    with pytest.raises(ValueError, match="no compiled kernels: it was not built"):
        Run("fp16")


# State


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def parts_of(r, order=("model", "optimizer", "sparsifier")):
    return {name: through_a_file(getattr(r, name).state_dict()) for name in order}


ORDERS = [
    ("model", "optimizer", "sparsifier"),
    ("sparsifier", "optimizer", "model"),
    ("optimizer", "sparsifier", "model"),
]


@pytest.mark.parametrize("schedule", [SCHEDULE, COMPRESSED], ids=["dense first", "compressed first"])
@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
def test_resuming_with_sparse_products_is_bit_exact(order, schedule):
    r = Run("sparse", schedule)
    saved = [(0, parts_of(r))]
    for i in range(schedule.total_steps):
        r.train(1)
        saved.append((i + 1, parts_of(r)))
    end = r.weights()
    for step, parts in saved:
        other = Run("sparse", schedule)
        for name in order:
            getattr(other, name).load_state_dict(parts[name])
        assert other.sparsifier.step_count == step
        assert other.sparsifier.plan() == [PlanRow.from_dict(row) for row in parts["sparsifier"]["plan"]["rows"]]
        other.train()
        assert all(torch.equal(p, end[name]) for name, p in other.weights().items()), step


@needs_kernels
@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
def test_inside_a_phase_the_plan_is_restored_and_nothing_timed(order, measured):
    r = Run("auto").train(3)
    parts = parts_of(r, order)
    rows, running = r.sparsifier.plan(), r.running()
    end = r.train(2).weights()
    other = Run("auto")
    measured.rounds = 0
    for name in order:
        getattr(other, name).load_state_dict(parts[name])
    assert other.sparsifier.plan() == rows
    assert other.running() == running == [0, 3, 5]
    assert other.sparsifier.planning_seconds == 0.0
    other.train(2)
    assert measured.rounds == 0
    assert all(torch.equal(p, end[name]) for name, p in other.weights().items())


@needs_kernels
def test_a_plan_that_is_pending_stays_so(measured):
    state = through_a_file(Run("auto", COMPRESSED).sparsifier.state_dict())
    assert state["plan"]["pending"]
    other = Run("auto", COMPRESSED)
    other.sparsifier.load_state_dict(state)
    assert other.sparsifier.plan() == []
    other.train(1)
    assert other.running() == [0, 3, 5]


@needs_kernels
def test_another_setting_of_kernels_plans_anew(measured):
    saved = {kernels: parts_of(Run(kernels).train(3)) for kernels in ("auto", "sparse", "dense")}

    def resumed(kernels, parts):
        r = Run(kernels)
        for name, part in parts.items():
            getattr(r, name).load_state_dict(part)
        return r

    assert resumed("dense", saved["auto"]).running() == []
    assert {row.reason for row in resumed("dense", saved["auto"]).sparsifier.plan()} == {"kernels='dense'"}
    assert resumed("sparse", saved["dense"]).running() == [0, 3, 5]
    r = resumed("auto", saved["dense"])
    assert r.sparsifier.plan() == []
    assert r.running() == []
    r.train(1)
    assert r.running() == [0, 3, 5]
    assert "measured" in r.sparsifier.plan()[0].reason


@needs_kernels
@pytest.mark.parametrize("how", ["model", "deterministic"])
def test_where_nothing_is_timed_a_plan_is_made_anew_at_once(how, measured):
    parts = parts_of(Run("auto").train(3))
    parts["sparsifier"]["plan"]["kernels"] = "sparse"
    unseen = copy.deepcopy(parts)
    unseen["sparsifier"]["plan"]["observed"] = {}
    torch.use_deterministic_algorithms(how == "deterministic")
    try:
        for saved, at_once in ((parts, True), (unseen, False)):
            r = Run("model" if how == "model" else "auto")
            for name in ("sparsifier", "optimizer", "model"):
                getattr(r, name).load_state_dict(saved[name])
            assert bool(r.sparsifier.plan()) == at_once
            r.train(1)
            assert r.sparsifier.plan()[0].reason.startswith("the cost model expects")
    finally:
        torch.use_deterministic_algorithms(False)


@needs_kernels
@pytest.mark.parametrize("default", ["dtype", "device"])
def test_defaults_of_torch_are_nothing_to_a_plan(default, measured):
    one, other = Run("auto"), Run("auto")
    x, y = torch.randn(12, 8, 12), torch.randint(4, (12, 8))
    try:
        for r in (one, other):
            for i in range(12):
                r.optimizer.zero_grad()
                nn.functional.cross_entropy(r.model(x[i]), y[i]).backward()
                r.optimizer.step()
                r.sparsifier.step()
                assert i not in (1, 7) or r.running() == [0, 3, 5]
            torch.set_default_dtype(torch.float64) if default == "dtype" else torch.set_default_device("meta")
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert all(torch.equal(p, other.weights()[name]) for name, p in one.weights().items())


def test_a_plan_that_cannot_run_here_is_dense_and_says_so(measured, monkeypatch):
    if not KERNELS:
        pytest.skip("no compiled kernels: no sparse plan to restore")
    parts = parts_of(Run("auto").train(3))
    monkeypatch.setattr("acdc_kernels.nn.sparse_linear.has_kernel", lambda op, device: False)
    other = Run("auto")
    for name, part in parts.items():
        getattr(other, name).load_state_dict(part)
    assert other.running() == []
    assert {row.kernel for row in other.sparsifier.plan()} == {DENSE}
    assert "no compiled kernels" in other.sparsifier.plan()[3].reason


BROKEN = {
    # what of the plan is changed, to what; what the error says
    "another kind": (None, 3, "it lacks plan"),
    "no rows": (["rows"], None, "plan must hold .*; not so: rows"),
    "more": (["colour"], "red", "plan must hold .*; not so: colour"),
    "pending": (["pending"], 1, "not so: pending"),
    "rows of another kind": (["rows"], [3], r"rows\[0\]: must have the keys"),
    "no row": (["rows"], [], "rows must be 3 a layer in a compressed phase, got none"),
    "a kernel of the future": (
        ["rows", 0, "kernel"],
        "quantum",
        r"rows\[0\]: kernel must be one of the forward's, got 'quantum'",
    ),
    "half precision backward": (["rows", 1, "kernel"], FP16, r"rows\[1\]: kernel must be one of the input gradient's"),
    "a product": (["rows", 0, "product"], "sideways", r"rows\[0\]: product must be 'forward' or"),
    "a layer": (["rows", 0, "layer"], "9", "plan has no layer '9' here"),
    "a row twice": (["rows", 0, "product"], "input gradient", "rows must be one a layer and product"),
    "samples": (["rows", 0, "samples"], -1, "samples must be at least 0, got -1"),
    "times": (["rows", 0, "times"], {"dense": "x"}, r"rows\[0\]: could not convert"),
    "a layer less": (
        ["rows"],
        Run("sparse", COMPRESSED).sparsifier.state_dict()["plan"]["rows"][:6],
        "rows must be 3 a layer, got 6",
    ),
    "what was observed": (
        ["observed"],
        {"0": {"first": [], "latest": [[0, "", 3]], "input_gradient": True}},
        r"observed\['0'\]: latest must hold \[samples, obstacle, count\] of calls",
    ),
    "observed of another kind": (["observed"], {"0": {"first": 3, "latest": [], "input_gradient": True}}, "first must"),
    "observed nothing": (["observed"], {"0": {"first": [], "latest": [], "input_gradient": True}}, "and hold calls"),
    "observed elsewhere": (["observed"], {"9": {"first": [[1, "", 1]], "latest": [], "input_gradient": True}}, "layer"),
    "observed half": (["observed"], {"0": {"first": []}}, r"observed\['0'\]: must have the keys first, latest, input"),
    "an input gradient": (["observed"], {"0": {"first": [], "latest": [], "input_gradient": 1}}, "must be a bool"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_plan_that_does_not_fit_changes_nothing(case):
    path, value, message = BROKEN[case]
    state = copy.deepcopy(Run("sparse").train(3).sparsifier.state_dict())
    if path is None:
        state["plan"] = value
    else:
        at = state["plan"]
        for key in path[:-1]:
            at = at[key]
        if value is None:
            del at[path[-1]]
        else:
            at[path[-1]] = value
    r = Run("sparse").train(1)
    with pytest.raises(ValueError, match=message):
        r.sparsifier.load_state_dict(state)
    assert r.sparsifier.step_count == 1
    assert r.running() == []


# Changes in the middle of a phase


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_mask_that_changes_in_a_phase_makes_its_layer_dense(how):
    r = Run("sparse").train(3)
    weight = r.model[3].weight
    if how == "deleted":
        del r.optimizer.masks[weight]
    else:
        r.optimizer.masks[weight] = acdc.pack_mask(torch.rand(weight.shape) < 0.5)
    assert r.running() == [0, 5]
    rows = [row for row in r.sparsifier.plan() if row.layer == "3"]
    assert {(row.kernel, row.reason) for row in rows} == {(DENSE, f"its mask was {how} in this phase")}
    with torch.no_grad():
        weight.add_(0.1)
    x = torch.randn(5, 16)
    assert torch.equal(r.model[3](x), nn.functional.linear(x, weight, r.model[3].bias))
    r.train()
    assert r.running() == [0, 3, 5]


@pytest.mark.parametrize("how", ["all kept", "some more kept", "some more pruned"])
@pytest.mark.parametrize("inference", [False, True])
def test_a_mask_that_changes_in_place_makes_its_layer_dense(how, inference):
    r = Run("sparse", COMPRESSED)
    if inference:  # whose masks count no changes
        r.sparsifier.remove()
        with torch.inference_mode():
            r.sparsifier = acdc.Sparsifier(r.model, r.optimizer, COMPRESSED, sparsity=0.8, kernels="sparse")
    r.train(1)
    layer, bits = r.model[3], r.optimizer.masks[r.model[3].weight]
    assert bits.is_inference() == inference
    with torch.inference_mode(inference):
        if how == "all kept":
            bits.fill_(255)
        elif how == "some more kept":
            bits[:4] = 255
        else:
            bits[:16] = 0
    x = torch.randn(5, 16)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    rows = [row for row in r.sparsifier.plan() if row.layer == "3"]
    assert {(row.kernel, row.reason) for row in rows} == {(DENSE, "its mask was changed in place in this phase")}
    assert r.running() == [0, 5]
    assert r.sparsifier.state_dict()["plan"]["rows"][3]["kernel"] == DENSE
    r.optimizer.step()
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    r.train(4)
    assert r.running() == [0, 3, 5]  # of the next phase


def test_the_same_mask_again_changes_nothing():
    r = Run("sparse").train(3)
    for p, bits in dict(r.optimizer.masks).items():
        r.optimizer.masks[p] = bits.clone()
    r.optimizer.load_state_dict(copy.deepcopy(r.optimizer.state_dict()))
    assert r.running() == [0, 3, 5]


@pytest.mark.parametrize("how", ["removed", "collected"])
def test_when_the_sparsifier_goes(how):
    r = Run("sparse").train(3)
    product = r.model[3].product
    if how == "removed":
        r.sparsifier.remove()
        assert [type(layer) for layer in (r.model[0], r.model[3])] == [nn.Linear] * 2
    else:
        r.sparsifier = None
        gc.collect()
    assert product.topology is None
    assert not any("product" in vars(layer) for layer in r.model)
    with torch.no_grad():
        r.model[3].weight.add_(0.1)
    x = torch.randn(5, 16)
    assert torch.equal(r.model[3](x), nn.functional.linear(x, r.model[3].weight, r.model[3].bias))


def test_an_old_sparsifier_does_not_touch_the_next_ones_products():
    r = Run("sparse", COMPRESSED)
    old = r.sparsifier
    old.remove()
    r.sparsifier = acdc.Sparsifier(r.model, r.optimizer, COMPRESSED, sparsity=0.8, kernels="sparse")
    del old
    gc.collect()
    assert r.running() == [0, 3, 5]


def test_other_batch_sizes(measured):
    """The last batch of an epoch, an evaluation: right whatever runs."""
    for kernels in ("sparse", "auto"):
        r, dense = Run(kernels), Run("dense")
        for one in (r, dense):
            one.train(2)
            for batch in (8, 5, 3, 64, 8):
                one.batch = batch
                one.update()
            one.sparsifier.step()
        close(r, dense)
        r.model.eval(), dense.model.eval()
        with torch.no_grad():
            for n in (0, 1, 200):
                x = torch.randn(n, 12)
                torch.testing.assert_close(r.model(x), dense.model(x), rtol=1e-4, atol=1e-5)


def test_weights_swapped_in_for_an_evaluation():
    r = Run("sparse")
    average = torch.optim.swa_utils.AveragedModel(r.model)
    r.train(1)
    average.update_parameters(r.model)  # dense weights
    r.train(2)
    own = copy.deepcopy(r.model.state_dict())
    swapped = {name: tensor.clone() for name, tensor in average.module.state_dict().items()}
    x = torch.randn(6, 12)
    r.model.load_state_dict(swapped)
    torch.testing.assert_close(r.model(x), average(x))
    r.model.load_state_dict(own)
    assert r.running() == [0, 3, 5]
    r.train()
    close(r, Run("sparse").train())


def dense_product(r, x):
    return nn.functional.linear(x, r.model[0].weight, r.model[0].bias)


def test_writes_between_the_two_steps_are_seen():
    r = Run("sparse").train(3)
    x = torch.randn(5, 12)
    r.update()
    with torch.no_grad():
        r.model[0].weight.add_(0.1)
    r.sparsifier.step()
    torch.testing.assert_close(r.model(x), r.model[1:](dense_product(r, x)))


@pytest.mark.parametrize("how", ["no gradients", "no update", "Inf"])
def test_writes_that_no_update_has_masked_are_seen(how):
    r = Run("sparse").train(3)
    x = torch.randn(5, 12)
    r.optimizer.zero_grad()
    if how == "Inf":
        r.model(r.data()[0]).sum().backward()
        r.optimizer.found_inf = torch.ones(1)
    with torch.no_grad():
        r.model[0].weight.add_(0.1)
    if how != "no update":
        r.optimizer.step()
    r.sparsifier.step()
    assert r.running() == [0, 3, 5]
    torch.testing.assert_close(r.model(x), r.model[1:](dense_product(r, x)))


def test_writes_before_a_plan_starts_are_seen():
    r = Run("sparse", COMPRESSED)
    state = r.sparsifier.state_dict()
    with torch.no_grad():
        r.model[0].weight.add_(0.1)
    x = torch.randn(5, 12)
    torch.testing.assert_close(r.model(x), r.model[1:](dense_product(r, x)))
    r.sparsifier.load_state_dict(state)  # masks anew
    assert r.sparsifier.achieved_sparsity() >= 0.79
    with torch.no_grad():
        r.model[0].weight.add_(0.1)
    torch.testing.assert_close(r.model(x), r.model[1:](dense_product(r, x)))


def test_what_the_optimizer_wrote_is_not_looked_at(monkeypatch):
    looked = []
    look = LinearProduct._keeps_to_mask
    monkeypatch.setattr(LinearProduct, "_keeps_to_mask", lambda self, version: looked.append(1) or look(self, version))
    Run("sparse").train(5)
    assert len(looked) == 3  # each layer's, where the phase begins


# Ways to train


def test_gradient_accumulation_and_checkpointing():
    results = []
    for kernels in ("sparse", "dense"):
        r = Run(kernels)
        for _ in range(SCHEDULE.total_steps):
            r.optimizer.zero_grad()
            x, y = r.data()
            for part, target in zip(x.split(3), y.split(3), strict=True):
                out = r.model[3:](checkpoint(r.model[:3], part, use_reentrant=False))
                nn.functional.cross_entropy(out, target).backward()
            r.optimizer.step()
            r.sparsifier.step()
        results.append(r)
    close(*results)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Linear(12, 12), nn.Linear(12, 12, bias=False), nn.Linear(12, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        x = torch.tanh(self.first(x))
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


def test_tied_weights_and_a_layer_used_twice():
    sparse, dense = Run("sparse", make=Tied), Run("dense", make=Tied)
    for _ in range(SCHEDULE.total_steps):
        sparse.train(1), dense.train(1)
        if sparse.sparsifier.phase.kind == "compressed":
            assert sparse.model.first.product.topology is sparse.model.second.product.topology
    close(sparse, dense)
    assert {row.layer for row in sparse.sparsifier.plan()} == {"first", "second", "head"}


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.TransformerEncoderLayer(12, 2, 24, dropout=0.0, batch_first=True)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        return self.head(self.inner(x.unsqueeze(1)).squeeze(1))


def test_a_transformer_and_its_fast_path():
    r, dense = Run("sparse", make=Encoder).train(), Run("dense", make=Encoder).train()
    close(r, dense)
    x = torch.randn(3, 12)
    trained = r.model(x).detach()
    with torch.no_grad():
        torch.testing.assert_close(r.model.eval()(x), trained, rtol=1e-4, atol=1e-5)


def test_models_still_copy_and_pickle_in_a_compressed_phase():
    r = Run("sparse").train(3)
    x = torch.randn(3, 12)
    for copied in (copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))):
        other = copied(r.model)
        torch.testing.assert_close(other(x), r.model(x))
        assert not any(isinstance(vars(layer).get("product"), LinearProduct) for layer in other)
    twin = r.sparsifier.dense_twin()
    assert not any("product" in vars(layer) for layer in twin)
    assert r.running() == [0, 3, 5]


def test_skipped_updates_and_phase_hooks():
    r = Run("sparse")
    seen = []
    r.sparsifier.register_phase_hook(lambda sp, old, new: seen.append((new.kind, len(sp.plan()), len(r.running()))))
    while r.sparsifier.step_count < 12:
        if r.sparsifier.step_count % 2:
            r.update()
        r.sparsifier.step()
    assert seen == [("compressed", 9, 3), ("dense", 9, 0), ("compressed", 9, 3)]


def test_an_interrupted_plan_is_made_at_the_next_update(measured, monkeypatch):
    if not KERNELS:
        pytest.skip("no compiled kernels: nothing is planned")
    r = Run("auto").train(1)
    with monkeypatch.context() as patch:
        patch.setattr(plan.Planner, "plan", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            r.train(1)
    assert (r.sparsifier.step_count, r.sparsifier.phase.kind, r.sparsifier.plan()) == (2, "compressed", [])
    r.train(1)
    assert r.running() == [0, 3, 5]


@needs_kernels
def test_a_plan_that_failed_leaves_no_topologies(measured, monkeypatch):
    import weakref

    built = []

    def fail(self, trials, previous, budget):
        built.extend(weakref.ref(trial._topology()) for trial in trials.values())
        raise MemoryError

    monkeypatch.setattr(plan.Planner, "plan", fail)
    r = Run("auto")
    while len(built) < 9:  # at the flip, and after each update
        with contextlib.suppress(MemoryError):
            r.train(1)
    r.train(1)
    assert r.sparsifier.phase.kind == "dense"
    gc.collect()
    assert [topology() for topology in built] == [None] * 9
