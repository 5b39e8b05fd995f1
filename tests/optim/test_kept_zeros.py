"""A step may leave masked zeros alone, where its kernels can, exactly as long as nobody may have written to them."""

import copy

import pytest
import torch
from torch import nn

from acdc_kernels import unpack_mask
from acdc_kernels.ops._update import skips_kept_zeros
from acdc_kernels.optim import base, traces

SKIPS = skips_kept_zeros("cpu")


def weight(model):
    return model[2].weight


def bits(task, p, seed=0):
    """Bytes of them are 0."""
    return task.half(p, seed) * (torch.arange((p.numel() + 7) // 8) % 3 == 0).to(torch.uint8)


def garbage(p):
    with torch.no_grad():
        p.copy_(torch.randn_like(p))


def by_data(p):
    p.data = torch.randn_like(p)


def replace_state(opt, p, name):
    opt.state[p][name] = torch.full_like(p, 3.0)


def load_into_state(opt):
    state = copy.deepcopy(opt.state_dict())
    for values in state["state"].values():
        for t in values.values():
            if t.dim():
                t.fill_(2.0)
    opt.load_state_dict(state)


def load_a_state_without_masks(task, opt, p):
    state = copy.deepcopy(opt.state_dict())
    mask = state.pop("masks")
    opt.load_state_dict(state)
    garbage(p)
    opt.masks[p] = mask[2]
    garbage(p)


# name: what a user does between steps, of (task, model, opt, name of a state)
WRITES = {
    "the parameter": lambda t, m, o, n: garbage(weight(m)),
    "its detached self": lambda t, m, o, n: weight(m).detach().fill_(3.0),
    "a view of it": lambda t, m, o, n: weight(m).detach().view(-1)[3:].fill_(3.0),
    "other data": lambda t, m, o, n: by_data(weight(m)),
    "a state dict of the model": lambda t, m, o, n: m.load_state_dict({k: v + 1 for k, v in m.state_dict().items()}),
    "its state": lambda t, m, o, n: o.state[weight(m)][n].fill_(3.0),
    "another state": lambda t, m, o, n: replace_state(o, weight(m), n),
    "no state": lambda t, m, o, n: o.state.pop(weight(m)),
    "a state dict of the optimizer": lambda t, m, o, n: load_into_state(o),
    "one without masks": lambda t, m, o, n: load_a_state_without_masks(t, o, weight(m)),
    "zeros into all state": lambda t, m, o, n: o.reset_momentum(),
    "another mask": lambda t, m, o, n: o.masks.__setitem__(weight(m), bits(t, weight(m), 1)),
    "another mask, then the parameter": lambda t, m, o, n: (
        o.masks.__setitem__(weight(m), bits(t, weight(m), 1)),
        garbage(weight(m)),
    ),
    "a dense step": lambda t, m, o, n: (
        o.masks.__delitem__(weight(m)),
        t.train(m, o, 1, 50),
        o.masks.__setitem__(weight(m), bits(t, weight(m), 1)),
        garbage(weight(m)),
    ),
}


def check(task, model, opt):
    p = weight(model)
    masked = ~unpack_mask(opt.masks[p], p.shape)
    for t in (p, *(opt.state[p][name] for name in task.state)):
        assert not t[masked].any()
        assert not t[masked].signbit().any()
        assert t[~masked].any()


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("where", WRITES)
@pytest.mark.parametrize("which", [0, -1])
def test_whatever_was_written_between_steps_masked_weights_are_zero_after_the_next(which, where, steps, task):
    model = task.network()
    opt = task.make(model.parameters())
    task.train(model, opt, 1)
    opt.masks[weight(model)] = bits(task, weight(model))
    task.train(model, opt, steps, 1)
    WRITES[where](task, model, opt, task.state[which])
    for step in range(3):
        task.train(model, opt, 1, 60 + step)
        check(task, model, opt)


@pytest.fixture
def claims(monkeypatch):
    """What the kernels are told at the last step of a run: a bool a parameter, or nothing."""
    seen, real = [], base.launch
    monkeypatch.setattr(base, "launch", lambda *args: (seen.append(args[-1]), real(*args)))
    return lambda run: (run(), seen[-1])[1]


@pytest.mark.skipif(not SKIPS, reason="no kernel here skips anything")
def test_zeros_are_left_alone_from_the_first_step_on_while_nobody_writes(task, claims):
    model = task.network()
    opt = task.make(model.parameters())
    task.train(model, opt, 1)
    opt.masks[weight(model)] = bits(task, weight(model))

    def step():
        return claims(lambda: task.train(model, opt, 1))

    masked = [False, False, True, False]
    assert [step() for _ in range(3)] == [masked] * 3
    garbage(weight(model))
    assert not any(step())
    assert step() == masked
    opt.reset_momentum()
    assert not any(step())
    assert step() == masked
    with torch.no_grad():
        model[0].weight.add_(1.0)  # it has no mask
    assert step() == masked
    first = model[0].weight
    opt.masks[first] = bits(task, first)
    opt.masks[first] = bits(task, first)
    assert [step() for _ in range(2)] == [[True, False, True, False]] * 2
    opt.masks[weight(model)] = bits(task, weight(model), 1)  # the second of two that were written together
    assert [step() for _ in range(2)] == [[True, False, True, False]] * 2
    assert opt.masks.untouched(weight(model))
    opt.masks[first].fill_(0)
    assert step() == masked
    assert not first.any()
    assert step() == [True, False, True, False]
    del opt.masks[first]
    assert step() == masked


@pytest.mark.skipif(not SKIPS, reason="no kernel here skips anything")
def test_a_mask_from_before_there_was_state(task, claims):
    model = task.network()
    opt = task.make(model.parameters())
    opt.masks[weight(model)] = bits(task, weight(model))
    told = [claims(lambda: task.train(model, opt, 1)) for _ in range(2)]
    assert not any(told[0])
    assert told[1] == [False, False, True, False]
    check(task, model, opt)


class OnDevice(torch.Tensor):
    """A found_inf of which nobody here knows whether it makes the kernel skip the step, as one on a GPU."""

    is_cpu = False


@pytest.mark.skipif(not SKIPS, reason="no kernel here skips anything")
@pytest.mark.parametrize("inf", [0.0, 1.0])
def test_where_the_device_decides_about_a_step_masks_are_applied_before(task, claims, inf, monkeypatch):
    model = task.network()
    opt = task.make(model.parameters())
    first = model[0].weight
    opt.masks.update({p: bits(task, p) for p in (first, weight(model))})

    def step():
        opt.found_inf = torch.tensor(inf).as_subclass(OnDevice)
        try:
            return claims(lambda: task.train(model, opt, 1))
        finally:
            del opt.found_inf

    masked = [True, False, True, False]
    assert [step() for _ in range(2)] == [masked] * 2  # of masks from before there was state, too
    garbage(weight(model))
    assert step() == masked
    assert not weight(model)[~unpack_mask(opt.masks[weight(model)], weight(model).shape)].any()
    assert step() == masked
    garbage(weight(model))
    assert step() == masked
    for _ in range(2):  # somebody writes at every step
        garbage(weight(model))
        assert step() == [True, False, False, False]
    assert step() == [True, False, False, False]
    monkeypatch.setattr(traces, "MENDED_EVERY", 1)
    assert step() == masked


@pytest.mark.skipif(not SKIPS, reason="no kernel here skips anything")
def test_what_was_written_uncounted_is_mended_some_time(task, claims, monkeypatch):
    monkeypatch.setattr(traces, "MENDED_EVERY", 5)
    model = task.network()
    opt = task.make(model.parameters())
    task.train(model, opt, 1)
    opt.masks[weight(model)] = bits(task, weight(model))
    weight(model).data.fill_(3.0)
    told = [any(claims(lambda: task.train(model, opt, 1))) for _ in range(10)]
    assert told == [True, True, True, True, False] * 2
    check(task, model, opt)


@pytest.mark.skipif(not SKIPS, reason="no kernel here skips anything")
def test_state_that_was_made_in_inference_mode_is_never_left_alone(task, claims):
    model = task.network()
    opt = task.make(model.parameters())
    opt.masks[weight(model)] = bits(task, weight(model))
    task.train(model, opt, 0)
    with torch.inference_mode():
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        told = [claims(opt.step) for _ in range(2)]
    assert not any(map(any, told))
    check(task, model, opt)


def test_copies_know_nothing(task):
    model = task.network()
    opt = task.make(model.parameters())
    task.train(model, opt, 1)
    opt.masks[weight(model)] = bits(task, weight(model))
    task.train(model, opt, 2)
    for other, fresh in (copy.deepcopy((model, opt)), copy.deepcopy((model, opt))):
        weight(other).data.fill_(3.0)
        task.train(other, fresh, 1)
        check(task, other, fresh)


def test_tensors_that_are_no_parameters(task):
    p = torch.randn(40, requires_grad=True)
    opt = task.make([p])
    opt.masks[p] = torch.tensor([255, 0, 0, 255, 0], dtype=torch.uint8)
    for _ in range(3):
        p.grad = torch.ones(40)
        opt.step()
        with torch.no_grad():
            assert p[8:24].count_nonzero() == 0
            p.add_(1.0)


class Wrapped(torch.Tensor):
    """A tensor with another inside, as DTensor has: what is written to the one isn't counted by the other."""


def test_subclasses_are_never_left_alone(task, claims):
    p = nn.Parameter(torch.randn(40).as_subclass(Wrapped))
    assert type(p) is not nn.Parameter
    opt = task.make([p])
    opt.masks[p] = torch.tensor([255, 0, 0, 255, 0], dtype=torch.uint8)
    for _ in range(3):
        p.grad = torch.ones(40)
        assert not any(claims(opt.step))
