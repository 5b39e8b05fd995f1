"""MaskedSGD as a drop-in for torch.optim.SGD, and its masks."""

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn

from acdc_kernels import MaskedSGD, pack_mask, topk_mask, unpack_mask
from acdc_kernels._native import cpu_isa

OPTIONS = {
    "default": {},
    "plain": {"lr": 0.1},
    "decay": {"lr": 0.1, "weight_decay": 1e-2},
    "momentum": {"lr": 0.1, "momentum": 0.9},
    "dampening": {"lr": 0.1, "momentum": 0.9, "dampening": 0.3},
    "nesterov": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-2},
    "maximize": {"lr": 0.01, "momentum": 0.9, "maximize": True},
    "foreach": {"lr": 0.1, "momentum": 0.9, "foreach": True},
    "fused": {"lr": 0.1, "momentum": 0.9, "fused": True},
    "tensor lr": {"lr": torch.tensor(0.1), "momentum": 0.9},
}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 10)).to(dtype)


def backward(model, step):
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(step)).to(next(model.parameters()).dtype)
    model.zero_grad()
    model(x).square().mean().backward()


def train(model, optimizer, steps, first=0):
    for step in range(first, first + steps):
        backward(model, step)
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def half(p, seed=0):
    return pack_mask(torch.rand(p.shape, generator=torch.Generator().manual_seed(seed)) < 0.5)


def same(a, b):
    """To the bit; the generic ISA level has no fused multiply-add, torch's loop has."""
    if cpu_isa() == "generic":
        return all(torch.allclose(x, y, rtol=1e-5, atol=1e-7) for x, y in zip(a, b, strict=True))
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", OPTIONS)
def test_without_masks_it_is_torchs(name, dtype):
    ours, theirs = network(dtype), network(dtype)
    options = OPTIONS[name]
    torchs = {k: v for k, v in options.items() if k not in ("foreach", "fused")}  # torch's plain loop
    a, b = MaskedSGD(ours.parameters(), **options), torch.optim.SGD(theirs.parameters(), **torchs)
    assert same(train(ours, a, 6), train(theirs, b, 6))
    assert isinstance(a, torch.optim.SGD)
    assert set(a.param_groups[0]) == set(b.param_groups[0])
    if "foreach" not in name and "fused" not in name:
        left, right = a.state_dict(), b.state_dict()
        assert left["param_groups"] == right["param_groups"]
        assert left["state"].keys() == right["state"].keys()
        assert all(left["state"][i].keys() == right["state"][i].keys() for i in left["state"])


def test_param_groups_have_their_own_options():
    ours, theirs = network(), network()

    def groups(m):
        return [{"params": m[0].parameters(), "lr": 0.5}, {"params": m[2].parameters(), "momentum": 0.0}]

    a, b = (cls(groups(m), lr=0.1, momentum=0.9) for cls, m in ((MaskedSGD, ours), (torch.optim.SGD, theirs)))
    assert same(train(ours, a, 4), train(theirs, b, 4))


def test_add_param_group_and_frozen_or_unused_parameters():
    ours, theirs = network(), network()
    for m in (ours, theirs):
        m[0].bias.requires_grad_(False)
    a, b = (
        MaskedSGD(ours[0].parameters(), lr=0.1, momentum=0.9),
        torch.optim.SGD(theirs[0].parameters(), lr=0.1, momentum=0.9),
    )
    assert same(train(ours, a, 2), train(theirs, b, 2))
    a.add_param_group({"params": ours[2].parameters(), "lr": 0.2})
    b.add_param_group({"params": theirs[2].parameters(), "lr": 0.2})
    assert same(train(ours, a, 3), train(theirs, b, 3))


def test_closure_is_called_once_with_gradients_on_and_its_loss_returned():
    model = network()
    opt, calls = MaskedSGD(model.parameters(), lr=0.1), []

    def closure():
        calls.append(torch.is_grad_enabled())
        backward(model, 0)
        return torch.tensor(4.25)

    assert opt.step(closure) == 4.25
    assert calls == [True]


@pytest.mark.parametrize("make", [
    lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
    lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=10),
    lambda o: torch.optim.lr_scheduler.SequentialLR(
        o, [torch.optim.lr_scheduler.LinearLR(o, 0.1), torch.optim.lr_scheduler.StepLR(o, 2)], [3]),
], ids=["cosine", "one-cycle", "sequential"])  # fmt: skip
def test_learning_rate_schedulers(make):
    results = []
    for cls in (MaskedSGD, torch.optim.SGD):
        model = network()
        opt = cls(model.parameters(), lr=0.1, momentum=0.9)
        scheduler = make(opt)
        for step in range(8):
            train(model, opt, 1, step)
            scheduler.step()
        results.append([*model.parameters()])
    assert same(*results)


def test_step_hooks_run():
    model, seen = network(), []
    opt = MaskedSGD(model.parameters(), lr=0.1)
    opt.register_step_pre_hook(lambda *_: seen.append("pre"))
    opt.register_step_post_hook(lambda *_: seen.append("post"))
    train(model, opt, 1)
    assert seen == ["pre", "post"]


def test_sparse_gradients_and_complex_parameters_take_torchs_update():
    results = []
    for cls in (MaskedSGD, torch.optim.SGD):
        torch.manual_seed(0)
        table, weight = nn.Embedding(6, 3, sparse=True), nn.Parameter(torch.randn(4, dtype=torch.complex64))
        opt = cls([*table.parameters(), weight], lr=0.1)
        for _ in range(3):
            opt.zero_grad()
            (table(torch.tensor([1, 4])).square().sum() + weight.abs().square().sum()).backward()
            opt.step()
        results.append([table.weight.detach(), weight.detach()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_mask_on_a_sparse_gradient_holds():
    table = nn.Embedding(6, 3, sparse=True)
    opt = MaskedSGD(table.parameters(), lr=0.1)
    opt.masks[table.weight] = half(table.weight)
    table(torch.tensor([1, 4])).sum().backward()
    opt.step()
    assert not table.weight[~unpack_mask(half(table.weight), (6, 3))].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["plain", "decay", "dampening", "nesterov", "maximize"])
def test_masked_weights_and_momentum_stay_plus_zero(name, dtype):
    model = network(dtype)
    opt = MaskedSGD(model.parameters(), **OPTIONS[name])
    train(model, opt, 2)
    weight = model[2].weight
    kept = unpack_mask(half(weight), weight.shape)
    before = weight.detach().clone()
    opt.masks[weight] = half(weight)
    zeros = [weight, *(s for s in opt.state[weight].values() if isinstance(s, torch.Tensor))]
    assert all(not t[~kept].any() and not t[~kept].signbit().any() for t in zeros)
    assert torch.equal(weight[kept], before[kept])
    for step in range(3):
        backward(model, step)
        weight.grad[~kept] = math.nan
        opt.step()
        assert all(not t[~kept].any() and not t[~kept].signbit().any() for t in zeros)
        assert weight.isfinite().all()
    del opt.masks[weight]
    train(model, opt, 1)
    assert weight[~kept].any()


def test_kept_weights_of_a_masked_step_are_the_dense_steps():
    ours, theirs = network(), network()
    a, b = (
        cls(m.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
        for cls, m in ((MaskedSGD, ours), (torch.optim.SGD, theirs))
    )
    kept = unpack_mask(half(ours[2].weight), ours[2].weight.shape)
    a.masks[ours[2].weight] = half(ours[2].weight)
    with torch.no_grad():
        theirs[2].weight.mul_(kept)
    backward(ours, 0)
    backward(theirs, 0)
    a.step()
    b.step()
    assert same([ours[2].weight[kept]], [theirs[2].weight[kept]])


def test_masks_is_a_mapping_of_this_optimizers_parameters():
    model = network()
    opt = MaskedSGD(model.parameters(), lr=0.1)
    w0, w2 = model[0].weight, model[2].weight
    assert len(opt.masks) == 0
    opt.masks.update({w0: half(w0), w2: half(w2)})
    assert list(opt.masks) == [w0, w2]
    assert w0 in opt.masks
    assert torch.equal(opt.masks[w0], half(w0))
    assert opt.masks.pop(w0) is not None
    assert w0 not in opt.masks
    with pytest.raises(KeyError):
        opt.masks[w0]
    assert "1 of 4 parameters masked" in repr(opt.masks)


@pytest.mark.parametrize(
    ("set_mask", "error", "message"),
    [
        (lambda m, o: o.masks.__setitem__(nn.Parameter(torch.ones(3)), torch.zeros(1, dtype=torch.uint8)), KeyError, "must be a parameter of this optimizer"),
        (lambda m, o: o.masks.__setitem__(m[2].weight, torch.zeros(3, dtype=torch.uint8)), ValueError, r"bits must have shape \[180\] \(1440 elements, one bit each\), got \[3\]"),
        (lambda m, o: o.masks.__setitem__(m[2].weight, torch.zeros(180)), TypeError, "bits must be of dtype torch.uint8"),
        (lambda m, o: o.masks.__setitem__(m[2].weight, [1, 0]), TypeError, "bits must be a uint8 tensor, got list"),
        (lambda m, o: o.masks.__setitem__(m[2].bias, torch.full((2,), 255, dtype=torch.uint8)), ValueError, "unused bits"),
        (lambda m, o: o.masks.update({m[0].weight: half(m[0].weight), m[2].weight: torch.zeros(3, dtype=torch.uint8)}), ValueError, "bits must have shape"),
    ],
)  # fmt: skip
def test_a_bad_mask_changes_nothing(set_mask, error, message):
    model = network()
    opt = MaskedSGD(model.parameters(), lr=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(error, match=message):
        set_mask(model, opt)
    assert len(opt.masks) == 0
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def masked_run(steps=3):
    model = network()
    opt = MaskedSGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, opt, steps)
    opt.masks[model[2].weight] = topk_mask([model[2].weight], 100)[0]
    train(model, opt, 1)
    return model, opt


def through_state_dict(model, opt):
    other = network()
    other.load_state_dict(model.state_dict())
    fresh = MaskedSGD(other.parameters(), lr=123.0)
    buffer = io.BytesIO()
    torch.save(opt.state_dict(), buffer)
    buffer.seek(0)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    return other, fresh


COPIES = {
    "deepcopy": lambda model, opt: copy.deepcopy((model, opt)),
    "pickle": lambda model, opt: pickle.loads(pickle.dumps((model, opt))),
    "state_dict": through_state_dict,
}


@pytest.mark.parametrize("how", COPIES)
def test_copies_go_on_as_the_original(how):
    model, opt = masked_run()
    other, fresh = COPIES[how](model, opt)
    assert next(iter(fresh.masks)) is other[2].weight
    assert torch.equal(fresh.masks[other[2].weight], opt.masks[model[2].weight])
    a, b = train(model, opt, 3, 10), train(other, fresh, 3, 10)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert int(torch.count_nonzero(other[2].weight)) == 100


def test_state_dict_goes_to_torchs_sgd_and_back():
    model, opt = masked_run()
    theirs = network()
    theirs.load_state_dict(model.state_dict())
    torchs = torch.optim.SGD(theirs.parameters(), lr=1.0)
    torchs.load_state_dict(copy.deepcopy(opt.state_dict()))  # torch's load shares tensors
    assert torchs.param_groups[0]["lr"] == 0.1
    assert torch.equal(torchs.state[theirs[0].weight]["momentum_buffer"], opt.state[model[0].weight]["momentum_buffer"])

    opt.load_state_dict(copy.deepcopy(torchs.state_dict()))
    assert len(opt.masks) == 0  # a state without masks is a state of no masks
    assert same(train(model, opt, 3, 10), train(theirs, torchs, 3, 10))


def test_state_dict_has_masks_only_when_there_are_any():
    model = network()
    opt = MaskedSGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, opt, 1)
    assert opt.state_dict().keys() == {"state", "param_groups"}
    opt.masks[model[2].bias] = half(model[2].bias)
    assert opt.state_dict()["masks"].keys() == {3}


def test_a_bad_state_changes_nothing():
    _, opt = masked_run()
    state = opt.state_dict()
    state["masks"] = {2: torch.zeros(1, dtype=torch.uint8)}
    fresh = MaskedSGD(network().parameters(), lr=5.0)
    with pytest.raises(ValueError, match="bits must have shape"):
        fresh.load_state_dict(state)
    state["masks"] = {9: torch.zeros(1, dtype=torch.uint8)}
    with pytest.raises(ValueError, match="masks must name parameters 0 to 3, got 9"):
        fresh.load_state_dict(state)
    assert fresh.param_groups[0]["lr"] == 5.0
    assert not fresh.state


def test_reset_momentum_zeroes_every_buffer():
    _, opt = masked_run()
    opt.reset_momentum()
    buffers = [s["momentum_buffer"] for s in opt.state.values()]
    assert len(buffers) == 4
    assert not any(b.any() for b in buffers)


def test_grad_scaler_unscales_and_skips():
    model = network()
    opt = MaskedSGD(model.parameters(), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    theirs = network()
    torchs = torch.optim.SGD(theirs.parameters(), lr=0.1)
    x = torch.randn(4, 1, 8, 8)
    scaler.scale(model(x).square().mean()).backward()
    theirs(x).square().mean().backward()
    scaler.step(opt)
    scaler.update()
    torchs.step()
    assert all(
        torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(model.parameters(), theirs.parameters(), strict=True)
    )
    before = [p.detach().clone() for p in model.parameters()]
    opt.zero_grad()
    scaler.scale(model(x).square().mean() * math.inf).backward()
    scaler.step(opt)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_one_kernel_call_a_group():
    model = network()
    opt = MaskedSGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, opt, 1)
    backward(model, 1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        opt.step()
    calls = {e.key: e.count for e in profile.key_averages() if "::" in e.key}
    assert calls == {"acdc_kernels::masked_sgd_": 1}


def test_a_step_moves_version_counters_so_that_autograd_notices():
    model = network()
    opt = MaskedSGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, opt, 1)
    loss = model(torch.randn(2, 1, 8, 8)).square().sum()
    before = [(p._version, opt.state[p]["momentum_buffer"]._version) for p in model.parameters()]
    opt.step()
    after = [(p._version, opt.state[p]["momentum_buffer"]._version) for p in model.parameters()]
    assert all(a > b and c > d for (a, c), (b, d) in zip(after, before, strict=True))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_step_allocates_nothing():
    model = network()
    opt = MaskedSGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, opt, 1)
    opt.masks[model[2].weight] = half(model[2].weight)
    backward(model, 1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        opt.step()
    assert sum(abs(e.self_cpu_memory_usage) for e in profile.key_averages()) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"differentiable": True}, "MaskedSGD: differentiable must be False, got True"),
        ({"lr": -1.0}, "Invalid learning rate: -1.0"),
        ({"momentum": -1.0}, "Invalid momentum value: -1.0"),
        ({"nesterov": True}, "Nesterov momentum requires a momentum and zero dampening"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        MaskedSGD(network().parameters(), **options)
