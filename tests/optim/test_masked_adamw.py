"""MaskedAdamW as a drop-in for torch.optim.AdamW; what it shares with MaskedSGD is in test_masked_optimizers.py."""

import inspect
import math

import pytest
import torch
from torch import nn

from acdc_kernels import MaskedAdamW, pack_mask, unpack_mask
from acdc_kernels._native import cpu_isa

OPTIONS = {
    "default": {},
    "decay": {"lr": 0.01, "weight_decay": 0.5},
    "no decay": {"lr": 0.01, "weight_decay": 0.0},
    "amsgrad": {"lr": 0.01, "amsgrad": True},
    "maximize": {"lr": 0.01, "maximize": True},
    "betas": {"lr": 0.01, "betas": (0.3, 0.4), "eps": 1e-3},
    "tensor betas": {"lr": 0.01, "betas": (torch.tensor(0.75), torch.tensor([0.875]))},
    "tensor lr": {"lr": torch.tensor(0.01, dtype=torch.float64)},
    "float32 tensor lr": {"lr": torch.tensor(0.01), "weight_decay": 0.5},
    "foreach": {"lr": 0.01, "foreach": True},
    "fused": {"lr": 0.01, "fused": True},
    "capturable": {"lr": 0.01, "capturable": True},
}


def test_the_signature_is_torchs_and_a_state_dtype():
    ours, theirs = (dict(inspect.signature(cls.__init__).parameters) for cls in (MaskedAdamW, torch.optim.AdamW))
    assert ours.pop("state_dtype").default is None
    assert [(p.name, p.default, p.kind) for p in ours.values()] == [
        (p.name, p.default, p.kind) for p in theirs.values()
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", OPTIONS)
def test_without_masks_it_is_torchs(name, dtype, adamw):
    ours, theirs = adamw.network(dtype), adamw.network(dtype)
    options = OPTIONS[name]
    # torch's plain loop takes no capturable on a CPU
    torchs = {k: v for k, v in options.items() if k not in ("foreach", "fused", "capturable")}
    a, b = MaskedAdamW(ours.parameters(), **options), torch.optim.AdamW(theirs.parameters(), **torchs)
    assert adamw.same(adamw.train(ours, a, 6), adamw.train(theirs, b, 6))
    assert isinstance(a, torch.optim.AdamW)
    assert set(a.param_groups[0]) == set(b.param_groups[0])
    if torchs == options:
        left, right = a.state_dict(), b.state_dict()
        assert left["param_groups"] == right["param_groups"]
        assert left["state"].keys() == right["state"].keys()
        for i in left["state"]:
            assert list(left["state"][i]) == list(right["state"][i])
            assert left["state"][i]["step"] == right["state"][i]["step"] == 6
            assert left["state"][i]["step"].shape == ()


@pytest.mark.skipif(cpu_isa() not in ("avx2", "avx512"), reason="the generic level has no fused multiply-add")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["default", "decay", "amsgrad", "maximize", "betas", "tensor lr", "float32 tensor lr"])
def test_without_masks_and_in_whole_vectors_it_has_the_bits_of_torchs_fused_loop(name, dtype):
    results = []
    for cls, more in ((MaskedAdamW, {}), (torch.optim.AdamW, {"fused": True})):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16)).to(dtype)
        opt = cls(model.parameters(), **OPTIONS[name], **more)
        for step in range(6):
            opt.zero_grad()
            x = torch.randn(8, 16, generator=torch.Generator().manual_seed(step)).to(dtype)
            (model(x) - x).square().mean().backward()
            opt.step()
        results.append([p.detach() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_param_groups_have_their_own_options(adamw):
    ours, theirs = adamw.network(), adamw.network()

    def groups(m):
        return [
            {"params": m[0].parameters(), "lr": 0.05, "amsgrad": True},
            {"params": m[2].parameters(), "betas": (0.5, 0.6), "weight_decay": 0.0, "maximize": True},
        ]

    a, b = (cls(groups(m), lr=0.01) for cls, m in ((MaskedAdamW, ours), (torch.optim.AdamW, theirs)))
    assert adamw.same(adamw.train(ours, a, 4), adamw.train(theirs, b, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["default", "amsgrad", "maximize", "betas"])
def test_masked_weights_and_state_stay_plus_zero(name, dtype, adamw):
    model = adamw.network(dtype)
    opt = MaskedAdamW(model.parameters(), **{"eps": 1e-3, **OPTIONS[name]})  # 1e-8 is zero in float16
    adamw.train(model, opt, 2)
    weight = model[2].weight
    kept = unpack_mask(adamw.half(weight), weight.shape)
    before = weight.detach().clone()
    opt.masks[weight] = adamw.half(weight)
    zeros = [weight, *(s for s in opt.state[weight].values() if s.shape == weight.shape)]
    assert len(zeros) == (4 if name == "amsgrad" else 3)
    assert all(not t[~kept].any() and not t[~kept].signbit().any() for t in zeros)
    assert torch.equal(weight[kept], before[kept])
    assert opt.state[weight]["step"] == 2
    for step in range(3):
        adamw.backward(model, step)
        weight.grad[~kept] = math.nan
        opt.step()
        assert all(not t[~kept].any() and not t[~kept].signbit().any() for t in zeros)
        assert weight.isfinite().all()
    del opt.masks[weight]
    adamw.train(model, opt, 1)
    assert weight[~kept].any()
    assert opt.state[weight]["step"] == 6


def test_the_step_of_a_parameter_without_dimensions_is_not_masked():
    p = nn.Parameter(torch.tensor(2.0))
    opt = MaskedAdamW([p], lr=0.1)
    for _ in range(3):
        p.grad = torch.tensor(1.0)
        opt.step()
    opt.masks[p] = pack_mask(torch.tensor(False))
    assert opt.state[p]["step"] == 3
    opt.step()
    assert {name: value.item() for name, value in opt.state[p].items()} == {"step": 4, "exp_avg": 0, "exp_avg_sq": 0}
    assert p.item() == 0


def test_complex_parameters_take_torchs_update(adamw):
    results = []
    for cls, more in ((MaskedAdamW, {"capturable": True, "state_dtype": torch.float32}), (torch.optim.AdamW, {})):
        torch.manual_seed(0)
        weight, bias = nn.Parameter(torch.randn(4, dtype=torch.complex64)), nn.Parameter(torch.randn(3))
        opt = cls([weight, bias], lr=0.1, amsgrad=True, **more)
        for _ in range(3):
            opt.zero_grad()
            (weight.abs().square().sum() + bias.square().sum()).backward()
            opt.step()
        results.append([weight.detach(), opt.state[weight]["exp_avg"], bias.detach()])
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert adamw.same(results[0][2:], results[1][2:])


def test_a_sparse_gradient_is_an_error_before_anything_changes():
    table, dense = nn.Embedding(6, 3, sparse=True), nn.Parameter(torch.ones(3))
    opt = MaskedAdamW([{"params": [dense]}, {"params": table.parameters()}], lr=0.1)
    (table(torch.tensor([1, 4])).sum() + dense.sum()).backward()
    with pytest.raises(RuntimeError, match="does not support sparse gradients, please consider SparseAdam instead"):
        opt.step()
    assert dense.tolist() == [1, 1, 1]
    assert not opt.state


def test_a_gradient_of_another_dtype_is_an_error_before_anything_changes():
    fine, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2).bfloat16())
    opt = MaskedAdamW([{"params": [fine]}, {"params": [other]}], lr=0.1)
    other.grad_dtype = torch.float32
    fine.grad, other.grad = torch.ones(3), torch.ones(2)
    with pytest.raises(RuntimeError, match=r"shape \[2\] must be torch.bfloat16 as the parameter, got torch.float32"):
        opt.step()
    assert fine.tolist() == [1, 1, 1]
    assert not opt.state


@pytest.mark.parametrize("default", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("how", [{}, {"fused": True}], ids=["plain", "fused"])
def test_a_step_count_of_torchs_in_any_form_is_taken(how, default, adamw):
    torch.set_default_dtype(default)  # torch's plain loop counts in it
    try:
        theirs = adamw.network(torch.float32)
        torchs = torch.optim.AdamW(theirs.parameters(), lr=0.01, **how)
        adamw.train(theirs, torchs, 2)
    finally:
        torch.set_default_dtype(torch.float32)
    ours = adamw.network()
    ours.load_state_dict(theirs.state_dict())
    opt = MaskedAdamW(ours.parameters())
    opt.load_state_dict(torchs.state_dict())
    assert all(s["step"].dtype == torch.float32 and s["step"] == 2 for s in opt.state.values())
    adamw.train(ours, opt, 1)
    assert all(s["step"] == 3 for s in opt.state.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"differentiable": True}, "MaskedAdamW: differentiable must be False, got True"),
        ({"state_dtype": torch.bfloat16}, "MaskedAdamW: state_dtype must be None or torch.float32, got torch.bfloat16"),
        ({"lr": -1.0}, "Invalid learning rate: -1.0"),
        ({"betas": (1.0, 0.9)}, "Invalid beta parameter at index 0: 1.0"),
        ({"eps": -1.0}, "Invalid epsilon value: -1.0"),
        ({"lr": torch.ones(2)}, "Tensor lr must be 1-element"),
    ],
)
def test_bad_options(options, message, adamw):
    with pytest.raises(ValueError, match=message):
        MaskedAdamW(adamw.network().parameters(), **options)
