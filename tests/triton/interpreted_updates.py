"""Steps of the masked updates' Triton kernels, one after another, as optimizers take them: run by test_updates.py."""

import itertools

import pytest
import torch

from acdc_kernels import MaskedAdamW, MaskedSGD, pack_mask
from acdc_kernels.ops import _update_tables as update_tables
from acdc_kernels.ops.masked_adamw import triton as adamw
from acdc_kernels.ops.masked_sgd import reference, triton

SHAPES = [(64, 32), (9, 5), (), (0, 3), (16, 8, 3, 3)]


def draw(dtype, seed, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def masks(seed=3):
    generator = torch.Generator().manual_seed(seed)
    kept = [torch.rand(shape, generator=generator) < 0.3 for shape in SHAPES]
    return [None if i == 1 else pack_mask(k) for i, k in enumerate(kept)]


def step(how, params, grads, buffers, bits, zeros_kept=()):
    how.masked_sgd_(params, grads, buffers, bits, 0.1, 0.9, 0.0, 0.01, True, False, False, None, None, None, zeros_kept)


def copies(tensors):
    return [t.clone() for t in tensors]


def assert_close(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_gradients_that_move_and_those_that_stay():
    params, buffers, bits = draw(torch.float32, 0), draw(torch.float32, 1), masks()
    mine = copies(params), copies(buffers)
    kept_grads = draw(torch.float32, 9)
    for i in range(5):
        grads = draw(torch.float32, 10 + i) if i % 2 else kept_grads
        if i == 3:
            grads = [torch.cat((g.new_zeros(1), g.flatten()))[1:].view(g.shape) for g in grads]  # not aligned
        if i == 4:
            bits = [None, *bits[1:]]
        step(triton, *(mine[0], grads, mine[1]), bits)
        step(reference, params, grads, buffers, bits)
        assert_close(mine[0] + mine[1], params + buffers)


def test_tables_are_used_again_where_nothing_moved(monkeypatch):
    params, grads, buffers, bits = draw(torch.float32, 0), draw(torch.float32, 1), draw(torch.float32, 2), masks()
    made = []
    upload = update_tables._to_device
    monkeypatch.setattr(update_tables, "_to_device", lambda *args: made.append(args[0]) or upload(*args))
    for _ in range(3):
        step(triton, params, grads, buffers, bits)
    assert len(made) == 1
    step(triton, params, copies(grads), buffers, bits)
    assert len(made) == 2
    step(triton, params, grads, buffers, bits, [True] * len(params))
    assert len(made) == 3
    # the same addresses, another layout
    turned = [g.view(-1).view(g.shape[::-1]).permute(list(range(g.dim()))[::-1]) if g.numel() else g for g in grads]
    before = copies(params), copies(buffers)
    step(triton, params, turned, buffers, bits)
    step(reference, before[0], turned, before[1], bits)
    assert_close(params + buffers, before[0] + before[1])
    assert len(made) == 4


def test_in_a_capture_nothing_is_kept_and_the_numbers_are_the_same(monkeypatch):
    numbers = [2**62, 0, 1, 2**47 + 16, 7]
    assert update_tables._to_device(numbers, torch.device("cpu"), True).tolist() == numbers


def test_dtypes_and_layouts_in_one_call():
    dtypes = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float32]
    layouts = [lambda t: t, lambda t: t.t().contiguous().t() if t.dim() == 2 else t, lambda t: t]
    layouts += [lambda t: t, lambda t: t.to(memory_format=torch.channels_last)]
    tensors = [
        [f(t.to(d)) for f, t, d in zip(layouts, draw(torch.float32, seed), dtypes, strict=True)] for seed in range(3)
    ]
    mine = [[t.clone() for t in ts] for ts in tensors]
    bits = masks()
    step(triton, *mine, bits)
    step(reference, *tensors, bits)
    for a, b in zip(itertools.chain(*mine), itertools.chain(*tensors), strict=True):
        tolerance = 2 * torch.finfo(a.dtype).eps
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_all_of_them_empty():
    empty = [torch.zeros(0, 3)]
    step(triton, empty, empty, empty, [None])
    count = torch.zeros(())
    adamw.masked_adamw_(empty, empty, empty, empty, [], [count], [None], 0.1, 0.9, 0.99, 1e-8, 0.0, False, False)
    assert count == 1


@pytest.mark.parametrize("make", [MaskedSGD, MaskedAdamW])
def test_optimizers_skip_what_they_know_and_follow_torch(make):
    """Zeros that somebody writes over come back to zero."""
    theirs = {MaskedSGD: torch.optim.SGD, MaskedAdamW: torch.optim.AdamW}[make]
    options = {"lr": 0.1, "momentum": 0.9} if make is MaskedSGD else {"lr": 0.1}
    ours = [torch.nn.Parameter(p) for p in draw(torch.float32, 0, SHAPES[:2])]
    plain = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    a, b = make(ours, **options), theirs(plain, **options)
    kept = torch.rand(SHAPES[0], generator=torch.Generator().manual_seed(1)) < 0.2
    kept[8:24] = False
    a.masks[ours[0]] = pack_mask(kept)
    with torch.no_grad():
        plain[0].mul_(kept)
    for i in range(4):
        for p, q, g in zip(ours, plain, draw(torch.float32, 20 + i, SHAPES[:2]), strict=True):
            p.grad, q.grad = g, g.clone()
        if i == 2:
            with torch.no_grad():
                ours[0][10] = 3.0
        a.step()
        b.step()
        with torch.no_grad():
            plain[0].mul_(kept)
        assert_close([p.detach() for p in ours], [q.detach() for q in plain])


def test_many_more_tensors_than_a_launch_has_room_for():
    many = 1030
    shapes = [(1 + i % 3,) for i in range(many)]
    tensors = [draw(torch.float32, seed, shapes) for seed in range(3)]
    mine = [copies(ts) for ts in tensors]
    step(triton, *mine, [None] * many)
    step(reference, *tensors, [None] * many)
    assert_close(mine[0] + mine[2], tensors[0] + tensors[2])
