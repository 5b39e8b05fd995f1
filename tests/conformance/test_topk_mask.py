import itertools
import math

import numpy as np
import pytest
import torch

from acdc_kernels import topk_mask, unpack_mask
from acdc_kernels.ops import topk_mask_with_nan_count
from acdc_kernels.ops.dtypes import FLOAT_DTYPES
from acdc_kernels.ops.topk_mask import cases, reference

from .conftest import DEVICE, cpu_only, on_cpu

LARGE = ("around_a_chunk", "bracketed")
SMALL = tuple(s for s in cases.SHAPES if s not in LARGE)


def check(weights, keep):
    masks, nan_count = topk_mask_with_nan_count(weights, keep)
    want, want_nan = reference.topk_mask(on_cpu(weights), keep if isinstance(keep, list) else [keep], "unstructured")
    assert [m.tolist() for m in masks] == [m.tolist() for m in want]
    assert nan_count.tolist() == want_nan.tolist()
    kept = [int(unpack_mask(m, w.shape).sum()) for m, w in zip(masks, weights, strict=True)]
    assert kept == keep if isinstance(keep, list) else sum(kept) == keep


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("values", cases.VALUES)
@pytest.mark.parametrize("shapes", SMALL)
def test_values_and_shapes(shapes, values, dtype):
    weights = cases.weights(shapes, values, dtype, device=DEVICE)
    for keep in cases.budgets(sum(w.numel() for w in weights)):
        check(weights, keep)
    check(weights, [w.numel() // 3 for w in weights])


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("values", cases.VALUES)
@pytest.mark.parametrize("shapes", LARGE)
def test_many_chunks(shapes, values, dtype, threads):
    weights = cases.weights(shapes, values, dtype, device=DEVICE)
    n = sum(w.numel() for w in weights)
    for keep in (1, 5, n // 1000, n // 100, n // 10, n - n // 3):
        check(weights, keep)
    check(weights, [w.numel() // 10 for w in weights])


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize(
    ("shapes", "dtype"), [*itertools.product(("convolutions", "awkward"), FLOAT_DTYPES), ("bracketed", torch.float32)]
)
def test_layouts(shapes, dtype, layout, threads):
    for values in ("normal", "ties", "non_finite"):
        weights = cases.weights(shapes, values, dtype, layout, device=DEVICE)
        check(weights, sum(w.numel() for w in weights) // 10)


def test_bits_are_numpys_little_endian_packing():
    w = torch.randn(100)
    bits = topk_mask([w.to(DEVICE)], 30)[0]
    kept = np.zeros(100, dtype=bool)
    kept[np.argsort(-np.abs(w.numpy()), kind="stable")[:30]] = True
    assert bits.tolist() == np.packbits(kept, bitorder="little").tolist()


@pytest.mark.parametrize(
    ("weights", "keep", "kept"),
    [
        ([[3.0, -1.0, 2.0]], 2, [[1, 0, 1]]),
        ([[1.0, -1.0, 1.0]], 2, [[1, 1, 0]]),
        ([[1.0], [1.0, 1.0]], 2, [[1], [1, 0]]),
        ([[-0.0, 0.0, -0.0]], 1, [[1, 0, 0]]),
        ([[math.inf, math.nan, 5.0]], 1, [[0, 1, 0]]),
        ([[math.inf, 1.0, -math.inf]], 2, [[1, 0, 1]]),
        ([[1e-45, 0.0, 3e-45]], 1, [[0, 0, 1]]),
        ([[1.0, 2.0], [3.0, 4.0]], [1, 0], [[0, 1], [0, 0]]),
        ([[1.0, 2.0]], 0, [[0, 0]]),
        ([[1.0, 2.0]], 2, [[1, 1]]),
        ([[]], 0, [[]]),
    ],
)
def test_literal_masks(weights, keep, kept):
    tensors = [torch.tensor(w, device=DEVICE) for w in weights]
    masks = topk_mask(tensors, keep)
    assert [unpack_mask(m, t.shape).int().tolist() for m, t in zip(masks, tensors, strict=True)] == kept


def test_mask_follows_logical_order_whatever_the_strides():
    w = torch.tensor([[1.0, 5.0, 2.0], [4.0, 0.0, 3.0]], device=DEVICE)
    assert torch.equal(topk_mask([w.t().contiguous().t()], 3)[0], topk_mask([w], 3)[0])


@cpu_only("threads are a CPU's")
def test_same_bits_for_every_thread_count():
    weights = cases.weights("bracketed", "normal", torch.float32)
    seen = []
    before = torch.get_num_threads()
    for n in (1, 2, 3, 7):
        torch.set_num_threads(n)
        seen.append([m.tolist() for m in topk_mask(weights, 30000)])
    torch.set_num_threads(before)
    assert all(s == seen[0] for s in seen)


def test_extra_memory_is_bounded(extra_bytes):
    weights = [torch.randn(shape, device=DEVICE) for shape in ((1_000_000,), (512, 512, 3, 3))]
    size = sum(w.numel() for w in weights) * 4
    assert extra_bytes(lambda: topk_mask(weights, 300_000)) <= 0.03 * size + 2**20


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda w: topk_mask(w, 200), ValueError, r"topk_mask: keep must be in \[0, 128\], got 200"),
        (lambda w: topk_mask(w, -1), ValueError, r"topk_mask: keep must be in \[0, 128\], got -1"),
        (lambda w: topk_mask(w, [3]), ValueError, r"keep must have one entry a weight \(2\), got 1"),
        (lambda w: topk_mask(w, [3, 65]), ValueError, r"keep\[1\] must be in \[0, 64\], got 65"),
        (lambda w: topk_mask(w, 1.5), TypeError, r"keep must be an int, got 1.5"),
        (lambda w: topk_mask(w, True), TypeError, r"keep must be an int, got True"),
        (lambda w: topk_mask([], 0), ValueError, r"weights must have at least one tensor, got an empty list"),
        (lambda w: topk_mask(w[0], 3), TypeError, r"weights must be a list of tensors, got a Tensor"),
        (
            lambda w: topk_mask([w[0], w[1].double()], 3),
            TypeError,
            r"weights\[1\] must be torch.float32 as weights\[0\]",
        ),
        (lambda w: topk_mask([w[0].long()], 3), TypeError, r"weights\[0\] must be a float32, .* got torch.int64"),
        (
            lambda w: topk_mask([w[0].to_sparse()], 3),
            TypeError,
            r"weights\[0\] must be .* got torch.float32 \(torch.sparse_coo\)",
        ),
        (
            lambda w: topk_mask([w[0], w[1].to("meta")], 3),
            ValueError,
            rf"weights\[1\] must be on {DEVICE} as weights\[0\], got meta",
        ),
        (
            lambda w: topk_mask(w, 3, "diagonal"),
            ValueError,
            r"topk_mask: pattern must be 'unstructured', .* got 'diagonal'",
        ),
        (lambda w: topk_mask(w, 3, shard_group=object()), TypeError, r"shard_group must be a ProcessGroup, got object"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call([torch.randn(64, device=DEVICE), torch.randn(8, 8, device=DEVICE)])
