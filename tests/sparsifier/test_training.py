"""A whole run, update by update: what compressed and dense phases promise about weights, momentum and the twin."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from acdc_kernels import unpack_mask
from acdc_kernels.nn import is_wrapped, named_tensors
from acdc_kernels.optim import MaskedSGD
from acdc_kernels.policy import schedules
from acdc_kernels.sparsifier import Sparsifier

WEIGHTS = {"0.weight": 36, "4.weight": 1280, "6.weight": 100}


def bits_of(tensor):
    """Compares signs of zeros and NaN payloads too."""
    return tensor.detach().clone().view(torch.int32) if tensor.dtype == torch.float32 else tensor.detach().clone()


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(bits_of(one[name]), bits_of(other[name])) for name in one)


def is_plus_zero(tensor):
    return bool((tensor.detach().view(torch.int32) == 0).all())


def copied(model):
    return {name: tensor.clone() for name, tensor in named_tensors(model).items()}


def kept(sparsifier, parameters):
    return {name: int(unpack_mask(bits, parameters[name].shape).sum()) for name, bits in sparsifier.masks.items()}


SETTINGS = {
    "global": ({"scope": "global"}, {"0.weight": None, "4.weight": None, "6.weight": None}, 1416 - 1133),
    "layer": ({"scope": "layer"}, {"4.weight": 256}, 256),
    "exempt": ({"exempt": "6"}, {"0.weight": None, "4.weight": None}, 1316 - 1053),
    "half": ({"sparsity": 0.5, "dense_snapshot": "memory"}, dict.fromkeys(WEIGHTS), 708),
    "default 0.9": ({"sparsity": None}, dict.fromkeys(WEIGHTS), 1416 - 1274),
    "0": ({"sparsity": 0.0}, WEIGHTS, 1416),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_every_update_of_a_run(case, run):
    settings, expected, budget = SETTINGS[case]
    r = run(settings)
    sparsifier, parameters = r.sparsifier, dict(r.model.named_parameters())
    seen, end_of_dense, masks = [], None, {}
    while sparsifier.step_count < r.schedule.total_steps:
        phase = sparsifier.phase
        assert phase == r.schedule.at(sparsifier.step_count)
        seen.append(phase.kind[0])
        first = sparsifier.step_count == phase.first_step
        if phase.kind == "dense":
            assert not sparsifier.masks
            if first and phase.index > 0:
                assert all(is_plus_zero(buffer) for buffer in r.momentum().values())
            r.update()
            end_of_dense = copied(r.model)
        else:
            if first:
                masks = dict(sparsifier.masks)
                assert same(sparsifier.dense_twin().state_dict(), end_of_dense)
                unmasked = set(parameters) - set(masks)
                assert all(torch.equal(parameters[name], end_of_dense[name]) for name in unmasked)
            r.update()
            assert same(dict(sparsifier.masks), masks)
            assert masks.keys() == expected.keys()
            counts = kept(sparsifier, parameters)
            assert sum(counts.values()) == budget
            assert all(counts[name] == n for name, n in expected.items() if n is not None)
            for name, bits in masks.items():
                mask = unpack_mask(bits, parameters[name].shape)
                assert is_plus_zero(parameters[name][~mask])
                assert is_plus_zero(r.momentum()[name][~mask])
            assert sparsifier.achieved_sparsity() >= 1 - budget / sum(WEIGHTS[name] for name in masks)
        sparsifier.step()
    assert "".join(seen) == "dddcccdddcccddddddcccccc"
    assert sparsifier.phase.kind == "compressed"
    assert sum(kept(sparsifier, parameters).values()) == budget
    twin = sparsifier.dense_twin()
    assert same(named_tensors(twin), end_of_dense)
    assert not any(is_wrapped(layer) for layer in twin.modules())
    assert torch.count_nonzero(twin[4].weight) == 1280


def test_the_kept_weights_are_the_largest(run):
    r = run()
    r.train(2)
    r.update()
    before = torch.cat([r.model.get_parameter(name).detach().abs().flatten() for name in WEIGHTS])
    r.sparsifier.step()
    mask = torch.cat([unpack_mask(r.sparsifier.masks[name], [n]) for name, n in WEIGHTS.items()])
    assert before[mask].min() >= before[~mask].max()


def test_momentum_stays_if_asked(run):
    for reset in (True, False):
        r = run({"reset_momentum": reset})
        r.train(6)
        assert r.sparsifier.phase.kind == "dense"
        assert all(is_plus_zero(buffer) for buffer in r.momentum().values()) == reset


def test_weights_come_back_from_zero(run):
    r = run()
    r.train(6)
    assert r.sparsifier.achieved_sparsity() >= 0.8
    r.train(1)
    assert r.sparsifier.achieved_sparsity() < 0.1


def test_two_runs_of_a_seed_are_the_same_bits(run):
    recorded = []
    for _ in range(2):
        r, masks = run(), []
        r.train(before_step=lambda r=r, masks=masks: masks.append(dict(r.sparsifier.masks)))
        recorded.append((r, masks))
    (one, masks_of_one), (other, masks_of_other) = recorded
    assert all(same(a, b) for a, b in zip(masks_of_one, masks_of_other, strict=True))
    assert same(one.model.state_dict(), other.model.state_dict())
    assert same(one.sparsifier.dense_twin().state_dict(), other.sparsifier.dense_twin().state_dict())
    assert not same(one.model.state_dict(), run(seed=1).train().model.state_dict())


@pytest.mark.parametrize("schedule", [schedules.dense(5), schedules.acdc(5, 5, 1, 1, 0, 0)], ids=repr)
def test_dense_all_along_is_plain_training(schedule, run):
    r = run(schedule=schedule).train()
    plain = run(schedule=schedule)
    plain.sparsifier.remove()
    for t in range(5):
        plain.sparsifier._step = t  # picks the batch
        plain.update()
    assert same(r.model.state_dict(), plain.model.state_dict())
    assert same(r.sparsifier.dense_twin().state_dict(), r.model.state_dict())


def test_starting_compressed_prunes_at_once(run):
    r = run(schedule=schedules.acdc(4, 0, 2, 2, 0, 0))
    plain = run(schedule=schedules.dense(4))
    assert sum(kept(r.sparsifier, dict(r.model.named_parameters())).values()) == 283
    assert r.sparsifier.achieved_sparsity() == 1 - 283 / 1416
    assert same(r.sparsifier.dense_twin().state_dict(), plain.model.state_dict())


def test_steps_past_the_end_stay_in_the_last_phase(run):
    r = run().train()
    masks = dict(r.sparsifier.masks)
    r.train(5)
    assert r.sparsifier.step_count == 29
    assert r.sparsifier.phase == r.schedule.at(23)
    assert same(dict(r.sparsifier.masks), masks)


def test_a_nan_gradient_leaves_masked_weights_zero(run):
    r = run()
    r.train(4)
    for p in r.model.parameters():
        p.grad = torch.full_like(p, float("nan"))
    r.optimizer.step()
    for name, bits in r.sparsifier.masks.items():
        p = r.model.get_parameter(name)
        assert is_plus_zero(p[~unpack_mask(bits, p.shape)])


@pytest.mark.parametrize(
    ("fill", "kept_positions"),
    [
        ([0.0] * 16, [0, 1, 2, 3]),
        ([1.0, -1.0] * 8, [0, 1, 2, 3]),
        ([0.0] * 10 + [-0.0] * 5 + [2.0], [0, 1, 2, 15]),
        ([0.5] * 8 + [3.0] * 8, [8, 9, 10, 11]),
    ],
)
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_ties_and_zeros_keep_exactly_k(fill, kept_positions, scope):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(4, 4, bias=False), nn.Linear(2, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor(fill).view(4, 4))
    exempt = ["0", "2"] if scope == "global" else []
    optimizer = MaskedSGD(model.parameters())
    schedule = schedules.acdc(1, 0, 1, 1, 0, 1)
    sparsifier = Sparsifier(model, optimizer, schedule, sparsity=0.75, scope=scope, exempt=exempt)
    mask = unpack_mask(sparsifier.masks["1.weight"], [16])
    assert mask.nonzero().flatten().tolist() == kept_positions


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes(dtype):
    torch.manual_seed(0)
    model = nn.Linear(16, 8, dtype=dtype)
    optimizer = MaskedSGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier = Sparsifier(model, optimizer, schedules.acdc(4, 1, 1, 1, 1, 1))
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.ones(2, 16, dtype=dtype)).square().sum().backward()
        optimizer.step()
        sparsifier.step()
    assert int(unpack_mask(sparsifier.masks["weight"], [128]).sum()) == 128 - 115
    assert torch.count_nonzero(model.weight) <= 13


def test_a_channels_last_model(run):
    one, other = run(), run()
    other.model.to(memory_format=torch.channels_last)
    for r in (one, other):
        r.train(3)
    assert same(dict(one.sparsifier.masks), dict(other.sparsifier.masks))


def test_shared_weights_count_once():
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    model["b"].weight = model["a"].weight
    sparsifier = Sparsifier(model, MaskedSGD(model.parameters()), schedules.acdc(1, 0, 1, 1, 0, 1), sparsity=0.5)
    assert list(sparsifier.masks) == ["a.weight"]
    assert sparsifier.achieved_sparsity() == 0.5
    assert is_wrapped(model["a"])
    assert is_wrapped(model["b"])
    assert sparsifier.dense_twin()["a"].weight.count_nonzero() == 16


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_trains_alike(backend, run):
    torch._dynamo.reset()
    one, other = run(), run()
    other.model.compile(backend=backend, fullgraph=True)
    for r in (one, other):
        r.train(8)
    for name, p in one.model.named_parameters():
        torch.testing.assert_close(other.model.get_parameter(name), p)
    assert same(dict(one.sparsifier.masks), dict(other.sparsifier.masks))
