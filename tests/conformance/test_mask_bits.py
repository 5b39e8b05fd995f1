import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from acdc_kernels import pack_mask, unpack_mask
from acdc_kernels.ops import apply_mask_
from acdc_kernels.ops.dtypes import FLOAT_DTYPES
from acdc_kernels.ops.mask_bits import reference
from acdc_kernels.ops.masked_sgd.cases import LAYOUTS, MASKS, SHAPES

from .conftest import DEVICE, ON_CPU

SIZES = [0, 1, 7, 8, 9, 63, 64, 65, 1000, 65535, 65537, 200_003]


@pytest.mark.parametrize("n", SIZES)
def test_packing_is_numpys(n, threads):
    mask = (torch.rand(n) < 0.3).to(DEVICE)
    bits = pack_mask(mask)
    assert bits.tolist() == np.packbits(mask.cpu().numpy(), bitorder="little").tolist()
    assert torch.equal(bits, reference.pack_mask(mask))
    assert torch.equal(unpack_mask(bits, (n,)), mask)
    assert torch.equal(reference.unpack_mask(bits, [n]), mask)


@settings(max_examples=200)
@given(st.lists(st.integers(0, 5), max_size=4), st.integers(0, 2**32 - 1))
def test_round_trip_of_any_shape_and_stride(shape, seed):
    mask = (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5).to(DEVICE)
    assert torch.equal(unpack_mask(pack_mask(mask), shape), mask)
    if mask.dim() > 1:
        turned = mask.transpose(0, -1)
        assert torch.equal(unpack_mask(pack_mask(turned), turned.shape), turned)
        assert torch.equal(pack_mask(turned), pack_mask(turned.contiguous()))


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mask", [m for m in MASKS if m != "none"])
def test_apply_writes_plus_zero_and_touches_nothing_else(mask, layout, dtype, threads):
    g = torch.Generator().manual_seed(0)
    for shapes in SHAPES.values():
        tensors = [LAYOUTS[layout](torch.randn(s, generator=g).to(dtype).to(DEVICE)) for s in shapes]
        kept = [MASKS[mask](s, g).to(DEVICE) for s in shapes]
        for t, k in zip(tensors, kept, strict=True):
            t.masked_fill_(~k & (torch.rand(t.shape, generator=g) < 0.5).to(DEVICE), -math.nan)
        before = [t.clone() for t in tensors]
        apply_mask_(tensors, [pack_mask(k) for k in kept])
        for t, b, k in zip(tensors, before, kept, strict=True):
            assert torch.equal(t[k], b[k])
            assert not t[~k].any()
            assert not t[~k].signbit().any()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: pack_mask(torch.ones(3)),
            TypeError,
            "pack_mask: mask must be a tensor of dtype torch.bool, got torch.float32",
        ),
        (lambda: pack_mask([True]), TypeError, "pack_mask: mask must be a tensor of dtype torch.bool, got list"),
        (
            lambda: unpack_mask(torch.zeros(2, dtype=torch.uint8), (3,)),
            ValueError,
            r"bits must have shape \[1\] \(3 elements",
        ),
        (lambda: unpack_mask(torch.zeros(1), (3,)), TypeError, "bits must be of dtype torch.uint8, got torch.float32"),
        (
            lambda: unpack_mask(torch.zeros(1, dtype=torch.uint8), (-3,)),
            ValueError,
            "shape must have no negative entry",
        ),
        (
            lambda: unpack_mask(torch.zeros(1, dtype=torch.uint8), 3),
            TypeError,
            "shape must be a sequence of ints, got the int 3",
        ),
        (lambda: unpack_mask(torch.full((1,), 255, dtype=torch.uint8), (3,)), ValueError, "zeros in the unused bits"),
        (lambda: apply_mask_([torch.ones(3)], []), ValueError, r"masks must have one entry a tensor \(1\), got 0"),
        (
            lambda: apply_mask_([torch.ones(3).int()], [torch.zeros(1, dtype=torch.uint8)]),
            TypeError,
            r"tensors\[0\] must be float32",
        ),
        (
            lambda: apply_mask_([torch.ones(9)], [torch.zeros(1, dtype=torch.uint8)]),
            ValueError,
            r"masks\[0\] must have shape \[2\]",
        ),
    ],
)
def test_bad_input(call, error, message):
    if not ON_CPU and "unused bits" in message:
        pytest.skip("the last byte is read on a CPU only")
    with DEVICE, pytest.raises(error, match=message):
        call()
