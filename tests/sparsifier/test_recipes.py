"""Training as people do it: each recipe runs through every phase, and the zeros stay exactly where they are."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import acdc_kernels as acdc

SCHEDULE = acdc.schedules.acdc(total=12, warmup=2, compressed=2, dense=2, final_dense=0, final_compressed=2)
OPTIMIZERS = {
    "sgd": lambda p: acdc.MaskedSGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3, nesterov=True),
    "adamw": lambda p: acdc.MaskedAdamW(p, lr=3e-3),
}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 25, 6)),
    )


def batch(step: int, size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(size, 4, 5, 5, generator=generator), torch.randint(6, (size,), generator=generator)


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(x).float(), y)


Update = Callable[[nn.Module, torch.optim.Optimizer, int], None]


def plain(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.zero_grad()
    loss_of(model, *batch(step)).backward()
    optimizer.step()


def train(
    update: Update, make: str = "sgd", model: nn.Module | None = None, run: nn.Module | None = None
) -> tuple[nn.Module, torch.optim.Optimizer, acdc.Sparsifier]:
    """Every phase of SCHEDULE; in the compressed ones the masked weights and their state are +0.0 after each update."""
    model = net() if model is None else model
    optimizer = OPTIMIZERS[make](model.parameters())
    sparsifier = acdc.Sparsifier(model, optimizer, SCHEDULE, sparsity=0.8)
    kinds = []
    for step in range(SCHEDULE.total_steps):
        update(run or model, optimizer, step)
        for p, bits in optimizer.masks.items():
            off = ~acdc.unpack_mask(bits, p.shape)
            for tensor in (p, *(t for t in optimizer.state[p].values() if t.shape == p.shape)):
                assert torch.equal(tensor[off].view(torch.uint8), torch.zeros_like(tensor[off]).view(torch.uint8))
        kinds.append(sparsifier.phase.kind)
        sparsifier.step()
    assert kinds == (["dense"] * 2 + ["compressed"] * 2) * 3
    n = sum(p.numel() for name, p in model.named_parameters() if name in sparsifier.masks)
    assert sparsifier.achieved_sparsity() >= round(0.8 * n) / n
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    return model, optimizer, sparsifier


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, other.state_dict()[name]) for name, a in one.state_dict().items())


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_plain(make):
    assert same(train(plain, make)[0], train(plain, make)[0])


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype, make):
    def update(model, optimizer, step):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype):
            loss = loss_of(model, *batch(step))
        loss.backward()
        optimizer.step()

    model, _, _ = train(update, make)
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_fp16_with_grad_scaler_clipping_and_skipped_steps(make):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14, growth_interval=3)
    skipped = []

    def update(model, optimizer, step):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = loss_of(model, *batch(step))
        scaler.scale(loss).backward()
        if step in (0, 3, 5):  # the first of all, and both in a compressed phase and in a dense one
            model[0].weight.grad[0, 0, 0, 0] = float("inf")
        before = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
        if step % 2:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        if scaler.get_scale() < scale:
            skipped.append(step)
            assert all(torch.equal(t, before[0][name]) for name, t in model.state_dict().items())

    train(update, make)
    assert skipped == [0, 3, 5]


def test_grad_scaler_gives_the_unscaled_numbers():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=1000)

    def update(model, optimizer, step):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, *batch(step))).backward()
        scaler.step(optimizer)
        scaler.update()

    assert same(train(update)[0], train(plain)[0])  # a power of two scales without rounding


def test_gradient_accumulation_is_the_larger_batch():
    def update(model, optimizer, step):
        x, y = batch(step)
        optimizer.zero_grad()
        for micro in range(2):  # the sparsifier steps once an update, not once a micro-batch
            part = slice(4 * micro, 4 * micro + 4)
            (loss_of(model, x[part], y[part]) / 2).backward()
        optimizer.step()

    def no_norm():
        model = net()
        model[1] = nn.Identity()  # batch normalisation would see the micro-batches
        return model

    ours, theirs = train(update, model=no_norm())[0], train(plain, model=no_norm())[0]
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-4)
        assert torch.equal(a == 0, b == 0)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_bit(reentrant):
    class Checkpointed(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            x = x.requires_grad_() if reentrant else x
            return self.model[5:](checkpoint(self.model[3:5], self.model[:3](x), use_reentrant=reentrant))

    model = net()
    assert same(train(plain, model=model, run=Checkpointed(model))[0], train(plain)[0])


def test_channels_last_makes_the_same_masks():
    ours, _, sparsifier = train(plain, model=net().to(memory_format=torch.channels_last))
    theirs, _, other = train(plain)
    assert ours[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert sparsifier.masks.keys() == other.masks.keys()
    for name, p in ours.named_parameters():
        assert torch.allclose(p, theirs.get_parameter(name), atol=1e-4)


def test_an_average_of_the_weights_that_restarts_at_each_flip_is_as_sparse():
    model = net()
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    sparsifier = acdc.Sparsifier(model, optimizer, SCHEDULE, sparsity=0.8)
    sparsifier.register_phase_hook(lambda sparsifier, old, new: ema.n_averaged.zero_())
    for step in range(SCHEDULE.total_steps):
        plain(model, optimizer, step)
        ema.update_parameters(model)
        for name, bits in sparsifier.masks.items():
            p = ema.module.get_parameter(name)
            assert not p[~acdc.unpack_mask(bits, p.shape)].count_nonzero()
        sparsifier.step()
    assert not same(ema.module, model)
    assert sparsifier.recalibrate([batch(0)], ema.module) == 1


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_sixteen_bit_weights_with_float32_state(make):
    model = net().to(torch.bfloat16)
    optimizer = {"sgd": acdc.MaskedSGD, "adamw": acdc.MaskedAdamW}[make](
        model.parameters(), lr=0.01, **({"momentum": 0.9} if make == "sgd" else {}), state_dtype=torch.float32
    )
    sparsifier = acdc.Sparsifier(model, optimizer, SCHEDULE, sparsity=0.8)
    for step in range(SCHEDULE.total_steps):
        x, y = batch(step)
        optimizer.zero_grad()
        loss_of(model, x.bfloat16(), y).backward()
        optimizer.step()
        sparsifier.step()
    state = optimizer.state[model[0].weight]
    assert state["momentum_buffer" if make == "sgd" else "exp_avg"].dtype == torch.float32
    assert sparsifier.phase.kind == "compressed"
    assert sparsifier.achieved_sparsity() >= 0.79


def test_learning_rate_schedules_are_unaware_of_phases():
    def run(make):
        model = net()
        optimizer = make(model.parameters())
        rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=SCHEDULE.total_steps)
        seen = []
        sparsifier = acdc.Sparsifier(model, optimizer, SCHEDULE) if isinstance(optimizer, acdc.MaskedSGD) else None
        for step in range(SCHEDULE.total_steps - 1):
            plain(model, optimizer, step)
            seen.append(optimizer.param_groups[0]["lr"])
            rates.step()
            if sparsifier:
                sparsifier.step()
        return seen

    assert run(lambda p: acdc.MaskedSGD(p, lr=0.1, momentum=0.9)) == run(
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)
    )
