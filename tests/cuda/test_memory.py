"""Memory of top-k, and more elements than 32 bits count."""

from __future__ import annotations

import pytest
import torch

import acdc_kernels as acdc

MODEL = [*((2048, 512, 3, 3),) * 2, (1000, 2048), (2048, 2048), (512,)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(
    "pattern", ["unstructured", "2:4", "2:4-transposable", "block:4x4", "block:1x2", "block:64x64"]
)
@pytest.mark.parametrize("ties", [False, True])
def test_topk_needs_three_percent_and_a_mebibyte(ties, pattern, dtype):
    shapes = MODEL if pattern == "unstructured" else [(2048, 512, 3, 3), (1024, 2048), (2048, 2048)]
    weights = [torch.randn(shape, device="cuda").to(dtype) for shape in shapes]
    if ties:
        weights = [w.sign() for w in weights]
    size = sum(w.numel() * w.element_size() for w in weights)
    keep = None if pattern.startswith("2:4") else 64 * 64 * 300
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()["requested_bytes.all.current"]
    masks = acdc.topk_mask(weights, keep, pattern)
    extra = torch.cuda.memory_stats()["requested_bytes.all.peak"] - before - sum(m.numel() for m in masks)
    assert extra <= 0.03 * size + 2**20
    if keep is not None:
        assert sum(int(acdc.unpack_mask(m, w.shape).sum()) for m, w in zip(masks, weights, strict=True)) == keep


def check_largest(weights: list[torch.Tensor], keep: int) -> None:
    """Exactly ``keep``; none dropped that is larger than one kept; of those equal to the smallest kept, the first."""
    masks = acdc.topk_mask(weights, keep)
    kept = [acdc.unpack_mask(m, w.shape) for m, w in zip(masks, weights, strict=True)]
    assert sum(int(torch.count_nonzero(k)) for k in kept) == keep
    least = min(float(w.abs().masked_fill_(~k, torch.inf).min()) for w, k in zip(weights, kept, strict=True))
    most = max(float(w.abs().masked_fill_(k, 0.0).max()) for w, k in zip(weights, kept, strict=True))
    assert most <= least
    done = False
    for w, k in zip(weights, kept, strict=True):
        ties = (w.abs() == least).view(-1)
        here = int((ties & k.view(-1)).sum())
        last = int((ties & k.view(-1)).int().cumsum(0, dtype=torch.int64).eq(here).int().argmax()) if here else -1
        assert not done or here == 0
        assert not bool((ties & ~k.view(-1))[: last + 1].any())
        done = done or bool((ties & ~k.view(-1)).any())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_topk_of_real_weights_past_32_bits(dtype):
    """Some 60 GB of device memory, most of it the test's own."""
    n = 2**31 + 1001
    weights = [torch.randn(n, device="cuda").to(dtype), torch.randn(4097, device="cuda").to(dtype)]
    check_largest(weights, n // 10)


@pytest.mark.slow
def test_topk_of_more_weights_than_32_bits_index():
    weights = [torch.randn(2**31 + 8 * i, device="cuda").half() for i in range(3)]
    check_largest(weights, 2**32 + 12345)


@pytest.mark.slow
@pytest.mark.parametrize("make", ["sgd", "adamw"])
def test_updates_past_32_bits(make):
    """Some 40 GB of device memory. AdamW's gradient is one element again and again, which another kernel walks."""
    n = 2**31 + 1001
    param, state = (torch.ones(n, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    grad = torch.ones(1, dtype=torch.bfloat16, device="cuda").expand(n)
    bits = torch.full(((n + 7) // 8,), 255, dtype=torch.uint8, device="cuda")
    bits[-1], bits[-2], bits[2**28] = 0b01, 0, 0  # n % 8 == 1; the eight from 2**31 on
    if make == "sgd":
        acdc.ops.masked_sgd_([param], [grad.contiguous()], [state], [bits], lr=0.5, momentum=0.5)
        moved = -0.5 * 1.5
    else:
        square, steps = torch.zeros_like(param), [torch.zeros((), device="cuda")]
        acdc.ops.masked_adamw_([param], [grad], [state], [square], [], steps, [bits], lr=0.0, weight_decay=0.0)
        moved = 0.0
    kept = acdc.unpack_mask(bits, (n,))
    assert bool((param == torch.where(kept, 1.0 + moved, 0.0)).all())
    assert bool(((state == 0) == ~kept).all())
