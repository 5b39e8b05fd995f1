import itertools
import math

import pytest
import torch

from acdc_kernels import _native
from acdc_kernels.ops._registry import has_kernel
from acdc_kernels.ops.dtypes import FLOAT_DTYPES
from acdc_kernels.ops.magnitude_histogram import cases, contract, magnitude_histogram, reference
from acdc_kernels.ops.topk_mask import cases as weight_cases

from .conftest import DEVICE, on_cpu

LARGE = ("around_a_chunk", "bracketed")
SMALL = tuple(s for s in weight_cases.SHAPES if s not in LARGE)
KEY_BITS = {d: d.itemsize * 8 - 1 for d in FLOAT_DTYPES}


def check(weights, windows, where=None):
    for (width, shift), rows in itertools.product(windows, {1, len(weights)}):
        bases = cases.bases(on_cpu(weights), rows, width)
        for name, base in {name: bases[name] for name in where or bases}.items():
            got = magnitude_histogram(weights, base.to(DEVICE), width, shift)
            want = reference.magnitude_histogram(on_cpu(weights), base, width, shift)
            assert got.shape == (rows, 2 ** (width - shift) + 1)
            assert torch.equal(got.cpu(), want), (width, shift, rows, name)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("values", ["normal", "ties", "signed_zeros", "denormal", "non_finite"])
@pytest.mark.parametrize("shapes", SMALL)
def test_values_and_shapes(shapes, values, dtype):
    check(weight_cases.weights(shapes, values, dtype, device=DEVICE), cases.windows(dtype))


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("values", ["normal", "mostly_zero", "constant", "non_finite"])
@pytest.mark.parametrize("shapes", LARGE)
def test_many_chunks(shapes, values, dtype, threads):
    check(
        weight_cases.weights(shapes, values, dtype, device=DEVICE), cases.windows(dtype), ("from zero", "around a key")
    )


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("at_once", [1, 5, 12])
def test_every_width(at_once, dtype):
    weights = weight_cases.weights("around_a_byte", "normal", dtype, device=DEVICE)
    for width in range(KEY_BITS[dtype] + 1):
        check(weights, [(width, max(width - at_once, 0)), (width, width)])


@pytest.mark.parametrize("layout", weight_cases.LAYOUTS)
@pytest.mark.parametrize(
    ("shapes", "dtype"), [*itertools.product(("convolutions", "awkward"), FLOAT_DTYPES), ("bracketed", torch.float32)]
)
def test_layouts(shapes, dtype, layout, threads):
    weights = weight_cases.weights(shapes, "non_finite", dtype, layout, device=DEVICE)
    check(weights, cases.windows(dtype)[:2], ("around a key", "at a key"))


def test_many_small_weights_of_a_row_each(threads):
    weights = [torch.randn(n % 40, generator=torch.Generator().manual_seed(n)).to(DEVICE) for n in range(700)]
    check(weights, [(31, 30), (0, 0)])


@pytest.mark.parametrize(
    ("weights", "base", "width", "shift", "counts"),
    [
        ([[1.0, -1.0, 2.0]], [0x3F800000], 0, 0, [[2, 1]]),
        ([[0.0, -0.0, 1e-45]], [0], 0, 0, [[2, 1]]),
        ([[0.0, -0.0, 1e-45]], [0], 1, 0, [[2, 1, 0]]),
        ([[math.nan, -math.nan, math.inf]], [0x7F800000], 0, 0, [[1, 2]]),
        ([[math.nan, -math.nan, math.inf]], [0x7F800000], 1, 0, [[1, 2, 0]]),
        ([[1.0], [1.0, 3.0, 0.5]], [0x3F800000], 24, 23, [[2, 1, 0]]),
        ([[1.0], [1.0, 3.0, 0.5]], [0x3F800000, 0x3F000000], 23, 23, [[1, 0], [1, 2]]),
        ([[]], [0], 31, 31, [[0, 0]]),
    ],
)
def test_literal_counts(weights, base, width, shift, counts):
    tensors = [torch.tensor(w, device=DEVICE) for w in weights]
    assert magnitude_histogram(tensors, torch.tensor(base, device=DEVICE), width, shift).tolist() == counts


def test_it_finds_the_kth_largest():
    """As a selection over processes uses it: interval after interval, each a bin of the one before."""
    weights = weight_cases.weights("awkward", "normal", torch.float32, device=DEVICE)
    magnitudes = torch.cat([w.reshape(-1) for w in on_cpu(weights)]).abs().sort(descending=True).values
    for k in (1, 200, len(magnitudes)):
        rank, base = k, 0
        for width, shift in cases.windows(torch.float32)[:-1]:
            counts = magnitude_histogram(weights, torch.tensor([base], device=DEVICE), width, shift)[0].tolist()[:-1]
            step = len(counts) - 1
            while counts[step] < rank:
                rank -= counts[step]
                step -= 1
            base += step << shift
        assert torch.tensor(base, dtype=torch.int32).view(torch.float32) == magnitudes[k - 1]
        equal, greater = magnitude_histogram(weights, torch.tensor([base], device=DEVICE), 0, 0)[0].tolist()
        assert greater < k <= greater + equal


def test_the_kernel_runs_where_it_was_built():
    if not _native.available():
        pytest.skip(_native.why_not())
    assert has_kernel(contract.magnitude_histogram_op, DEVICE.type)


def test_weights_that_need_a_gradient_give_counts_without():
    w = torch.randn(10, device=DEVICE, requires_grad=True)
    assert not magnitude_histogram([w], torch.tensor([0], device=DEVICE), 31, 31).requires_grad


@pytest.mark.skipif(not _native.available(), reason="no compiled kernels")
def test_extra_memory_is_bounded(extra_bytes):
    weights = [torch.randn(1_000_000, device=DEVICE)]
    base = torch.tensor([0], device=DEVICE)
    assert extra_bytes(lambda: [magnitude_histogram(weights, base, 31, 19)]) <= 2**19


W, B = [torch.randn(64).to(DEVICE), torch.randn(8, 8).to(DEVICE)], torch.tensor([0]).to(DEVICE)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([], B, 31, 19), ValueError, r"weights must have at least one tensor, got an empty list"),
        (([[1.0]], B, 31, 19), TypeError, r"weights\[0\] must be a float32, .* got list"),
        (([W[0].long()], B, 31, 19), TypeError, r"weights\[0\] must be a float32, .* got torch.int64"),
        (
            ([W[0], W[1].double()], B, 31, 19),
            ValueError,
            rf"weights\[1\] must be torch.float32 on {DEVICE} as weights\[0\]",
        ),
        (([W[0], W[1].to("meta")], B, 31, 19), ValueError, r"weights\[1\] must be .* got torch.float32 on meta"),
        ((W, 0, 31, 19), TypeError, rf"base must be an int64 tensor on {DEVICE}, got int"),
        ((W, B.int(), 31, 19), TypeError, rf"base must be an int64 tensor on {DEVICE}, got torch.int32 on {DEVICE}"),
        (
            (W, torch.zeros(3, dtype=torch.int64).to(DEVICE), 31, 19),
            ValueError,
            r"base must have shape \[1\] or \[2\], got \[3\]",
        ),
        ((W, B[0], 31, 19), ValueError, r"base must have shape \[1\] or \[2\], got \[\]"),
        ((W, B, 32, 20), ValueError, r"magnitude_histogram: width must be in \[0, 31\], got 32"),
        (([w.half() for w in W], B, 16, 4), ValueError, r"width must be in \[0, 15\], got 16"),
        ((W, B, 31, 18), ValueError, r"shift must be in \[19, 31\] with width 31, got 18"),
        ((W, B, 7, 8), ValueError, r"shift must be in \[0, 7\] with width 7, got 8"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        magnitude_histogram(*arguments)
