"""GradScaler and 16-bit parameters, with both optimizers."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from acdc_kernels import unpack_mask

HALF = [torch.bfloat16, torch.float16]


def scaled_run(task, model, opt, steps, clip=False, first=0):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)  # a power of two: exact
    for step in range(first, first + steps):
        task.backward(model, step, factor=scaler.get_scale())
        scaler.scale(torch.ones(()))  # as scale(loss) starts it
        if clip:
            scaler.unscale_(opt)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(opt)
        scaler.update()
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("clip", [False, True], ids=["step", "unscale_-clip-step"])
@pytest.mark.parametrize("lr", [float, torch.tensor], ids=["number", "tensor"])
def test_scaled_training_is_unscaled_training(clip, lr, task):
    ours, theirs = task.network(), task.network()
    a, b = (task.make(m.parameters(), lr=lr(task.lr)) for m in (ours, theirs))
    for m, opt in ((ours, a), (theirs, b)):
        opt.masks[m[2].weight] = task.half(m[2].weight)
    got = scaled_run(task, ours, a, 4, clip)
    for step in range(4):
        task.backward(theirs, step)
        if clip:
            nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        b.step()
    assert all(torch.equal(x, y) for x, y in zip(got, theirs.parameters(), strict=True))
    assert not hasattr(a, "grad_scale")
    assert not ours[2].weight[~unpack_mask(task.half(ours[2].weight), ours[2].weight.shape)].any()


def test_the_step_unscales_by_itself(task):
    """Gradients keep their scale: no pass over them comes before the step."""
    model = task.network()
    opt = task.make(model.parameters(), fused=True)
    task.backward(model, 0, factor=1024.0)
    before = [p.grad.clone() for p in model.parameters()]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))
    scaler.step(opt)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("steps", [0, 2], ids=["first-step", "later"])
@pytest.mark.parametrize("unscale", [False, True])
def test_a_step_with_an_infinite_gradient_is_skipped(steps, unscale, task):
    model = task.network()
    opt = task.make(model.parameters())
    task.train(model, opt, steps)
    before, state = [p.detach().clone() for p in model.parameters()], copy.deepcopy(opt.state_dict()["state"])
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))
    task.backward(model, 5, factor=math.inf)
    if unscale:
        scaler.unscale_(opt)
    scaler.step(opt)
    scaler.update()
    assert scaler.get_scale() == 512.0
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    after = opt.state_dict()["state"]
    assert after.keys() == state.keys()
    assert all(torch.equal(after[i][k], state[i][k]) for i in state for k in state[i])
    first = scaled_run(task, model, opt, 2)
    other = task.network()
    fresh = task.make(other.parameters())
    task.train(other, fresh, steps)
    assert all(torch.equal(a, b) for a, b in zip(first, task.train(other, fresh, 2), strict=True))


def test_an_optimizer_without_gradients_beside_one_that_has_some(task):
    used, unused = task.network(), task.network()
    opt, idle = task.make(used.parameters()), task.make(unused.parameters())
    before = [p.detach().clone() for p in used.parameters()]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))
    task.backward(used, 0, factor=1024.0)
    for o in (idle, opt):
        scaler.step(o)
    scaler.update()
    assert not idle.state
    assert not any(torch.equal(p, b) for p, b in zip(used.parameters(), before, strict=True))


@pytest.mark.parametrize("state_dtype", [None, torch.float32], ids=str)
def test_float16_parameters_with_gradients_too_small_unscaled(state_dtype, task):
    p = nn.Parameter(torch.ones(9).half())
    opt = task.make([p], state_dtype=state_dtype)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    scaler.scale(torch.ones(()))
    p.grad = torch.full((9,), 2.0**-10).half()  # 2^-26 unscaled: below float16's numbers
    scaler.step(opt)
    moment = opt.state[p][task.state[0]]
    assert bool(moment.any()) == (state_dtype is not None)


def test_enabled_autocast_trains(task):
    model = task.network()
    opt = task.make(model.parameters())
    scaler = torch.amp.GradScaler("cpu")
    losses = []
    for _ in range(10):
        x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        opt.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(x).square().mean()
        scaler.scale(loss).backward()
        scaler.unscale_(opt)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(opt)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def state_of(task, opt, p):
    return {name: opt.state[p][name] for name in task.state}


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_state_in_float32_is_that_of_float32_training_on_the_same_gradients(dtype, task):
    torch.manual_seed(0)
    low, full = nn.Parameter(torch.randn(33, 5).to(dtype)), nn.Parameter(torch.randn(33, 5))
    a, b = task.make([low], state_dtype=torch.float32), task.make([full])
    for _ in range(4):
        low.grad = torch.randn(33, 5).to(dtype)
        full.grad = low.grad.float()
        a.step()
        b.step()
    for name in task.state:
        assert a.state[low][name].dtype == torch.float32
        assert torch.equal(a.state[low][name], b.state[full][name])


def test_state_dtype_is_for_16_bit_parameters_alone(task):
    params = [nn.Parameter(torch.ones(3, dtype=d)) for d in (torch.bfloat16, torch.float32, torch.float64)]
    opt = task.make(params, state_dtype=torch.float32)
    for p in params:
        p.grad = torch.ones_like(p)
    opt.step()
    got = [opt.state[p][task.state[-1]].dtype for p in params]
    assert got == [torch.float32, torch.float32, torch.float64]


def half_run(task, dtype=torch.bfloat16, steps=3):
    model = task.network(dtype)
    opt = task.make(model.parameters(), state_dtype=torch.float32, **({"eps": 1e-3} if task.counted else {}))
    task.train(model, opt, steps)
    opt.masks[model[2].weight] = task.half(model[2].weight)
    return model, opt


def reload(task, model, opt):
    other = task.network(torch.bfloat16)
    other.load_state_dict(model.state_dict())
    fresh = task.make(other.parameters(), state_dtype=torch.float32)
    fresh.load_state_dict(opt.state_dict())
    return other, fresh


COPIES = {
    "deepcopy": lambda task, model, opt: copy.deepcopy((model, opt)),
    "pickle": lambda task, model, opt: pickle.loads(pickle.dumps((model, opt))),
    "state_dict": lambda task, model, opt: reload(task, *copy.deepcopy((model, opt))),
}


@pytest.mark.parametrize("how", COPIES)
def test_copies_keep_float32_state_to_the_bit_and_go_on(how, task):
    model, opt = half_run(task)
    state = state_of(task, opt, model[2].weight)
    assert not all(torch.equal(t, t.bfloat16().float()) for t in state.values())
    other, fresh = COPIES[how](task, model, opt)
    assert all(torch.equal(t, fresh.state[other[2].weight][k]) for k, t in state.items())
    late = [nn.Parameter(torch.ones(3).bfloat16())], [nn.Parameter(torch.ones(3).bfloat16())]
    for o, ps in zip((opt, fresh), late, strict=True):
        o.add_param_group({"params": ps})
        ps[0].grad = torch.ones(3).bfloat16()
    a, b = task.train(model, opt, 3, 10), task.train(other, fresh, 3, 10)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert fresh.state[late[1][0]][task.state[0]].dtype == torch.float32


def test_state_in_float32_goes_to_torchs_and_back(task):
    model, opt = half_run(task)
    torchs = task.torchs(task.network(torch.bfloat16).parameters(), lr=1.0)
    torchs.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert all(s[name].dtype == torch.bfloat16 for s in torchs.state.values() for name in task.state)
    opt.load_state_dict(copy.deepcopy(torchs.state_dict()))
    assert all(s[name].dtype == torch.float32 for s in opt.state.values() for name in task.state)
    task.train(model, opt, 1)
    plain = task.make(task.network(torch.bfloat16).parameters())  # no state_dtype: torch's choice
    plain.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert all(s[name].dtype == torch.bfloat16 for s in plain.state.values() for name in task.state)


def test_load_hooks_see_and_decide_what_is_loaded(task):
    model, opt = half_run(task)
    seen = []

    def double(optimizer, state_dict):
        state = {i: {k: v * 2 if k in task.state else v for k, v in s.items()} for i, s in state_dict["state"].items()}
        return {**state_dict, "state": state}

    want = {k: v * 2 for k, v in state_of(task, opt, model[2].weight).items()}
    opt.register_load_state_dict_pre_hook(double)
    opt.register_load_state_dict_post_hook(lambda o: seen.append(copy.deepcopy(state_of(task, o, model[2].weight))))
    opt.load_state_dict({k: v for k, v in copy.deepcopy(opt.state_dict()).items() if k != "masks"})
    assert all(torch.equal(seen[0][k], want[k]) for k in want)
    assert len(seen) == 1
    assert len(opt._optimizer_load_state_dict_pre_hooks) == 1
