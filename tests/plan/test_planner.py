"""How kernels are chosen, on fake layers with a fake clock."""

from __future__ import annotations

import pytest

from acdc_kernels.nn.product import DENSE, FORWARD, FP16, INPUT_GRADIENT, PRODUCTS, SPARSE, WEIGHT_GRADIENT
from acdc_kernels.plan import ROUNDS, Memory, interleaved


def kernels(choices):
    return [choices[product].kernel for product in PRODUCTS]


ALL_SPARSE, ALL_DENSE = [SPARSE] * 3, [DENSE] * 3
CASES = {
    # milliseconds of sparse forward, input gradient, weight gradient (4 dense); the previous choice; what is chosen
    "all faster": ((1, 1, 1), {}, ALL_SPARSE),
    "all slower": ((5, 5, 5), {}, ALL_DENSE),
    "each apart": ((1, 5, 1), {}, [SPARSE, DENSE, SPARSE]),
    "gradients alone": ((5, 1, 1), {}, [DENSE, SPARSE, SPARSE]),
    "3% faster": ((3.88, 1, 1), {}, ALL_SPARSE),
    "2% faster": ((3.92, 1, 1), {}, [DENSE, SPARSE, SPARSE]),
    "3% faster than the dense one before": ((3.88, 1, 1), {FORWARD: DENSE}, [DENSE, SPARSE, SPARSE]),
    "5% faster than the dense one before": ((3.79, 1, 1), {FORWARD: DENSE}, ALL_SPARSE),
    "3% faster, as before": ((3.88, 1, 1), {FORWARD: SPARSE}, ALL_SPARSE),
    "never slower, even if it was before": ((3.92, 1, 1), {FORWARD: SPARSE}, [DENSE, SPARSE, SPARSE]),
}


@pytest.mark.parametrize("case", CASES)
def test_measured_choices(case, fakes):
    sparse, previous, expected = CASES[case]
    choices = fakes.plan(fakes.layer(*sparse), previous)
    assert kernels(choices) == expected
    for product, t in zip(PRODUCTS, sparse, strict=True):
        assert choices[product].times == pytest.approx({DENSE: 4e-3, SPARSE: 1e-3 * t})
        assert choices[product].reason.startswith("measured: sparse ")


FP16_CASES = {
    # sparse and fp16 forward, the previous choice, the choice
    "fastest": (2.0, 1.0, {}, FP16),
    "slower": (1.0, 2.0, {}, SPARSE),
    "4% faster than before": (1.0, 0.96, {FORWARD: SPARSE}, SPARSE),
    "6% faster than before": (1.0, 0.94, {FORWARD: SPARSE}, FP16),
    "both slower than dense": (5.0, 4.5, {}, DENSE),
}


@pytest.mark.parametrize("case", FP16_CASES)
def test_two_sparse_forwards(case, fakes):
    sparse, fp16, previous, expected = FP16_CASES[case]
    choices = fakes.plan(fakes.layer(sparse, fp16=fp16), previous)
    assert kernels(choices) == [expected, SPARSE, SPARSE]


def test_a_whole_layer_that_is_not_faster_is_dense(fakes):
    trial = fakes.layer(1, 1, 1, whole=10.9)
    choices = fakes.plan(trial)
    assert kernels(choices) == ALL_DENSE
    assert choices[FORWARD].reason == "the whole layer takes 10.9 ms by sparse kernels, 12 ms dense"
    assert choices[FORWARD].times == {DENSE: 4e-3, SPARSE: 1e-3}
    assert kernels(fakes.plan(fakes.layer(1, 1, 1, whole=10.7))) == ALL_SPARSE


def test_a_layer_that_is_dense_by_its_products_is_not_timed_whole(fakes):
    trial = fakes.layer(5, 5, 5)
    fakes.plan(trial)
    assert not [run for run in trial.runs if run[0] == "whole"]


def test_the_gradients_are_timed_beside_the_forward_that_was_chosen(fakes):
    for forward, chosen in ((1, SPARSE), (5, DENSE)):
        trial = fakes.layer(forward, 1, 1)
        fakes.plan(trial)
        assert {run[2] for run in trial.runs if run[0] == WEIGHT_GRADIENT} == {chosen}


def test_the_hopeless_is_not_timed(fakes):
    trial = fakes.layer(8.1, 1, 1)
    choices = fakes.plan(trial)
    assert kernels(choices) == [DENSE, SPARSE, SPARSE]
    assert choices[FORWARD].times == {}
    assert choices[FORWARD].reason == "the cost model expects sparse 8.1 ms against 4 ms dense: not timed"
    assert FORWARD not in {run[0] for run in trial.runs}
    trial = fakes.layer(9, 9, 9)
    timer = fakes.timer()
    assert kernels(fakes.plan(trial, timer=timer)) == ALL_DENSE
    assert timer.calls == 0


def test_the_model_alone(fakes):
    timer = fakes.timer()
    trial = fakes.layer(1, 3.3, 3.1)
    choices = fakes.plan(trial, timer=timer, measure=False)
    assert kernels(choices) == [SPARSE, DENSE, SPARSE]
    assert timer.calls == 0
    assert choices[FORWARD].reason == "the cost model expects sparse 1 ms against 4 ms dense"
    assert all(choice.times == {} for choice in choices.values())


def test_an_input_without_a_gradient(fakes):
    trial = fakes.trial({FORWARD: {DENSE: 4, SPARSE: 1}, WEIGHT_GRADIENT: {DENSE: 4, SPARSE: 1}})
    choices = fakes.plan(trial)
    assert {product: choice.kernel for product, choice in choices.items()} == {FORWARD: SPARSE, WEIGHT_GRADIENT: SPARSE}


def test_what_the_model_hopes_for(fakes):
    planner = fakes.planner()
    assert planner.hoped([fakes.layer(1, 2, 5, dense=4, fp16=0.5)]) == pytest.approx((0.5 + 2 + 4) / 12)
    assert planner.hoped([fakes.layer(1, 1, 1), fakes.layer(4, 4, 4)]) == pytest.approx((3 + 12) / 24)
    assert planner.hoped([]) == 1.0


@pytest.mark.parametrize("budget", [0.05, 0.1, 0.3, 1.0, 10.0])
def test_the_budget_is_kept(budget, fakes):
    timer = fakes.timer()
    trials = {f"layer {i}": fakes.layer(1, 1, 1, key=f"{i}") for i in range(5)}
    start = timer.now()
    plan = fakes.planner(timer).plan(trials, {}, budget)
    assert timer.now() - start <= budget
    if budget == 10.0:
        assert all(kernels(choices) == ALL_SPARSE for choices in plan.values())
        assert all("measured" in choices[FORWARD].reason for choices in plan.values())


@pytest.mark.parametrize("wrong", [3, 30, 300])
@pytest.mark.parametrize("budget", [0.1, 0.5, 3.0])
def test_the_budget_is_kept_where_the_model_is_wrong(budget, wrong, fakes):
    """But for one call, which nobody could know to be so long."""
    timer = fakes.timer()
    estimates = {product: {DENSE: 4, SPARSE: 1} for product in PRODUCTS}
    times = {product: {kernel: wrong * t for kernel, t in of.items()} for product, of in estimates.items()}
    trials = {f"layer {i}": fakes.trial(times, estimates, key=f"{i}") for i in range(5)}
    start = timer.now()
    fakes.planner(timer).plan(trials, {}, budget)
    assert timer.now() - start <= budget + 1e-3 * wrong * 12


def test_an_index_that_takes_the_budget_leaves_nothing_to_time(fakes):
    timer, trial = fakes.timer(), fakes.layer(1, 1, 1)

    def run(product, kernel, forward):
        timer.clock += 1.0 if kernel == SPARSE else 0.0
        return lambda: 1e-3

    trial.run = run
    choices = fakes.plan(trial, timer=timer, budget=0.5)
    assert timer.calls == 0
    assert "no round of timing fits into the budget" in choices[FORWARD].reason


def test_a_large_memory_is_asked_only_where_there_is_time_to_read_it(fakes, tmp_path):
    path = tmp_path / "plans.json"
    fakes.plan(fakes.layer(1, 5, 1), memory=Memory(path))
    written = path.read_text() + " " * 2_500_000  # a tenth of a second
    path.write_text(written)
    for budget, measured in ((0.09, False), (0.11, True)):
        timer, memory = fakes.timer(), Memory(path)
        choices = fakes.plan(fakes.layer(1, 5, 1, key="another"), memory=memory, timer=timer, budget=budget)
        assert ("entries" in vars(memory)) == measured
        assert path.read_text() == written  # saving would take longer still
        assert choices[FORWARD].kernel == SPARSE


def test_a_memory_that_is_not_needed_is_not_read(fakes, tmp_path):
    memory = Memory(tmp_path / "plans.json")
    fakes.plan(fakes.layer(9, 9, 9), memory=memory)
    fakes.plan(fakes.layer(1, 1, 1), memory=memory, measure=False)
    assert "entries" not in vars(memory)
    assert not list(tmp_path.iterdir())


def test_without_a_budget_the_model_decides_and_says_so(fakes):
    timer = fakes.timer()
    choices = fakes.plan(fakes.layer(1, 5, 1), timer=timer, budget=0.01)
    assert kernels(choices) == [SPARSE, DENSE, SPARSE]
    assert timer.calls == 0
    why = "no round of timing fits into the budget: the cost model expects sparse 1 ms against 4 ms dense"
    assert choices[FORWARD].reason == why


def test_the_largest_layers_are_timed_first(fakes):
    small, large = fakes.layer(0.5, 0.5, 0.5, dense=1.0, key="small"), fakes.layer(1, 1, 1, key="large")
    plan = fakes.planner().plan({"small": small, "large": large}, {}, 0.07)
    assert large.runs
    assert not small.runs
    assert list(plan) == ["small", "large"]
    assert "no round of timing fits" in plan["small"][FORWARD].reason


def test_layers_that_are_alike_are_timed_once(fakes):
    trials = {name: fakes.layer(1, 1, 1) for name in "abc"}
    plan = fakes.planner().plan(trials, {}, 10)
    assert plan["a"] == plan["b"] == plan["c"]
    assert [len(trials[name].runs) > 0 for name in "abc"] == [True, False, False]


def test_interrupted_runs_do_not_count(fakes):
    choices = fakes.plan(fakes.layer(1, 1, 1), timer=fakes.timer(disturbed=5))
    assert choices[FORWARD].times == pytest.approx({DENSE: 4e-3, SPARSE: 1e-3})


def test_on_a_busy_machine_the_interrupted_runs_decide(fakes):
    choices = fakes.plan(fakes.layer(1, 1, 1), timer=fakes.timer(disturbed=1))
    assert choices[FORWARD].times == pytest.approx({DENSE: 40e-3, SPARSE: 10e-3})
    assert kernels(choices) == ALL_SPARSE


def test_interruptions_are_told_apart_from_a_small_budget(fakes):
    choices = fakes.plan(fakes.layer(1, 1, 1), timer=fakes.timer(disturbed=1), budget=0.5)
    why = "all 2 rounds of timing that fit into the budget were interrupted: the cost model expects sparse 1 ms against 4 ms dense"
    assert choices[FORWARD].reason == why


def test_rounds_are_interleaved_and_bounded(fakes):
    order = []
    timer = fakes.timer()
    runs = {name: lambda name=name: order.append(name) or 1.0 for name in "ab"}
    times, rounds = interleaved(runs, timer, timer.now() + 1000)
    assert (times, rounds) == ({"a": 1.0, "b": 1.0}, ROUNDS)
    assert "".join(order) == "ab" + "abba" * 3 + "ab"
    order.clear()
    assert interleaved(runs, timer, timer.now() + 4.5)[1] == 1
    assert "".join(order) == "abab"
    assert interleaved(runs, timer, timer.now() + 2.5) == (None, 0)
    order.clear()
    assert interleaved(runs, timer, timer.now() + 0.5) == (None, 0)
    assert "".join(order) == "a"  # not even the first calls go on
    assert interleaved(runs, fakes.timer(disturbed=1), 100 + 70) == (None, 2)


def test_what_was_measured_is_remembered(fakes, tmp_path):
    path = tmp_path / "plans.json"
    first = fakes.plan(fakes.layer(1, 5, 1), memory=Memory(path))
    timer, trial = fakes.timer(), fakes.layer(1, 5, 1)
    second = fakes.plan(trial, memory=Memory(path), timer=timer, budget=1e-3)
    assert timer.calls == 0
    assert trial.runs == []
    assert first == second


def test_a_gap_in_what_is_remembered_is_measured(fakes, tmp_path):
    path = tmp_path / "plans.json"
    fakes.plan(fakes.layer(5, 5, 5), memory=Memory(path))
    choices = fakes.plan(fakes.layer(5, 5, 5, fp16=1), memory=Memory(path))
    assert choices[FORWARD].kernel == FP16


def test_too_few_rounds_are_not_remembered(fakes, tmp_path):
    path = tmp_path / "plans.json"
    fakes.plan(fakes.layer(1, 1, 1), memory=Memory(path), budget=0.085)
    assert [list(groups) for groups in Memory(path).entries.values()] == [["forward"]]


def test_interrupted_rounds_are_not_remembered(fakes, tmp_path):
    path = tmp_path / "plans.json"
    fakes.plan(fakes.layer(1, 1, 1), memory=Memory(path), timer=fakes.timer(disturbed=1))
    assert Memory(path).entries == {}


def test_other_machines_and_layers_do_not_share(fakes, tmp_path, monkeypatch):
    path = tmp_path / "plans.json"
    fakes.plan(fakes.layer(1, 1, 1), memory=Memory(path))
    timer = fakes.timer()
    fakes.plan(fakes.layer(1, 1, 1, key="another"), memory=Memory(path), timer=timer)
    assert timer.calls > 0
    monkeypatch.setattr("acdc_kernels.plan.machine_key", lambda: "another")
    timer = fakes.timer()
    fakes.plan(fakes.layer(1, 1, 1), memory=Memory(path), timer=timer)
    assert timer.calls > 0


def test_favours(fakes):
    planner = fakes.planner()
    assert planner.favours(fakes.layer(1, 1, 1), dict.fromkeys(PRODUCTS, SPARSE))
    assert not planner.favours(fakes.layer(5, 1, 5), dict.fromkeys(PRODUCTS, SPARSE))
    assert planner.favours(fakes.layer(9, 1, 1), {FORWARD: DENSE, INPUT_GRADIENT: SPARSE, WEIGHT_GRADIENT: SPARSE})
