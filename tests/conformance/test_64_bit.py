"""More elements than 32 bits count. Several gigabytes and half a minute: run by `pytest -m slow`."""

import pytest
import torch

from acdc_kernels import topk_mask
from acdc_kernels.ops import masked_sgd_

pytestmark = pytest.mark.slow
N = 2**31 + 1001


def test_topk_counts_and_indexes_past_32_bits():
    # One element in memory, read N times: every weight ties, so the first `keep` indices stay.
    weight = torch.full((1,), -0.5, dtype=torch.bfloat16).expand(N)
    keep = N - 13
    bits = topk_mask([weight], keep)[0]
    assert bits.numel() == (N + 7) // 8
    assert bool((bits[: keep // 8] == 255).all())
    tail = [int(b) for b in bits[keep // 8 :]]
    assert sum(bin(b).count("1") for b in tail) == keep % 8
    assert tail[0] == (1 << keep % 8) - 1


def test_topk_over_several_tensors_past_32_bits():
    weights = [
        torch.full((1,), 1.0, dtype=torch.float16).expand(N // 2),
        torch.tensor([3.0], dtype=torch.float16).expand(N // 2 + 2),
    ]
    masks = topk_mask(weights, N // 2 + 3)
    assert int(masks[0][0]) == 1
    assert not masks[0][1:].any()
    assert bool((masks[1][:-1] == 255).all())


def test_sgd_reaches_past_32_bits():
    param = torch.ones(N, dtype=torch.bfloat16)
    grad = torch.ones(1, dtype=torch.bfloat16).expand(N)
    bits = torch.full(((N + 7) // 8,), 255, dtype=torch.uint8)
    bits[-1] = 0b01  # N % 8 == 1: the last element stays
    bits[-2] = 0
    masked_sgd_([param], [grad], [], [bits], lr=0.5)
    assert N % 8 == 1
    assert param[-10:].tolist() == [0.5] + [0.0] * 8 + [0.5]
    assert bool((param[:4096] == 0.5).all())
    assert bool((param[2**31 - 8 : 2**31 + 8] == 0.5).all())
