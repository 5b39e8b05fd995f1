"""What MaskedSGD and MaskedAdamW share: masks, state and its copies, the step as torch's optimizers have it."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from acdc_kernels import topk_mask, unpack_mask
from acdc_kernels._native import available


def test_add_param_group_and_frozen_or_unused_parameters(task):
    ours, theirs = task.network(), task.network()
    for m in (ours, theirs):
        m[0].bias.requires_grad_(False)
    a, b = task.make(ours[0].parameters()), task.make_torchs(theirs[0].parameters())
    assert task.same(task.train(ours, a, 2), task.train(theirs, b, 2))
    a.add_param_group({"params": ours[2].parameters(), "lr": 0.02})
    b.add_param_group({"params": theirs[2].parameters(), "lr": 0.02})
    assert task.same(task.train(ours, a, 3), task.train(theirs, b, 3))
    a.masks[ours[2].weight] = task.half(ours[2].weight)
    task.train(ours, a, 1)
    assert not ours[2].weight[~unpack_mask(task.half(ours[2].weight), ours[2].weight.shape)].any()
    with pytest.raises(ValueError, match="differentiable must be False"):
        a.add_param_group({"params": nn.Parameter(torch.ones(3)), "differentiable": True})
    assert len(a.param_groups) == 2


def test_gradient_clipping(task):
    results = []
    for make in (task.make, task.make_torchs):
        model = task.network()
        opt = make(model.parameters())
        for step in range(4):
            task.backward(model, step, factor=100.0)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            opt.step()
        results.append([*model.parameters()])
    assert task.same(*results)


def test_closure_is_called_once_with_gradients_on_and_its_loss_returned(task):
    model = task.network()
    opt, calls = task.make(model.parameters()), []

    def closure():
        calls.append(torch.is_grad_enabled())
        task.backward(model, 0)
        return torch.tensor(4.25)

    assert opt.step(closure) == 4.25
    assert calls == [True]


@pytest.mark.parametrize("lr", [float, torch.tensor], ids=["number", "tensor"])
@pytest.mark.parametrize("make", [
    lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
    lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=10),
    lambda o: torch.optim.lr_scheduler.SequentialLR(
        o, [torch.optim.lr_scheduler.LinearLR(o, 0.1), torch.optim.lr_scheduler.StepLR(o, 2)], [3]),
], ids=["cosine", "one-cycle", "sequential"])  # fmt: skip
def test_learning_rate_schedulers(make, lr, task):
    results = []
    for of in (task.make, task.make_torchs):
        model = task.network()
        opt = of(model.parameters(), lr=lr(task.lr))
        scheduler = make(opt)
        for step in range(8):
            task.train(model, opt, 1, step)
            scheduler.step()
        results.append([*model.parameters()])
    assert task.same(*results)


def test_a_learning_rate_changed_in_place_is_the_next_steps(task):
    model, rate = task.network(), torch.tensor(0.0)
    opt = task.make(model.parameters(), lr=rate)
    before = [p.detach().clone() for p in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(task.train(model, opt, 1), before, strict=True))
    rate.fill_(task.lr)
    assert not any(torch.equal(a, b) for a, b in zip(task.train(model, opt, 1), before, strict=True))


def test_a_learning_rate_of_whole_numbers(task):
    ours, theirs = task.network(), task.network()
    a, b = (task.make(m.parameters(), lr=lr) for m, lr in ((ours, torch.tensor(1)), (theirs, 1.0)))
    results = task.train(ours, a, 2), task.train(theirs, b, 2)
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


def test_step_hooks_run(task):
    model, seen = task.network(), []
    opt = task.make(model.parameters())
    opt.register_step_pre_hook(lambda *_: seen.append("pre"))
    opt.register_step_post_hook(lambda *_: seen.append("post"))
    task.train(model, opt, 1)
    assert seen == ["pre", "post"]


def test_masks_is_a_mapping_of_this_optimizers_parameters(task):
    model = task.network()
    opt = task.make(model.parameters())
    w0, w2 = model[0].weight, model[2].weight
    assert len(opt.masks) == 0
    opt.masks.update({w0: task.half(w0), w2: task.half(w2)})
    assert list(opt.masks) == [w0, w2]
    assert w0 in opt.masks
    assert torch.equal(opt.masks[w0], task.half(w0))
    assert opt.masks.pop(w0) is not None
    assert w0 not in opt.masks
    with pytest.raises(KeyError):
        opt.masks[w0]
    assert "1 of 4 parameters masked" in repr(opt.masks)


# set(masks, model), error, message
BAD_MASKS = [
    (lambda o, m: o.__setitem__(nn.Parameter(torch.ones(3)), torch.zeros(1, dtype=torch.uint8)), KeyError, "must be a parameter of this optimizer"),
    (lambda o, m: o.__setitem__(m[2].weight, torch.zeros(3, dtype=torch.uint8)), ValueError, r"bits must have shape \[180\] \(1440 elements, one bit each\), got \[3\]"),
    (lambda o, m: o.__setitem__(m[2].weight, torch.zeros(180)), TypeError, "bits must be of dtype torch.uint8"),
    (lambda o, m: o.__setitem__(m[2].weight, [1, 0]), TypeError, "bits must be a uint8 tensor, got list"),
    (lambda o, m: o.__setitem__(m[2].bias, torch.full((2,), 255, dtype=torch.uint8)), ValueError, "unused bits"),
    (lambda o, m: o.update({m[0].weight: torch.zeros(5, dtype=torch.uint8), m[2].weight: torch.zeros(3, dtype=torch.uint8)}), ValueError, "bits must have shape"),
]  # fmt: skip


@pytest.mark.parametrize(("set_mask", "error", "message"), BAD_MASKS)
def test_a_bad_mask_changes_nothing(set_mask, error, message, task):
    model = task.network()
    opt = task.make(model.parameters())
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(error, match=message):
        set_mask(opt.masks, model)
    assert len(opt.masks) == 0
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def masked_run(task, steps=3, **more):
    model = task.network()
    opt = task.make(model.parameters(), **more)
    task.train(model, opt, steps)
    opt.masks[model[2].weight] = topk_mask([model[2].weight], 100)[0]
    task.train(model, opt, 1)
    return model, opt


def through_state_dict(task, model, opt):
    other = task.network()
    other.load_state_dict(model.state_dict())
    fresh = task.make(other.parameters(), lr=123.0)
    buffer = io.BytesIO()
    torch.save(opt.state_dict(), buffer)
    buffer.seek(0)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    return other, fresh


COPIES = {
    "deepcopy": lambda task, model, opt: copy.deepcopy((model, opt)),
    "pickle": lambda task, model, opt: pickle.loads(pickle.dumps((model, opt))),
    "state_dict": through_state_dict,
}


@pytest.mark.parametrize("how", COPIES)
def test_copies_go_on_as_the_original(how, task):
    model, opt = masked_run(task)
    other, fresh = COPIES[how](task, model, opt)
    assert next(iter(fresh.masks)) is other[2].weight
    assert torch.equal(fresh.masks[other[2].weight], opt.masks[model[2].weight])
    a, b = task.train(model, opt, 3, 10), task.train(other, fresh, 3, 10)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert int(torch.count_nonzero(other[2].weight)) == 100


def test_state_dict_goes_to_torchs_and_back(task):
    model, opt = masked_run(task)
    theirs = task.network()
    theirs.load_state_dict(model.state_dict())
    torchs = task.torchs(theirs.parameters(), lr=1.0)
    torchs.load_state_dict(copy.deepcopy(opt.state_dict()))  # torch's load shares tensors
    assert torchs.param_groups[0]["lr"] == task.lr
    for name in task.state:
        assert torch.equal(torchs.state[theirs[0].weight][name], opt.state[model[0].weight][name])

    opt.load_state_dict(copy.deepcopy(torchs.state_dict()))
    assert len(opt.masks) == 0  # a state without masks is a state of no masks
    assert task.same(task.train(model, opt, 3, 10), task.train(theirs, torchs, 3, 10))


def test_state_dict_has_masks_only_when_there_are_any(task):
    model = task.network()
    opt = task.make(model.parameters())
    task.train(model, opt, 1)
    assert opt.state_dict().keys() == {"state", "param_groups"}
    opt.masks[model[2].bias] = task.half(model[2].bias)
    assert opt.state_dict()["masks"].keys() == {3}


def test_a_bad_state_changes_nothing(task):
    _, opt = masked_run(task)
    state = opt.state_dict()
    fresh = task.make(task.network().parameters(), lr=5.0)
    for masks, message in (
        ({2: torch.zeros(1, dtype=torch.uint8)}, "bits must have shape"),
        ({9: torch.zeros(1, dtype=torch.uint8)}, "masks must name parameters 0 to 3, got 9"),
    ):
        with pytest.raises(ValueError, match=message):
            fresh.load_state_dict({**state, "masks": masks})
    for masks, message in (([1], "masks must be a dict of bits"), ({2: [1]}, r"masks\[2\] must be a uint8 tensor")):
        with pytest.raises(TypeError, match=message):
            fresh.load_state_dict({**state, "masks": masks})
    assert fresh.param_groups[0]["lr"] == 5.0
    assert not fresh.state


# change(state, name of a state), error, message
BAD_STATES = [
    (lambda s, n: s["state"][2].update({n: torch.ones(3)}), ValueError, r"{} of parameter 2 must be a tensor of shape \[10, 144\], got \[3\]"),
    (lambda s, n: s["state"][0].update({n: 1.0}), TypeError, r"{} of parameter 0 must be a tensor of shape \[4, 1, 3, 3\], got float"),
    (lambda s, n: s["param_groups"][0]["params"].pop(), ValueError, r"the groups must have \[4\] parameters, got \[3\]"),
    (lambda s, n: s["param_groups"].pop(), ValueError, r"the groups must have \[4\] parameters, got \[\]"),
    (lambda s, n: s["masks"].update({9: s["masks"][2]}), ValueError, "masks must name parameters 0 to 3, got 9"),
    (lambda s, n: s["param_groups"][0].update(differentiable=True), ValueError, "differentiable must be False"),
]  # fmt: skip


@pytest.mark.parametrize("by", ["check_state_dict", "load_state_dict"])
@pytest.mark.parametrize(("change", "error", "message"), BAD_STATES)
def test_a_bad_state_leaves_masks_state_and_options(change, error, message, by, task):
    model, opt = masked_run(task)
    before = copy.deepcopy(opt.state_dict())
    state = copy.deepcopy(before)
    state["param_groups"][0]["lr"] = 9.0
    opt.check_state_dict(state)
    change(state, task.state[-1])
    weights = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(error, match=message.format(task.state[-1])):
        getattr(opt, by)(state)
    after = opt.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert torch.equal(after["masks"][2], before["masks"][2])
    assert all(torch.equal(after["state"][i][k], t) for i, s in before["state"].items() for k, t in s.items())
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))


def test_a_state_that_a_hook_spoils_changes_nothing(task):
    _, opt = masked_run(task)
    name = task.state[-1]
    opt.register_load_state_dict_pre_hook(lambda o, s: {**s, "state": {0: {name: torch.ones(1)}}})
    before = copy.deepcopy(opt.state_dict()["state"])
    with pytest.raises(ValueError, match=f"{name} of parameter 0 must be"):
        opt.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert len(opt.masks) == 1
    after = opt.state_dict()["state"]
    assert all(torch.equal(after[i][k], t) for i, s in before.items() for k, t in s.items())


def test_masks_that_cannot_be_applied_leave_the_old_ones(task, monkeypatch):
    model, opt = masked_run(task)
    held = opt.masks[model[2].weight]

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr("acdc_kernels.optim.masks.apply_mask_", fail)
    with pytest.raises(MemoryError):
        opt.masks.restore({model[0].weight: task.half(model[0].weight)})
    assert dict(opt.masks) == {model[2].weight: held}


def test_reset_momentum_zeroes_all_state(task):
    model, opt = masked_run(task)
    held = [t for s in opt.state.values() for t in s.values()]
    opt.reset_momentum()
    assert len(held) == 4 * (len(task.state) + task.counted)
    assert not any(t.any() for t in held)
    task.train(model, opt, 1)
    assert all(t is u for t, u in zip(held, (t for s in opt.state.values() for t in s.values()), strict=True))
    task.make(task.network().parameters()).reset_momentum()  # nothing yet: nothing to do


@pytest.mark.skipif(not available(), reason="no compiled kernels: the reference is many calls")
def test_one_kernel_call_a_group(task):
    model = task.network()
    opt = task.make(model.parameters())
    task.train(model, opt, 1)
    task.backward(model, 1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        opt.step()
    calls = {e.key: e.count for e in profile.key_averages() if "::" in e.key}
    assert calls == {f"acdc_kernels::masked_{'adamw' if task.counted else 'sgd'}_": 1}


def test_a_step_moves_version_counters_so_that_autograd_notices(task):
    model = task.network()
    opt = task.make(model.parameters())
    task.train(model, opt, 1)
    loss = model(torch.randn(2, 1, 8, 8)).square().sum()
    written = [t for p in model.parameters() for t in (p, *opt.state[p].values())]
    before = [t._version for t in written]
    opt.step()
    assert all(t._version > v for t, v in zip(written, before, strict=True))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.skipif(not available(), reason="no compiled kernels: the reference allocates")
def test_a_step_allocates_nothing(task):
    model = task.network()
    opt = task.make(model.parameters())
    task.train(model, opt, 1)
    opt.masks[model[2].weight] = task.half(model[2].weight)
    task.backward(model, 1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        opt.step()
    assert sum(abs(e.self_cpu_memory_usage) for e in profile.key_averages()) == 0


def test_nothing_on_a_device_is_read_on_the_host(task):
    """A meta tensor has no value to read: whatever asks for one raises."""
    p = nn.Parameter(torch.empty(9, 5, device="meta"))
    opt = task.make([p], **({"capturable": True} if task.counted else {}))
    opt.param_groups[0]["lr"] = torch.empty((), device="meta")  # torch's constructor reads it
    opt.masks[p] = torch.empty(6, dtype=torch.uint8, device="meta")
    p.grad = torch.empty_like(p)
    opt.grad_scale, opt.found_inf = (torch.empty((), device="meta") for _ in range(2))
    for _ in range(2):
        opt.step()
    assert all(t.device.type == "meta" for t in opt.state[p].values())


def test_parameters_of_several_devices_and_dtypes_in_one_group(task):
    here, double, there = (
        nn.Parameter(torch.ones(9)),
        nn.Parameter(torch.ones(9).double()),
        nn.Parameter(torch.empty(9, device="meta")),
    )
    opt = task.make([here, there, double])
    for p in (here, there, double):
        p.grad = torch.ones_like(p)
    opt.step()
    torch.testing.assert_close(here.double(), double, rtol=1e-6, atol=0)
    assert here[0] < 1
    assert here.isfinite().all()
    assert opt.state[there][task.state[0]].device.type == "meta"
