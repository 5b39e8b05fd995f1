"""Streams, and a host that is never kept waiting."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import acdc_kernels as acdc

from .calls import CALLS, same
from .conftest import no_waiting, sleep


@pytest.mark.parametrize("name", CALLS)
def test_the_current_stream_is_where_ops_run(name):
    """Their inputs get there late; on any other stream the op would read what stood there before."""
    call, want = CALLS[name](0, "cuda"), CALLS[name](0, "cuda")
    late = [t.clone() for t in call.inputs]
    call.run()  # whatever is loaded at a first call is there
    for t in call.inputs:
        t.zero_()
    expected = [t.clone() for t in want.run()]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        sleep()
        for t, value in zip(call.inputs, late, strict=True):
            t.copy_(value)
        got = [t.clone() for t in call.run()]
    side.synchronize()
    assert same(got, expected)


@pytest.mark.parametrize("name", CALLS)
def test_ops_wait_for_no_other_stream(name):
    call, side = CALLS[name](0, "cuda"), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call.run()
    torch.cuda.synchronize()
    busy = sleep()
    with torch.cuda.stream(side):
        call.run()
    side.synchronize()
    assert not busy.query()
    torch.cuda.synchronize()


@pytest.mark.parametrize("name", CALLS)
def test_the_host_waits_for_no_op(name):
    call = CALLS[name](0, "cuda")
    call.run()
    with no_waiting():
        call.run()


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
@pytest.mark.parametrize("tensor_lr", [False, True], ids=["a number", "a tensor"])
@pytest.mark.parametrize("make", [acdc.MaskedSGD, acdc.MaskedAdamW])
def test_the_host_waits_for_no_step(make, tensor_lr, scaled):
    model = nn.Sequential(*(nn.Linear(40, 40) for _ in range(20))).cuda()
    options = {"momentum": 0.9} if make is acdc.MaskedSGD else {}
    lr = torch.tensor(0.01, device="cuda") if tensor_lr else 0.01
    optimizer = make(model.parameters(), lr=lr, **options)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    if scaled:  # as GradScaler does
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0, device="cuda"), torch.tensor(0.0, device="cuda")
    optimizer.step()
    weights = [p for p in model.parameters() if p.dim() > 1]
    optimizer.masks.update(zip(weights, acdc.topk_mask(weights, 3200), strict=True))
    optimizer.step()
    with no_waiting():
        optimizer.step()
        optimizer.step()


def test_the_host_waits_for_no_masks_but_at_their_flip():
    """Nor between flips for what the Sparsifier does after each step."""
    schedule = acdc.schedules.acdc(total=40, warmup=8, compressed=8, dense=8, final_dense=0, final_compressed=8)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 8)).cuda()
    optimizer = acdc.MaskedSGD(model.parameters(), lr=0.01, momentum=0.9)
    sparsifier = acdc.Sparsifier(model, optimizer, schedule)
    x = torch.randn(16, 64, device="cuda")

    def train_step():
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        sparsifier.step()

    seen = set()
    while sparsifier.step_count < schedule.total_steps:
        phase = sparsifier.phase
        if sparsifier.step_count == phase.first_step + 3 and phase.kind not in seen:
            with no_waiting():
                train_step()
                train_step()
            seen.add(phase.kind)
        else:
            train_step()
    assert seen == {"dense", "compressed"}


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
@pytest.mark.parametrize("name", CALLS)
def test_another_device_than_the_current_one(name):
    here, there = CALLS[name](0, "cuda:0"), CALLS[name](0, "cuda:1")
    with torch.cuda.device(0):
        results = there.run()
        assert all(t.device.index == 1 for t in results)
        assert same(results, here.run())
