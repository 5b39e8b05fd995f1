"""The products of blocks by every kind of config against the reference in float64: run by test_interpreter.py."""

import pytest
import torch

from acdc_kernels.formats.blocks import build_index
from acdc_kernels.ops import pack_mask
from acdc_kernels.ops.block_linear import reference
from acdc_kernels.ops.block_linear.contract import block_linear_backward_op, block_linear_op

RAGGED = [[1, 0, 1, 1, 1], [0, 0, 0, 0, 0], [1, 1, 0, 0, 0]]  # an empty block row, and an empty column
KEPT = {"ragged": RAGGED, "all": [[1] * 5] * 2, "none": [[0] * 3] * 2, "one": [[0, 1]]}

FORWARD = ("", "64x32 w4 s3", "16x16 w4 s2 persistent", "32x32 w4 s3 descriptors", "32x16 w4 s3 persistent descriptors")
WEIGHT = ("", "64x{c} w4 s3", "16x{c2} w4 s3 splits3", "32x{c} w4 s3 descriptors", "16x{c} w4 s2 splits2 descriptors")


@pytest.fixture(autouse=True)
def _poison():
    """Fresh memory is filled with NaN: what a kernel doesn't write is seen."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def topology(kept, r, c):
    kept = torch.tensor(kept, dtype=torch.bool)
    mask = kept.repeat_interleave(r, 0).repeat_interleave(c, 1)
    bits = pack_mask(mask)
    return [bits, *build_index(bits, *mask.shape, r, c)], [*mask.shape, int(mask.sum()), r, c]


def factors(meta, n, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows, cols = meta[:2]
    shapes = (n, cols), (rows, cols), (n, rows), (rows,)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def assert_close(got, exact, terms, dtype):
    """Sums of ``terms`` products in float32, rounded once to ``dtype``; ``exact`` is the sum and that of magnitudes."""
    value, size = exact
    bound = size * terms * 2.0**-23 + value.abs() * torch.finfo(dtype).eps
    assert bool(((got.double() - value).abs() <= bound).all())


def products(x, w, grad, bias, index, meta, whole=True, **configs):
    y = block_linear_op(x, w, index, meta, bias, configs.get("forward", ""))
    backward = block_linear_backward_op(
        grad, x, w, index, meta, True, True, whole, x.dtype, configs.get("input", ""), configs.get("weight", "")
    )
    return y, *backward


def exact(x, w, grad, bias, index, meta, whole=True):
    """The three products in float64, and of the magnitudes."""

    def of(*tensors):
        x, w, grad, bias = (t.double() for t in tensors)
        y = reference.block_linear(x, w, index, meta, bias, "")
        both = reference.block_linear_backward(grad, x, w, index, meta, True, True, whole, torch.float64, "", "")
        return y, *both

    tensors = x, w, grad, bias
    return zip(of(*tensors), of(*(t.abs() for t in tensors)), strict=True)


def check(kept, r, c, n, dtype, whole=True, **configs):
    index, meta = topology(KEPT[kept], r, c)
    x, w, grad, bias = factors(meta, n, dtype)
    if not whole:
        w = reference.blocks_of(w, index, meta).contiguous()
    got = products(x, w, grad, bias, index, meta, whole, **configs)
    for one, right in zip(got, exact(x, w, grad, bias, index, meta, whole), strict=True):
        assert one.shape == right[0].shape
        assert_close(one, right, max(*meta[:2], n) + 2, dtype)


@pytest.mark.parametrize("whole", [True, False], ids=["weight", "values"])
@pytest.mark.parametrize("at", range(len(FORWARD)))
@pytest.mark.parametrize(("r", "c"), [(32, 32), (64, 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
def test_every_kind_of_config(dtype, r, c, at, whole):
    weight = WEIGHT[at].format(c=c, c2=2 * c)
    check("ragged", r, c, 70, dtype, whole, forward=FORWARD[at], input=FORWARD[at], weight=weight)


@pytest.mark.parametrize(("r", "c"), [(r, c) for r in (32, 64, 128) for c in (32, 64, 128)])
def test_every_block(r, c):
    check("ragged", r, c, 40, torch.float16)


@pytest.mark.parametrize(("kept", "n"), [("ragged", n) for n in (0, 1, 16, 17, 129)] + [(k, 33) for k in KEPT])
def test_samples_and_masks(kept, n):
    check(kept, 32, 64, n, torch.float32, weight="32x128 w4 s3 splits2")
    check(kept, 32, 64, n, torch.float32, False, forward="64x32 w4 s3 persistent", weight="16x256 w4 s3")


@pytest.mark.parametrize("config", ["64x32 w4 s3", "16x16 w4 s2 persistent", "32x32 w4 s3 descriptors"])
def test_infinity_stays_where_it_is_kept(config):
    index, meta = topology(RAGGED, 32, 32)
    x, w, grad, bias = factors(meta, 33, torch.float32)
    x[32] = float("inf")
    x[5, 64:] = float("nan")
    grad[3, 32:] = float("nan")  # the empty block row's, and one that keeps the first two columns
    w[32:64] = float("nan")  # not kept: not read
    y, grad_x, grad_weight = products(
        x, w, grad, bias, index, meta, forward=config, input=config, weight="16x64 w4 s3 splits2"
    )
    finite = torch.ones_like(y, dtype=torch.bool)
    finite[32, :32] = finite[32, 64:] = finite[5, :32] = False
    assert torch.equal(y.isfinite(), finite)
    assert torch.equal(y[:, 32:64], bias[32:64].expand(33, 32))
    finite = torch.ones_like(grad_x, dtype=torch.bool)
    finite[3, :64] = False
    assert torch.equal(grad_x.isfinite(), finite)
    finite = torch.ones_like(grad_weight, dtype=torch.bool)
    finite[:32, :32] = finite[:32, 64:] = finite[64:, :64] = False  # what keeps a block for row 32 or row 3
    assert torch.equal(grad_weight.isfinite(), finite)
    assert bool((grad_weight[32:64] == 0).all())


def test_layouts():
    index, meta = topology(RAGGED, 32, 32)
    x, w, grad, bias = factors(meta, 12, torch.float32)
    straight = products(x, w, grad, bias, index, meta)

    def wide(t):
        return torch.cat((t, torch.full((t.shape[0], 3), float("nan"))), 1)[:, : t.shape[1]]

    def shifted(t):
        return torch.cat((torch.zeros(1), t.reshape(-1)))[1:].view(t.shape)

    layouts = {
        "row stride": [wide(x), wide(w), wide(grad), bias],
        "column stride": [
            x.t().contiguous().t(),
            w.t().contiguous().t(),
            grad.t().contiguous().t(),
            wide(bias[:, None])[:, 0],
        ],
        "unaligned": [shifted(x), shifted(w), shifted(grad), shifted(bias)],
        "leading": [x.view(3, 4, -1), w, grad.view(3, 4, -1), bias],
        "no leading": [x[0], w, grad[0], bias],
        "alike": [x[:1].expand(12, -1), w, grad[:1].expand(12, -1), bias],
    }
    for name, tensors in layouts.items():
        for config, weight in (("", ""), ("16x32 w4 s2 descriptors", "16x32 w4 s2 descriptors")):
            got = products(*tensors, index, meta, forward=config, input=config, weight=weight)
            want = straight
            if name in ("no leading", "alike"):
                want = products(*(t.contiguous() for t in tensors), index, meta)
            assert got[0].is_contiguous()
            assert got[0].shape == (*tensors[0].shape[:-1], meta[0])
            for one, right in zip(got, want, strict=True):
                torch.testing.assert_close(one.view_as(right), right, rtol=1e-5, atol=1e-5, msg=name)


def test_the_same_bits_each_time():
    index, meta = topology(KEPT["all"], 32, 32)
    tensors = factors(meta, 70, torch.float16)
    configs = {"forward": "16x32 w4 s2 persistent", "weight": "16x64 w4 s2 splits4"}
    first, second = (products(*tensors, index, meta, **configs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_gradients_one_by_one():
    index, meta = topology(RAGGED, 32, 32)
    x, w, grad, _ = factors(meta, 20, torch.float16)
    both = block_linear_backward_op(grad, x, w, index, meta, True, True, True, torch.float32, "", "")
    alone = block_linear_backward_op(grad, x, w, index, meta, True, False, True, torch.float32, "", "")
    assert torch.equal(alone[0], both[0])
    assert alone[1].shape == (0,)
    alone = block_linear_backward_op(grad, x, w, index, meta, False, True, True, torch.float32, "", "")
    assert alone[0].shape == (0,)
    assert torch.equal(alone[1], both[1])
    assert both[1].dtype == torch.float32
    halves = block_linear_backward_op(grad, x, w, index, meta, False, True, True, torch.float16, "", "")
    assert torch.equal(both[1].half(), halves[1])  # from the sums in float32: rounded once


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("fast", "block_linear: config: config must be 'SAMPLESxDEPTH wWARPS sSTAGES'"),
        ("64x64 w4 s3", "block_linear: config: config must have a depth that goes with blocks of 32"),
        ("64x32 w3 s3", "block_linear: config: config must have 1, 2, 4, 8 or 16 warps"),
        ("64x32 w4 s3 splits2", "block_linear: config: config must have no splits for the forward"),
    ],
)
def test_wrong_configs(config, message):
    index, meta = topology(RAGGED, 32, 32)
    x, w, _, _ = factors(meta, 20, torch.float32)
    with pytest.raises(ValueError, match=message):
        block_linear_op(x, w, index, meta, None, config)


def test_wrong_dtype():
    index, meta = topology(RAGGED, 32, 32)
    x, w, _, _ = factors(meta, 20, torch.float64)
    with pytest.raises(TypeError, match="block_linear: x must be float32, bfloat16 or float16 on a GPU, got"):
        block_linear_op(x, w, index, meta, None, "")
