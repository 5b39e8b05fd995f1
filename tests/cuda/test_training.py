"""Training on a GPU: graph capture, GradScaler, and the CPU's masks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import acdc_kernels as acdc

SCHEDULE = acdc.schedules.acdc(total=12, warmup=2, compressed=2, dense=2, final_dense=0, final_compressed=2)
OPTIMIZERS = {
    "sgd": lambda p, lr: acdc.MaskedSGD(p, lr=lr, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda p, lr: acdc.MaskedAdamW(p, lr=lr, capturable=True),
}
PATTERNS = ["unstructured", "2:4", "2:4-transposable", "block:4x4"]


def net(device: str = "cuda") -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4)).to(device)


def batch(step: int, device: str = "cuda") -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(16, 8, generator=generator).to(device), torch.randint(4, (16,), generator=generator).to(device)


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_a_captured_step_replays_as_the_eager_one(make):
    models = [net(), net()]
    rate = torch.tensor(0.01, device="cuda")
    optimizers = [OPTIMIZERS[make](model.parameters(), rate.clone()) for model in models]
    grads = [torch.randn_like(p) for p in models[0].parameters()]
    for model, optimizer in zip(models, optimizers, strict=True):
        for p, grad in zip(model.parameters(), grads, strict=True):
            p.grad = grad.clone()
        weights = [p for p in model.parameters() if p.dim() > 1]
        optimizer.step()
        optimizer.masks.update(dict(zip(weights, acdc.topk_mask(weights, 100), strict=True)))
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    before = copy.deepcopy(models[1].state_dict()), copy.deepcopy(optimizers[1].state_dict())
    with torch.cuda.stream(stream):
        optimizers[1].step()
    torch.cuda.current_stream().wait_stream(stream)
    models[1].load_state_dict(before[0])
    for p, saved in zip(models[1].parameters(), before[1]["state"].values(), strict=True):
        for name, value in saved.items():
            optimizers[1].state[p][name].copy_(value)
    with torch.cuda.graph(graph):
        optimizers[1].step()
    for step in range(4):
        optimizers[1].param_groups[0]["lr"].fill_(0.01 / (step + 1))
        optimizers[0].param_groups[0]["lr"].fill_(0.01 / (step + 1))
        graph.replay()
        optimizers[0].step()
    for ours, theirs in zip(models[1].parameters(), models[0].parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_grad_scaler_skips_without_touching_anything(make):
    model = net()
    optimizer = OPTIMIZERS[make](model.parameters(), 0.01)
    sparsifier = acdc.Sparsifier(model, optimizer, SCHEDULE, sparsity=0.8)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**12)
    for step in range(SCHEDULE.total_steps):
        x, y = batch(step)
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16):
            loss = nn.functional.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        before = copy.deepcopy(model.state_dict())
        if step % 5 == 3:
            model[2].weight.grad[0, 0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
        if step % 5 == 3:
            assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        sparsifier.step()
    assert sparsifier.achieved_sparsity() >= 0.79


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_same_masks_as_on_the_cpu(pattern, make):
    """Flips of equal weights give equal bits; the updates between them differ in roundings, so they are copied over."""
    runs = {}
    for device in ("cpu", "cuda"):
        model = net(device)
        optimizer = OPTIMIZERS[make](model.parameters(), 0.01)
        runs[device] = model, optimizer, acdc.Sparsifier(model, optimizer, SCHEDULE, pattern=pattern)
    for step in range(SCHEDULE.total_steps):
        for device, (model, optimizer, _) in runs.items():
            x, y = batch(step, device)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        for ours, theirs in zip(runs["cuda"][0].parameters(), runs["cpu"][0].parameters(), strict=True):
            assert torch.allclose(ours.cpu(), theirs, atol=1e-4)
            ours.data.copy_(theirs.data)
        for _, _, sparsifier in runs.values():
            sparsifier.step()
        masks = [{name: bits.cpu() for name, bits in sparsifier.masks.items()} for _, _, sparsifier in runs.values()]
        assert masks[0].keys() == masks[1].keys()
        assert all(torch.equal(bits, masks[1][name]) for name, bits in masks[0].items())
