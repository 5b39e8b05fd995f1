"""More elements than 32 bits count. Several gigabytes and half a minute: run by `pytest -m slow`."""

import pytest
import torch

import acdc_kernels as acdc
from acdc_kernels import topk_mask
from acdc_kernels.ops import build_topology, magnitude_histogram, masked_sgd_

from .conftest import DEVICE, ON_CPU, no_products

pytestmark = pytest.mark.slow
N = 2**31 + 1001


def test_topk_counts_and_indexes_past_32_bits():
    # One element in memory, read N times: every weight ties, so the first `keep` indices stay.
    weight = torch.full((1,), -0.5, dtype=torch.bfloat16, device=DEVICE).expand(N)
    keep = N - 13
    bits = topk_mask([weight], keep)[0]
    assert bits.numel() == (N + 7) // 8
    assert bool((bits[: keep // 8] == 255).all())
    tail = [int(b) for b in bits[keep // 8 :]]
    assert sum(bin(b).count("1") for b in tail) == keep % 8
    assert tail[0] == (1 << keep % 8) - 1


def test_topk_over_several_tensors_past_32_bits():
    weights = [
        torch.full((1,), 1.0, dtype=torch.float16, device=DEVICE).expand(N // 2),
        torch.full((1,), 3.0, dtype=torch.float16, device=DEVICE).expand(N // 2 + 2),
    ]
    masks = topk_mask(weights, N // 2 + 3)
    assert int(masks[0][0]) == 1
    assert not masks[0][1:].any()
    assert bool((masks[1][:-1] == 255).all())


def test_histograms_count_past_32_bits():
    weights = [torch.full((1,), value, dtype=torch.bfloat16, device=DEVICE).expand(N) for value in (1.0, 3.0)]
    counts = magnitude_histogram(weights, torch.tensor([0x3F80], device=DEVICE), 5, 5)
    assert counts.tolist() == [[N, N]]
    each = magnitude_histogram(weights, torch.tensor([0, 0], device=DEVICE), 15, 8)
    assert each.nonzero().tolist() == [[0, 0x3F], [1, 0x40]]
    assert each.sum(1).tolist() == [N, N]


def test_sgd_reaches_past_32_bits():
    param = torch.ones(N, dtype=torch.bfloat16, device=DEVICE)
    grad = torch.ones(1, dtype=torch.bfloat16, device=DEVICE).expand(N)
    bits = torch.full(((N + 7) // 8,), 255, dtype=torch.uint8, device=DEVICE)
    bits[-1] = 0b01  # N % 8 == 1: the last element stays
    bits[-2] = 0
    masked_sgd_([param], [grad], [], [bits], lr=0.5)
    assert N % 8 == 1
    assert param[-10:].tolist() == [0.5] + [0.0] * 8 + [0.5]
    assert bool((param[:4096] == 0.5).all())
    assert bool((param[2**31 - 8 : 2**31 + 8] == 0.5).all())


def test_a_topology_of_a_weight_past_32_bits():
    rows, cols = 40000, 60000
    bits = torch.zeros(rows * cols // 8, dtype=torch.uint8, device=DEVICE)
    at = [(0, 0), (0, 59999), (20000, 7), (35791, 23647), (35791, 23648), (39999, 0), (39999, 59999)]
    for r, c in at:  # 35791 * 60000 + 23648 is 2**31
        bits[(r * cols + c) // 8] |= 1 << (r * cols + c) % 8
    weight = torch.zeros(1, dtype=torch.bfloat16, device=DEVICE).expand(rows, cols)
    values, topology = acdc.compress(weight, bits)
    assert topology.kept == len(at)
    values = torch.arange(1, len(at) + 1, dtype=torch.float32, device=DEVICE)[topology.index[2].long().argsort()]
    if ON_CPU:  # the products have no CUDA kernels
        x = torch.zeros(2, cols)
        x[0], x[1, 59999] = 1.0, 10.0
        y = acdc.sparse_linear(x, values, topology)
        assert y[0].nonzero().view(-1).tolist() == [0, 20000, 35791, 39999]
        assert y[0, [0, 20000, 35791, 39999]].tolist() == [3.0, 3.0, 9.0, 13.0]
        assert y[1, [0, 39999]].tolist() == [20.0, 70.0]
    dense = acdc.decompress(values.bfloat16(), topology)
    assert [float(dense[r, c]) for r, c in at] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert torch.equal(acdc.compress(dense, topology)[0].float(), values)
    assert not dense[35792:39999].any()


def test_more_kept_weights_than_places_is_an_error():
    bits = torch.full((2**28,), 255, dtype=torch.uint8, device=DEVICE)
    with pytest.raises(ValueError, match="bits must keep at most 2147483647 weights, got 2147483648"):
        build_topology(bits, 2**15, 2**16)


@no_products
def test_products_of_samples_past_32_bits():
    """The input and its tiles have more than 2**31 elements: 9 GB of tiles; one sample, read again and again."""
    cols = 4096
    n = 2**31 // cols + 40
    mask = torch.zeros(4, cols, dtype=torch.bool)
    mask[0, 0] = mask[1, -1] = mask[3] = True
    values, topology = acdc.compress(torch.ones(4, cols), acdc.pack_mask(mask))
    x = torch.arange(cols, dtype=torch.float32).remainder(5).expand(n, cols)
    values.requires_grad_()
    y = acdc.sparse_linear(x, values, topology)
    want = x[0] @ mask.float().t()
    assert bool((y == want).all())
    grad = torch.zeros(n, 4)
    grad[0], grad[-1] = 1.0, 2.0
    y.backward(grad)
    assert torch.equal(acdc.decompress(values.grad, topology), 3 * x[0] * mask)
