"""CUDA graphs: a replay gives what an eager call gives, with whatever the same memory holds by then."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import acdc_kernels as acdc

from .calls import CALLS, same
from .conftest import Captured

OPTIMIZERS = {
    "sgd": lambda params, lr: acdc.MaskedSGD(params, lr=lr, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda params, lr: acdc.MaskedAdamW(params, lr=lr, amsgrad=True, capturable=True),
}


@pytest.mark.parametrize("name", CALLS)
def test_replays_are_eager_calls(name):
    captured = CALLS[name](0, "cuda")
    graph = Captured(captured.run)
    for seed in (1, 2, 0, 3):
        other = CALLS[name](seed, "cuda")
        for mine, new in zip(captured.inputs, other.inputs, strict=True):
            mine.copy_(new)
        graph.replay()
        assert same(graph.result, other.run()), seed


def test_a_flip_can_be_captured():
    """Masks that a graph makes are read by what it does with them."""
    weights = [torch.randn(300, 1001, device="cuda"), torch.randn(77, device="cuda")]
    buffers = [torch.ones_like(w) for w in weights]

    def flip():
        masks = acdc.topk_mask(weights, 30000)
        acdc.ops.apply_mask_([*weights, *buffers], [*masks, *masks])
        return masks

    graph = Captured(flip)
    for seed in range(3):
        fresh = [torch.randn(w.shape, generator=torch.Generator().manual_seed(seed)) for w in weights]
        for weight, buffer, new in zip(weights, buffers, fresh, strict=True):
            weight.copy_(new)
            buffer.fill_(1.0)
        graph.replay()
        kept = [acdc.unpack_mask(m, w.shape) for m, w in zip(acdc.topk_mask(fresh, 30000), fresh, strict=True)]
        assert same(weights, [w.where(k, torch.zeros(())) for w, k in zip(fresh, kept, strict=True)])
        assert same(buffers, [k.float() for k in kept])


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_steps_take_new_gradients_rates_and_weights(make):
    """Weights that somebody puts where the mask is 0 are gone after a replay too: a graph can't skip kept zeros."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.Linear(256, 3)).cuda()
    models = [model, copy.deepcopy(model)]
    optimizers = [OPTIMIZERS[make](m.parameters(), torch.tensor(0.01, device="cuda")) for m in models]
    for m, optimizer in zip(models, optimizers, strict=True):
        for p in m.parameters():
            p.grad = torch.ones_like(p)
        weights = [p for p in m.parameters() if p.dim() > 1]
        optimizer.step()
        optimizer.masks.update(zip(weights, acdc.topk_mask(weights, 1000), strict=True))
        optimizer.step()  # zeros are kept from now on
    start = copy.deepcopy(optimizers[0].state_dict()), copy.deepcopy(models[0].state_dict())
    graph = Captured(optimizers[1].step)
    models[1].load_state_dict(start[1])
    for p, saved in zip(models[1].parameters(), start[0]["state"].values(), strict=True):
        for name, value in saved.items():
            optimizers[1].state[p][name].copy_(value)
    for step in range(5):
        g = torch.Generator().manual_seed(step)
        for ours, theirs in zip(*(m.parameters() for m in models), strict=True):
            grad = torch.randn(ours.shape, generator=g)
            ours.grad.copy_(grad)
            theirs.grad.copy_(grad)
            if step == 3:
                with torch.no_grad():
                    ours.add_(1.0)
                    theirs.add_(1.0)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"].fill_(0.01 / (step + 1))
        optimizers[0].step()
        graph.replay()
        assert same(list(models[1].parameters()), list(models[0].parameters())), step
    for p, bits in optimizers[1].masks.items():
        assert not p[~acdc.unpack_mask(bits, p.shape)].any()


def test_a_step_after_replays_trusts_nothing_that_they_wrote():
    p = nn.Parameter(torch.ones(4096, device="cuda"))
    p.grad = torch.ones_like(p)
    optimizer = acdc.MaskedSGD([p], lr=0.1, momentum=0.9)
    optimizer.step()
    mask = torch.arange(4096, device="cuda") >= 2048
    optimizer.masks[p] = acdc.pack_mask(mask)
    graph = Captured(optimizer.step)
    graph.replay()
    with torch.no_grad():
        p.add_(1.0)
    optimizer.step()
    assert not p[~mask].any()
    assert not optimizer.state[p]["momentum_buffer"][~mask].any()
