"""Schedules: the reference's six runs as literal tables, every edge of merging, and a naive expansion to agree with."""

from __future__ import annotations

import copy
import doctest
import itertools
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acdc_kernels.policy import schedules
from acdc_kernels.policy.schedules import Phase

C, D = "compressed", "dense"


def table(text):
    """``"D10 C5"`` -> [("dense", 10), ("compressed", 5)]: kinds and lengths in order."""
    return [({"C": C, "D": D}[piece[0]], int(piece[1:])) for piece in text.split()]


# run: total, warmup, compressed, dense, final_dense, final_compressed; its phases, in epochs
REFERENCE = {
    "ResNet50 and MobileNetV1, 100 epochs": (
        (100, 10, 5, 5, 10, 15),
        "D10 C5 D5 C5 D5 C5 D5 C5 D5 C5 D5 C5 D5 C5 D10 C15",
    ),
    "ResNet50, 150 epochs": (
        (150, 10, 5, 5, 10, 15),
        "D10 C5 D5 C5 D5 C5 D5 C5 D5 C5 D5 C5 D5 C5 D5 C5 D5 C5 D5 C5 D5 C5 D5 C5 D10 C15",
    ),
    "ResNet50, 200 epochs": (
        (200, 10, 5, 5, 10, 15),
        "D10 C5 D5 C5 D5 C5 D5 C5 D5 C5 D5 C5 D5 C5 D5 C5 D5 C5 D5 C5 D5 C5 D5 "
        "C5 D5 C5 D5 C5 D5 C5 D5 C5 D5 C5 D10 C15",
    ),
    "WideResNet-28-10 on CIFAR-100, 200 epochs": (
        (200, 10, 20, 20, 20, 30),
        "D10 C20 D20 C20 D20 C20 D20 C20 D20 C30",
    ),
    "WideResNet-28-10 on CIFAR-100, dense 13, 225 epochs": (
        (225, 10, 20, 13, 13, 50),
        "D10 C20 D13 C20 D13 C20 D13 C20 D13 C20 D13 C50",
    ),
    "ResNet20 on CIFAR-10, 200 epochs": (
        (200, 10, 20, 20, 20, 30),
        "D10 C20 D20 C20 D20 C20 D20 C20 D20 C30",
    ),
}

# the epochs at which FACTS says that a compressed phase begins
COMPRESSED_FROM = {
    "ResNet50 and MobileNetV1, 100 epochs": [10, 20, 30, 40, 50, 60, 70, 85],
    "ResNet50, 150 epochs": [10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120, 135],
    "ResNet50, 200 epochs": [10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120, 130, 140, 150, 160, 170, 185],
    "WideResNet-28-10 on CIFAR-100, 200 epochs": [10, 50, 90, 130, 170],
    "WideResNet-28-10 on CIFAR-100, dense 13, 225 epochs": [10, 43, 76, 109, 142, 175],
    "ResNet20 on CIFAR-10, 200 epochs": [10, 50, 90, 130, 170],
}


@pytest.mark.parametrize("steps_per_epoch", [1, 7])
@pytest.mark.parametrize("run", REFERENCE)
def test_reference_schedule_epoch_by_epoch(run, steps_per_epoch):
    arguments, phases = REFERENCE[run]
    schedule = schedules.acdc(*arguments, steps_per_unit=steps_per_epoch)
    step = 0
    for index, (kind, epochs) in enumerate(table(phases)):
        phase = Phase(kind, index, step, step + epochs * steps_per_epoch - 1)
        for _ in range(epochs * steps_per_epoch):
            assert schedule.at(step) == phase
            step += 1
    assert step == schedule.total_steps == arguments[0] * steps_per_epoch
    starts = [phase.first_step for phase in schedule.phases() if phase.kind == C]
    assert starts == [epoch * steps_per_epoch for epoch in COMPRESSED_FROM[run]]


EDGES = {
    # total, warmup, compressed, dense, final_dense, final_compressed; the phases
    "cycle ends dense, merges with final dense": ((20, 2, 3, 3, 4, 8), "D2 C3 D7 C8"),
    "cycle is cut off inside a dense piece": ((19, 2, 3, 3, 4, 8), "D2 C3 D6 C8"),
    "cycle is cut off inside a compressed piece": ((21, 2, 3, 3, 4, 8), "D2 C3 D3 C1 D4 C8"),
    "no cycle, warm-up merges with final dense": ((14, 2, 3, 3, 4, 8), "D6 C8"),
    "no cycle, no final dense": ((10, 2, 3, 3, 0, 8), "D2 C8"),
    "compressed end merges with final compressed": ((21, 2, 3, 3, 0, 10), "D2 C3 D3 C13"),
    "one piece merges with final compressed": ((12, 2, 3, 3, 0, 8), "D2 C10"),
    "dense end, then final compressed": ((16, 2, 3, 3, 0, 8), "D2 C3 D3 C8"),
    "no warm-up starts compressed": ((12, 0, 3, 3, 2, 4), "C3 D5 C4"),
    "only compressed": ((5, 0, 9, 9, 0, 0), "C5"),
    "only warm-up": ((5, 5, 1, 1, 0, 0), "D5"),
    "only final dense": ((5, 0, 1, 1, 5, 0), "D5"),
    "ends dense": ((12, 2, 3, 3, 4, 0), "D2 C3 D7"),
    "phases of one step": ((6, 1, 1, 1, 1, 1), "D1 C1 D1 C1 D1 C1"),
    "cycle longer than its room": ((10, 1, 100, 100, 1, 1), "D1 C7 D1 C1"),
}


@pytest.mark.parametrize("edge", EDGES)
def test_merging_and_truncation(edge):
    arguments, phases = EDGES[edge]
    assert [(p.kind, p.steps) for p in schedules.acdc(*arguments).phases()] == table(phases)


def naive(total, warmup, compressed, dense, final_dense, final_compressed, unit):
    """The definition, one kind a step, then grouped."""
    room = total - warmup - final_dense - final_compressed
    cycle = [C if i % (compressed + dense) < compressed else D for i in range(room)]
    kinds = [D] * warmup + cycle + [D] * final_dense + [C] * final_compressed
    phases, first = [], 0
    for index, (kind, group) in enumerate(itertools.groupby(kinds)):
        last = first + len(list(group)) * unit - 1
        phases.append(Phase(kind, index, first, last))
        first = last + 1
    return phases


lengths = st.tuples(*[st.integers(0, 12)] * 4, *[st.integers(1, 9)] * 2, st.integers(1, 3))


@given(lengths)
def test_agrees_with_naive_expansion(drawn):
    warmup, room, final_dense, final_compressed, compressed, dense, unit = drawn
    total = warmup + room + final_dense + final_compressed
    if total == 0:
        return
    schedule = schedules.acdc(total, warmup, compressed, dense, final_dense, final_compressed, unit)
    expected = naive(total, warmup, compressed, dense, final_dense, final_compressed, unit)
    assert list(schedule.phases()) == expected
    assert [schedule.at(step) for step in range(total * unit)] == [p for p in expected for _ in range(p.steps)]
    assert schedule.at(total * unit) == schedule.at(10**30) == expected[-1]


def test_trillions_of_steps_are_not_gone_through():
    """Whoever did would not come to an end."""
    schedule = schedules.acdc(10**12, 10, 3, 2, 100, 1000, steps_per_unit=10**6)
    for step in range(0, schedule.total_steps, schedule.total_steps // 1000):
        phase = schedule.at(step)
        assert phase.first_step <= step <= phase.last_step
        assert phase.kind == (D if step < 10**7 or (step // 10**6 - 10) % 5 >= 3 else C)
    last = schedule.at(schedule.total_steps - 1)
    assert (last.kind, last.first_step, last.last_step) == (C, (10**12 - 1000) * 10**6, 10**18 - 1)


def test_dense_is_one_phase():
    schedule = schedules.dense(3, steps_per_unit=4)
    assert schedule.total_steps == 12
    assert list(schedule.phases()) == [Phase(D, 0, 0, 11)]
    assert schedule.at(0) == schedule.at(11) == schedule.at(12) == Phase(D, 0, 0, 11)


SCHEDULES = [schedules.acdc(100, 10, 5, 5, 10, 15, steps_per_unit=391), schedules.dense(7)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_survives_dict_json_pickle_and_copy(schedule):
    for other in (
        schedules.from_dict(schedule.to_dict()),
        schedules.from_dict(json.loads(json.dumps(schedule.to_dict()))),
        pickle.loads(pickle.dumps(schedule)),
        copy.deepcopy(schedule),
    ):
        assert other == schedule
        assert hash(other) == hash(schedule)
        assert list(other.phases()) == list(schedule.phases())


def test_the_examples_of_the_docstrings_hold():
    assert doctest.testmod(schedules) == (0, 2)


def test_prints_as_the_call_that_made_it():
    assert repr(schedules.dense(7)) == "dense(total=7, steps_per_unit=1)"
    for schedule in SCHEDULES:
        assert eval(repr(schedule), vars(schedules)) == schedule


def test_compares_by_call():
    assert schedules.acdc(100, 10, 5, 5, 10, 15) == schedules.acdc(100, 10, 5, 5, 10, 15)
    assert schedules.acdc(100, 10, 5, 5, 10, 15) != schedules.acdc(100, 10, 5, 5, 10, 15, steps_per_unit=2)
    assert schedules.dense(10) != schedules.acdc(10, 10, 1, 1, 0, 0)


def test_is_frozen():
    with pytest.raises(AttributeError):
        schedules.dense(3).total_steps = 4


GOOD = {"total": 100, "warmup": 10, "compressed": 5, "dense": 5, "final_dense": 10, "final_compressed": 15}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"total": 34}, ValueError, r"must be at most total, got 10 \+ 10 \+ 15 > 34"),
        ({"total": 0}, ValueError, "acdc: total must be at least 1, got 0"),
        ({"warmup": -1}, ValueError, "acdc: warmup must be at least 0, got -1"),
        ({"final_dense": -1}, ValueError, "final_dense must be at least 0, got -1"),
        ({"final_compressed": -2}, ValueError, "final_compressed must be at least 0, got -2"),
        ({"compressed": 0}, ValueError, "compressed must be at least 1, got 0"),
        ({"dense": 0}, ValueError, "dense must be at least 1, got 0"),
        ({"steps_per_unit": 0}, ValueError, "steps_per_unit must be at least 1, got 0"),
        ({"warmup": 1.5}, TypeError, "acdc: warmup must be an int, got 1.5"),
        ({"total": "100"}, TypeError, "acdc: total must be an int, got '100'"),
    ],
)
def test_acdc_rejects(change, error, message):
    with pytest.raises(error, match=message):
        schedules.acdc(**{**GOOD, **change})


def test_exact_fit_is_fine():
    assert schedules.acdc(**{**GOOD, "total": 35}).total_steps == 35


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: schedules.dense(0), ValueError, "dense: total must be at least 1, got 0"),
        (lambda: schedules.dense(1, 0), ValueError, "dense: steps_per_unit must be at least 1, got 0"),
        (lambda: schedules.dense(5).at(-1), ValueError, "Schedule.at: step must be at least 0, got -1"),
        (lambda: schedules.dense(5).at(1.0), TypeError, "integer"),
        (lambda: schedules.from_dict({"name": "x"}), ValueError, "name must be one of 'acdc', 'dense', got 'x'"),
        (lambda: schedules.from_dict({"total": 3}), ValueError, "name must be one of 'acdc', 'dense', got None"),
        (lambda: schedules.from_dict({"name": "dense"}), ValueError, "don't fit 'dense': missing .*'total'"),
        (lambda: schedules.from_dict({"name": "dense", "total": 3, "x": 1}), ValueError, "unexpected .*'x'"),
    ],
)
def test_rejects(call, error, message):
    with pytest.raises(error, match=message):
        call()
