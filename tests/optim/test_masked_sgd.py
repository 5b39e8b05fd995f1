"""MaskedSGD as a drop-in for torch.optim.SGD; what it shares with MaskedAdamW is in test_masked_optimizers.py."""

import math

import pytest
import torch
from torch import nn

from acdc_kernels import MaskedSGD, unpack_mask

OPTIONS = {
    "default": {},
    "plain": {"lr": 0.1},
    "decay": {"lr": 0.1, "weight_decay": 1e-2},
    "tensor decay": {"lr": 0.1, "weight_decay": torch.tensor(1e-2)},
    "momentum": {"lr": 0.1, "momentum": 0.9},
    "dampening": {"lr": 0.1, "momentum": 0.9, "dampening": 0.3},
    "nesterov": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-2},
    "maximize": {"lr": 0.01, "momentum": 0.9, "maximize": True},
    "foreach": {"lr": 0.1, "momentum": 0.9, "foreach": True},
    "fused": {"lr": 0.1, "momentum": 0.9, "fused": True},
    "tensor lr": {"lr": torch.tensor(0.1), "momentum": 0.9},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", OPTIONS)
def test_without_masks_it_is_torchs(name, dtype, sgd):
    ours, theirs = sgd.network(dtype), sgd.network(dtype)
    options = OPTIONS[name]
    torchs = {k: v for k, v in options.items() if k not in ("foreach", "fused")}  # torch's plain loop
    a, b = MaskedSGD(ours.parameters(), **options), torch.optim.SGD(theirs.parameters(), **torchs)
    assert sgd.same(sgd.train(ours, a, 6), sgd.train(theirs, b, 6))
    assert isinstance(a, torch.optim.SGD)
    assert set(a.param_groups[0]) == set(b.param_groups[0])
    if "foreach" not in name and "fused" not in name:
        left, right = a.state_dict(), b.state_dict()
        assert left["param_groups"] == right["param_groups"]
        assert left["state"].keys() == right["state"].keys()
        assert all(left["state"][i].keys() == right["state"][i].keys() for i in left["state"])


def test_param_groups_have_their_own_options(sgd):
    ours, theirs = sgd.network(), sgd.network()

    def groups(m):
        return [{"params": m[0].parameters(), "lr": 0.5}, {"params": m[2].parameters(), "momentum": 0.0}]

    a, b = (cls(groups(m), lr=0.1, momentum=0.9) for cls, m in ((MaskedSGD, ours), (torch.optim.SGD, theirs)))
    assert sgd.same(sgd.train(ours, a, 4), sgd.train(theirs, b, 4))


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


def test_a_mask_on_a_sparse_gradient_holds(sgd):
    table = nn.Embedding(6, 3, sparse=True)
    opt = MaskedSGD(table.parameters(), lr=0.1)
    opt.masks[table.weight] = sgd.half(table.weight)
    table(torch.tensor([1, 4])).sum().backward()
    opt.step()
    assert not table.weight[~unpack_mask(sgd.half(table.weight), (6, 3))].any()


@pytest.mark.parametrize(
    ("before", "options"),
    [
        (0, {"momentum": 0.9}),
        (2, {"momentum": 0.9}),
        (0, {"momentum": 0.9, "nesterov": True}),
        (2, {"momentum": 0.9, "nesterov": True}),
        (0, {"momentum": 0.9, "weight_decay": 0.1}),
    ],
    ids=str,
)
def test_a_masked_parameter_with_sparse_gradients_is_updated_as_with_dense_ones(before, options, sgd):
    results = []
    for sparse in (True, False):
        torch.manual_seed(0)
        table = nn.Embedding(6, 3, sparse=sparse)
        opt = MaskedSGD(table.parameters(), lr=0.1, **options)
        kept = unpack_mask(sgd.half(table.weight), (6, 3))
        for step in range(before + 4):
            if step == before:
                opt.masks[table.weight] = sgd.half(table.weight)
            if step == before + 3:
                del opt.masks[table.weight]
            opt.zero_grad()
            table(torch.tensor([1, 4, (step + 1) % 6])).square().sum().backward()
            opt.step()
            if before <= step < before + 3:
                zeros = [table.weight, opt.state[table.weight]["momentum_buffer"]]
                assert all(not t[~kept].any() and not t[~kept].signbit().any() for t in zeros)
        results.append([table.weight.detach(), opt.state[table.weight]["momentum_buffer"]])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_a_gradient_of_another_dtype_takes_torchs_update_and_the_mask_holds(sgd):
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 9).bfloat16()) for _ in range(2))
    opt, plain = (cls([p], lr=0.1, momentum=0.9) for cls, p in ((MaskedSGD, ours), (torch.optim.SGD, theirs)))
    for step in range(4):
        for p in (ours, theirs):
            p.grad_dtype = torch.float32
            p.grad = torch.linspace(0.001, 0.3, 9)
        if step == 2:
            assert torch.equal(ours, theirs)
            opt.masks[ours] = sgd.half(ours)
        opt.step()
        plain.step()
    kept = unpack_mask(sgd.half(ours), (9,))
    assert torch.equal(ours, theirs.where(kept, torch.zeros(())))
    assert not opt.state[ours]["momentum_buffer"][~kept].any()


@pytest.mark.parametrize("factor", [1.0, math.inf])
def test_sparse_gradients_are_unscaled_or_skipped_too(factor):
    tables = [nn.Embedding(6, 3, sparse=True) for _ in range(2)]
    tables[1].load_state_dict(tables[0].state_dict())
    before = tables[0].weight.detach().clone()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    opt, plain = MaskedSGD(tables[0].parameters(), lr=0.1), torch.optim.SGD(tables[1].parameters(), lr=0.1)
    scaler.scale(tables[0](torch.tensor([1, 4])).square().sum() * factor).backward()
    tables[1](torch.tensor([1, 4])).square().sum().backward()
    scaler.step(opt)
    plain.step()
    assert torch.equal(tables[0].weight, tables[1].weight if factor == 1 else before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["plain", "decay", "dampening", "nesterov", "maximize"])
def test_masked_weights_and_momentum_stay_plus_zero(name, dtype, sgd):
    model = sgd.network(dtype)
    opt = MaskedSGD(model.parameters(), **OPTIONS[name])
    sgd.train(model, opt, 2)
    weight = model[2].weight
    kept = unpack_mask(sgd.half(weight), weight.shape)
    before = weight.detach().clone()
    opt.masks[weight] = sgd.half(weight)
    zeros = [weight, *(s for s in opt.state[weight].values() if isinstance(s, torch.Tensor))]
    assert all(not t[~kept].any() and not t[~kept].signbit().any() for t in zeros)
    assert torch.equal(weight[kept], before[kept])
    for step in range(3):
        sgd.backward(model, step)
        weight.grad[~kept] = math.nan
        opt.step()
        assert all(not t[~kept].any() and not t[~kept].signbit().any() for t in zeros)
        assert weight.isfinite().all()
    del opt.masks[weight]
    sgd.train(model, opt, 1)
    assert weight[~kept].any()


def test_kept_weights_of_a_masked_step_are_the_dense_steps(sgd):
    ours, theirs = sgd.network(), sgd.network()
    a, b = (
        cls(m.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
        for cls, m in ((MaskedSGD, ours), (torch.optim.SGD, theirs))
    )
    kept = unpack_mask(sgd.half(ours[2].weight), ours[2].weight.shape)
    a.masks[ours[2].weight] = sgd.half(ours[2].weight)
    with torch.no_grad():
        theirs[2].weight.mul_(kept)
    sgd.backward(ours, 0)
    sgd.backward(theirs, 0)
    a.step()
    b.step()
    assert sgd.same([ours[2].weight[kept]], [theirs[2].weight[kept]])


def test_a_first_step_skipped_on_the_device_leaves_zero_momentum():
    p = nn.Parameter(torch.empty(3, device="meta"))
    opt = MaskedSGD([p], lr=0.1, momentum=0.9)
    p.grad, opt.found_inf = torch.empty_like(p), torch.empty((), device="meta")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        opt.step()
    assert {"aten::zeros_like"} <= {e.key for e in profile.key_averages()}
    assert opt.state[p]["momentum_buffer"].shape == (3,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"differentiable": True}, "MaskedSGD: differentiable must be False, got True"),
        ({"state_dtype": torch.float64}, "MaskedSGD: state_dtype must be None or torch.float32, got torch.float64"),
        ({"lr": -1.0}, "Invalid learning rate: -1.0"),
        ({"momentum": -1.0}, "Invalid momentum value: -1.0"),
        ({"nesterov": True}, "Nesterov momentum requires a momentum and zero dampening"),
    ],
)
def test_bad_options(options, message, sgd):
    with pytest.raises(ValueError, match=message):
        MaskedSGD(sgd.network().parameters(), **options)
