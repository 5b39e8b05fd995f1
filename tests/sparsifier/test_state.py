"""Resuming: from any update, bit for bit; and a state that doesn't fit changes nothing."""

from __future__ import annotations

import copy
import io

import pytest
import torch

from acdc_kernels import pack_mask
from acdc_kernels.nn import named_tensors
from acdc_kernels.optim import MaskedSGD
from acdc_kernels.policy import schedules
from acdc_kernels.sparsifier import Sparsifier


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


SHORT = schedules.acdc(total=12, warmup=2, compressed=2, dense=2, final_dense=2, final_compressed=4)  # D2 C2 D4 C4

ORDERS = [
    ("model", "optimizer", "sparsifier"),
    ("sparsifier", "optimizer", "model"),
    ("optimizer", "sparsifier", "model"),
]


@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
def test_resuming_at_every_update(order, run):
    saved = []
    r = run(schedule=SHORT)

    def save():
        parts = {name: getattr(r, name).state_dict() for name in order}
        saved.append((r.sparsifier.step_count, through_a_file(parts)))

    save()
    for _ in range(r.schedule.total_steps):
        r.train(1)
        save()
    end = {name: tensor.clone() for name, tensor in named_tensors(r.model).items()}
    twin = named_tensors(r.sparsifier.dense_twin())
    for step, parts in saved:
        other = run(schedule=SHORT, seed=5)
        other.seed = 0
        for name in order:
            getattr(other, name).load_state_dict(parts[name])
        assert other.sparsifier.step_count == step
        assert other.sparsifier.phase == r.schedule.at(step)
        assert same(dict(other.sparsifier.masks), parts["sparsifier"]["masks"])
        other.train()
        assert same(named_tensors(other.model), end)
        assert same(other.momentum(), r.momentum())
        assert same(named_tensors(other.sparsifier.dense_twin()), twin)
        assert same(dict(other.sparsifier.masks), dict(r.sparsifier.masks))


def test_going_back_within_one_run(run):
    r = run().train(5)
    parts = copy.deepcopy([r.model.state_dict(), r.optimizer.state_dict(), r.sparsifier.state_dict()])
    end = {name: tensor.clone() for name, tensor in named_tensors(r.train().model).items()}
    for target, part in zip((r.model, r.optimizer, r.sparsifier), parts, strict=True):
        target.load_state_dict(part)
    assert r.sparsifier.step_count == 5
    assert same(named_tensors(r.train().model), end)


def test_execution_settings_may_differ(run, tmp_path):
    state = run({"kernels": "auto", "dense_snapshot": "memory"}).train(4).sparsifier.state_dict()
    r = run({"kernels": "dense", "dense_snapshot": tmp_path / "twin.pt"})
    r.sparsifier.load_state_dict(state)
    assert (tmp_path / "twin.pt").is_file()
    assert same(named_tensors(r.sparsifier.dense_twin()), state["dense_twin"])


def test_a_dense_phase_needs_no_twin(run):
    state = run().train(7).sparsifier.state_dict()
    assert state["masks"] == state["dense_twin"] == {}


def edit(state, path, value):
    *parents, last = path
    for key in parents:
        state = state[key]
    if value is None:
        del state[last]
    else:
        state[last] = value


def all_kept(*shape):
    return pack_mask(torch.ones(shape, dtype=torch.bool))


EDITS = {
    # what is changed in a state of update 4 (compressed): to what (None: taken away), what the error says
    "version": (["version"], 1, "state must be of version 3, got 1"),
    "version of another kind": (["version"], torch.ones(2), "state must be of version 3, got tensor"),
    "no version": (["version"], None, "state must be of version 3, got None"),
    "no masks": (["masks"], None, "must hold the mappings .*; it lacks masks"),
    "masks of another kind": (["masks"], [1, 2], "it lacks masks"),
    "schedule": (["schedule", "warmup"], 2, "schedule's warmup is 1 here and 2 in the state"),
    "schedule's name": (["schedule", "name"], "dense", "schedule's name is 'acdc' here and 'dense' in the state"),
    "sparsity": (["settings", "sparsity"], 0.9, "settings's sparsity is 0.8 here and 0.9 in the state"),
    "scope": (["settings", "scope"], "layer", "settings's scope is 'global' here and 'layer' in the state"),
    "momentum": (["settings", "reset_momentum"], False, "settings's reset_momentum is True here and False"),
    "a setting of the future": (["settings", "colour"], "red", "settings has no colour here"),
    "a parameter less": (["parameters", "0.weight"], None, "parameters has no 0.weight in the state"),
    "a parameter more": (["parameters", "9.weight"], [3, 3], "parameters has no 9.weight here"),
    "a shape": (
        ["parameters", "6.weight"],
        "torch.float32 [6, 20]",
        r"6.weight is 'torch.float32 \[5, 20\]' here and 'torch.float32 \[6, 20\]'",
    ),
    "a dtype": (["parameters", "6.weight"], "torch.float64 [5, 20]", "6.weight is .*float32 .* and 'torch.float64"),
    "step below 0": (["step"], -1, "step must be an int of at least 0, got -1"),
    "no step": (["step"], None, "step must be an int of at least 0, got None"),
    "step in a dense phase": (["step"], 7, "kind='dense', index=2.*masks has no 0.weight here"),
    "a mask less": (["masks", "0.weight"], None, "masks has no 0.weight in the state"),
    "a mask's length": (["masks", "0.weight"], all_kept(44), r"masks\['0.weight'\] must have shape \[5\]"),
    "a mask's kind": (["masks", "0.weight"], torch.ones(36), r"masks\['0.weight'\] must be of dtype torch.uint8"),
    "a mask that keeps more": (["masks", "0.weight"], all_kept(36), "masks must keep 283 weights, got"),
    "a twin's tensor less": (["dense_twin", "1.bias"], None, "dense_twin has no 1.bias in the state"),
    "a twin's shape": (["dense_twin", "1.bias"], torch.ones(5), r"dense_twin's 1.bias is '.*\[4\]' here and '.*\[5\]'"),
    "a twin's dtype": (["dense_twin", "1.bias"], torch.ones(4).double(), "1.bias is .*float32 .* and 'torch.float64"),
    "a twin's kind": (["dense_twin", "1.bias"], [4], r"1.bias is '.*\[4\]' here and 'no tensor \(list\)' in"),
    "a setting that is a tensor": (
        ["settings", "sparsity"],
        torch.ones(2),
        "settings's sparsity is 0.8 here and tensor",
    ),
    "a step without end": (["step"], 10**30, "step must be an int of at least 0, got 1000"),
}


@pytest.mark.parametrize("case", EDITS)
def test_a_state_that_does_not_fit_changes_nothing(case, run):
    path, value, message = EDITS[case]
    state = copy.deepcopy(run().train(4).sparsifier.state_dict())
    edit(state, path, value)
    r = run(seed=1).train(4)
    before = copy.deepcopy([r.model.state_dict(), r.optimizer.state_dict(), r.sparsifier.state_dict()])
    with pytest.raises((ValueError, TypeError), match=message):
        r.sparsifier.load_state_dict(state)
    after = [r.model.state_dict(), r.optimizer.state_dict(), r.sparsifier.state_dict()]
    assert str(after) == str(before)
    assert same(before[0], after[0])
    for part in ("masks", "dense_twin"):
        assert same(before[2][part], after[2][part])


def test_every_difference_is_named(run):
    state = run({"scope": "layer", "sparsity": 0.5}, schedule=schedules.acdc(9, 2, 1, 1, 2, 2)).sparsifier.state_dict()
    with pytest.raises(ValueError, match="state must be of this run") as raised:
        run().sparsifier.load_state_dict(state)
    for what in ("schedule's total", "schedule's warmup", "steps_per_unit", "sparsity", "scope", "no 0.weight in the"):
        assert what in str(raised.value)


@pytest.mark.parametrize("state", [None, [], 3, {}])
def test_not_a_state(state, run):
    with pytest.raises(ValueError, match="state must be of version 3, got None"):
        run().sparsifier.load_state_dict(state)


class Cached(torch.nn.Module):
    """Makes a buffer at its first forward, as position tables do."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(6, 4)
        self.register_buffer("table", None, persistent=False)

    def forward(self, x):
        if self.table is None:
            self.table = torch.ones(4)
        if "late" not in self._buffers:
            self.register_buffer("late", torch.ones(4), persistent=False)
        return self.layer(x) + self.table


def test_a_buffer_that_appears_in_a_compressed_phase():
    schedule = schedules.acdc(total=4, warmup=0, compressed=2, dense=1, final_dense=0, final_compressed=1)

    def make():
        torch.manual_seed(0)
        model = Cached()
        return model, Sparsifier(model, MaskedSGD(model.parameters(), lr=0.1), schedule)

    model, sparsifier = make()
    before = model.layer.weight.count_nonzero()
    model(torch.ones(1, 6))
    twin = sparsifier.dense_twin()
    assert twin.layer.weight.count_nonzero() > before
    assert twin.table.tolist() == [1] * 4
    state = sparsifier.state_dict()
    sparsifier.load_state_dict(state)
    fresh, other = make()
    other.load_state_dict(state)
    assert torch.equal(other.dense_twin().layer.weight, twin.layer.weight)
    assert fresh.table is None
