"""The structured patterns of ``topk_mask``, to the bit against the reference, and the reference against literal masks."""

import itertools
import math

import pytest
import torch

from acdc_kernels import topk_mask, unpack_mask
from acdc_kernels._native import available
from acdc_kernels.ops import topk_mask_with_nan_count
from acdc_kernels.ops.dtypes import FLOAT_DTYPES
from acdc_kernels.ops.topk_mask import cases, reference
from acdc_kernels.policy.patterns import parse_pattern

from .conftest import DEVICE, cpu_only, on_cpu

MANY = [pattern for pattern, each in cases.PATTERNS.items() if "many" in each]


def budgets(weights, pattern):
    """None where the pattern decides; else whole blocks: none, one, half, all, a third of each weight, a tenth."""
    unit = parse_pattern(pattern).unit
    if parse_pattern(pattern).fixed:
        return [None]
    blocks = sum(w.numel() for w in weights) // unit
    each = [w.numel() // unit // 3 * unit for w in weights]
    return [0, min(1, blocks) * unit, blocks // 2 * unit, blocks * unit, each, blocks // 10 * unit]


def check(weights, keep, pattern):
    masks, nan_count = topk_mask_with_nan_count(weights, keep, pattern)
    budget = [] if keep is None else keep if isinstance(keep, list) else [keep]
    want, want_nan = reference.topk_mask(on_cpu(weights), budget, pattern)
    assert all(torch.equal(m.cpu(), w) for m, w in zip(masks, want, strict=True))
    assert nan_count.tolist() == want_nan.tolist()
    kept = [int(unpack_mask(m, w.shape).sum()) for m, w in zip(masks, weights, strict=True)]
    if keep is None:
        assert kept == [parse_pattern(pattern).kept(w.numel(), 0.5) for w in weights]
    else:
        assert kept == keep if isinstance(keep, list) else sum(kept) == keep


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("values", cases.VALUES)
@pytest.mark.parametrize("pattern", cases.PATTERNS)
def test_values_and_shapes(pattern, values, dtype):
    for shapes in ("linear", "convolutions"):
        weights = cases.pattern_weights(pattern, shapes, values, dtype, device=DEVICE)
        for keep in budgets(weights, pattern):
            check(weights, keep, pattern)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("pattern", MANY)
def test_many_groups(pattern, dtype, threads):
    for values in ("ties", "non_finite"):
        weights = cases.pattern_weights(pattern, "many", values, dtype, device=DEVICE)
        for keep in budgets(weights, pattern)[-2:]:
            check(weights, keep, pattern)


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("pattern", cases.PATTERNS)
def test_layouts(pattern, dtype, layout):
    for shapes, values in itertools.product(("linear", "convolutions"), ("ties", "non_finite")):
        shaped = cases.pattern_weights(pattern, shapes, values, dtype, device=DEVICE)
        # A transposed weight must still have the pattern's shape: transpose its memory, not the weight.
        weights = [
            cases.LAYOUTS[layout](w.transpose(0, -1).contiguous() if layout == "transposed" else w) for w in shaped
        ]
        assert [w.shape for w in weights] == [w.shape for w in shaped]
        for keep in budgets(weights, pattern)[-2:]:
            check(weights, keep, pattern)


@pytest.mark.parametrize(
    ("pattern", "weight", "keep", "kept"),
    [
        ("2:4", [[1, -4, 3, 2, 5, 0, 0, -6]], None, ["0110 1001"]),
        ("2:4", [[1, -1, 1, 1], [0, -0.0, 0, 1]], None, ["1100", "1001"]),
        ("2:4", [[math.nan, math.inf, 9, math.nan], [math.inf, -math.inf, math.inf, 1]], None, ["1001", "1100"]),
        ("1:4", [[1, -4, 3, 2, 5, 0, 0, -6]], None, ["0100 0001"]),
        ("1:2", [[1, 1], [1, 2]], None, ["10", "01"]),
        ("3:4", [[1, 2, 3, 4]], None, ["0111"]),
        ("2:3", [[3, 1, 3, 1, 1, 1]], None, ["101 110"]),
        ("2:8", [[0, 7, 0, 0, 0, 0, 8, 0]], None, ["01000010"]),
        # A kernel of two: groups along the input axis at each position.
        ("1:2", [[[1, 4], [2, 3]]], None, [["01", "10"]]),
        # The greedy rows would take the first two columns four times.
        ("2:4-transposable", [[9, 8, 1, 0]] * 4, None, ["1100", "1100", "0011", "0011"]),
        ("2:4-transposable", [[1, 1, 1, 1]] * 4, None, ["1100", "1100", "0011", "0011"]),
        (
            "2:4-transposable",
            [[9, 0, 9, 0], [0, 9, 0, 9], [0, 9, 0, 9], [9, 0, 9, 0]],
            None,
            ["1010", "0101", "0101", "1010"],
        ),
        # A NaN is kept whatever it costs; of the masks that keep it the first one, magnitudes no longer count.
        (
            "2:4-transposable",
            [[9, 9, 0, math.nan], [0, 0, 9, 9], [9, 0, 9, 0], [0, 9, 0, 9]],
            None,
            ["1001", "1100", "0110", "0011"],
        ),
        ("block:2x1", [[1, 5, 2], [1, 0, 3], [9, 0, 0], [0, 0, 0]], 4, ["010", "010", "100", "100"]),
        ("block:1x2", [[1, 2, 9, 9], [-3, 0, 0, 0]], 4, ["1111", "0000"]),
        ("block:2x2", [[1, 1, 1, 1], [1, 1, 1, 1]], 4, ["1100", "1100"]),
        ("block:2x2", [[9, 9, 0, 0], [9, 9, math.nan, 0]], 4, ["0011", "0011"]),
        ("block:1x2", [[[1, 4], [1, 4]]], 2, [["01", "01"]]),
        ("block:1x2", [[[4, 1], [1, 4]]], 2, [["10", "10"]]),
    ],
)
def test_literal_masks(pattern, weight, keep, kept):
    w = torch.tensor(weight, dtype=torch.float32, device=DEVICE)
    flat = [row if isinstance(row, str) else "".join(row) for row in kept]
    want = [int(bit) for row in flat for bit in row if bit in "01"]
    assert unpack_mask(topk_mask([w], keep, pattern)[0], (w.numel(),)).int().tolist() == want


@pytest.mark.parametrize("pattern", ["1:134217728", "134217727:134217728", "block:134217728x134217728"])
def test_the_largest_numbers_on_weights_without_elements(pattern):
    keep = None if parse_pattern(pattern).fixed else 0
    weights = [torch.empty(shape, device=DEVICE) for shape in ((0, 1 << 27), (0, 0))]
    assert topk_mask(weights, keep, pattern)[0].tolist() == []


def test_ties_among_blocks_go_to_the_first_tensor_then_the_first_index():
    weights = [w.to(DEVICE) for w in (torch.zeros(4, 2), torch.ones(4, 3), torch.ones(8, 2))]
    masks = topk_mask(weights, 16, "block:4x1")
    assert [unpack_mask(m, w.shape)[::4].int().tolist() for m, w in zip(masks, weights, strict=True)] == [
        [[0, 0]],
        [[1, 1, 1]],
        [[1, 0], [0, 0]],
    ]


def test_a_block_is_scored_by_its_mean_in_the_order_of_its_indices():
    # In float64, 2**53 + 1 is 2**53: whether the ones count depends on whether they come first.
    w = torch.tensor([[1.0, 1.0, 2.0**53, 0.0], [2.0**53, 1.0, 1.0, 0.0]], dtype=torch.float64, device=DEVICE)
    assert unpack_mask(topk_mask([w], 4, "block:1x4")[0], w.shape).tolist() == [[True] * 4, [False] * 4]
    assert unpack_mask(topk_mask([w.flip(0)], 4, "block:1x4")[0], w.shape).tolist() == [[False] * 4, [True] * 4]


def brute_force(tile):
    """Every subset of two columns a row, in lexicographic order; the first of the best."""
    best, kept = -1.0, None
    for rows in itertools.product(itertools.combinations(range(4), 2), repeat=4):
        if any(sum(c in row for row in rows) != 2 for c in range(4)):
            continue
        total = 0.0
        for r, (a, b) in enumerate(rows):
            total += abs(tile[r][a]) + abs(tile[r][b])
        if total > best:
            best, kept = total, rows
    return [[int(c in row) for c in range(4)] for row in kept]


def test_transposable_tiles_by_brute_force():
    g = torch.Generator().manual_seed(0)
    for scale in (1.0, 4.0, 1000.0):  # rounded: many ties, some, none
        w = (torch.randn(40, 48, generator=g, dtype=torch.float64) * scale).round()
        kept = unpack_mask(topk_mask([w.to(DEVICE)], None, "2:4-transposable")[0], w.shape).int().cpu()
        for i, j in itertools.product(range(0, 40, 4), range(0, 48, 4)):
            assert kept[i : i + 4, j : j + 4].tolist() == brute_force(w[i : i + 4, j : j + 4].tolist())


def test_the_transpose_of_a_transposable_mask_is_2_of_4_too():
    w = torch.randn(64, 96, device=DEVICE)
    kept = unpack_mask(topk_mask([w], None, "2:4-transposable")[0], w.shape).cpu()
    assert torch.equal(kept.view(64, 24, 4).sum(2), torch.full((64, 24), 2))
    assert torch.equal(kept.t().reshape(96, 16, 4).sum(2), torch.full((96, 16), 2))


@cpu_only("threads are a CPU's")
@pytest.mark.parametrize("pattern", ["2:4", "5:64", "2:4-transposable", "block:4x1", "block:16x16"])
def test_same_bits_for_every_thread_count(pattern):
    weights = [torch.randn(512, 512), torch.randn(64, 64, 3, 3), torch.randn(16, 64)]
    keep = None if parse_pattern(pattern).fixed else 256 * 100
    seen = []
    before = torch.get_num_threads()
    for n in (1, 2, 3, 7):
        torch.set_num_threads(n)
        seen.append([m.tolist() for m in topk_mask(weights, keep, pattern)])
    torch.set_num_threads(before)
    assert all(s == seen[0] for s in seen)


@pytest.fixture
def flush_denormal():
    """torch.set_flush_denormal, which speaks to the thread that calls it alone; undone afterwards."""
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor can't flush denormals")
    yield torch.set_flush_denormal
    torch.set_flush_denormal(False)


@cpu_only("a CPU's threads flush denormals")
@pytest.mark.skipif(not available(), reason="no compiled kernels: torch's own sums flush denormals")
@pytest.mark.parametrize(("dtype", "scale"), [(torch.float32, 1e-40), (torch.bfloat16, 1e-39), (torch.float64, 1e-310)])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "2:4-transposable", "block:4x4", "block:1x2", "block:2x1"])
def test_flushing_denormals_changes_nothing(pattern, dtype, scale, threads, flush_denormal):
    weights = [(torch.randn(512, 512, dtype=torch.float64) * scale).to(dtype)]
    keep = None if parse_pattern(pattern).fixed else 16 * 5000
    want, _ = reference.topk_mask(weights, [] if keep is None else [keep], pattern)
    flush_denormal(True)
    tiny = torch.tensor(1e-310, dtype=torch.float64)
    assert (tiny * 0.5).tolist() == 0  # it flushes
    masks = topk_mask(weights, keep, pattern)
    assert (tiny * 0.5).tolist() == 0  # and goes on
    flush_denormal(False)
    assert torch.equal(masks[0], want[0])


@pytest.mark.parametrize("values", ["normal", "constant", "non_finite"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pattern", ["block:4x1", "block:1x2", "block:2x4"])
def test_so_many_blocks_that_scores_are_computed_on_the_fly(pattern, dtype, values, threads):
    g = torch.Generator().manual_seed(1)
    weights = [
        cases.VALUES[values](shape, g).to(dtype).to(DEVICE)
        for shape in ((640, 600), (4, 8), (128, 128, 3, 3), (300, 1200))
    ]
    unit = parse_pattern(pattern).unit
    check(weights, sum(w.numel() for w in weights) // 10 // unit * unit, pattern)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pattern", ["2:4", "2:4-transposable", "block:4x1", "block:1x2", "block:8x8", "block:32x32"])
def test_extra_memory_is_bounded(pattern, dtype, extra_bytes):
    weights = [torch.randn(shape, device=DEVICE).to(dtype) for shape in ((1024, 2048), (512, 512, 3, 3))]
    size = sum(w.numel() * w.element_size() for w in weights)
    keep = None if parse_pattern(pattern).fixed else 4096 * 100
    assert extra_bytes(lambda: topk_mask(weights, keep, pattern)) <= 0.03 * size + 2**20


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda w: topk_mask([w], 128, "2:4"), ValueError, r"keep must be None with pattern '2:4', .* got 128"),
        (lambda w: topk_mask([w], [3], "1:4"), ValueError, r"keep must be None with pattern '1:4', .* got \[3\]"),
        (
            lambda w: topk_mask([w], 9, "2:4-transposable"),
            ValueError,
            r"keep must be None with pattern '2:4-tr.* got 9",
        ),
        (
            lambda w: topk_mask([w], 9, "2:4", shard_group=torch.distributed.ProcessGroup(0, 1)),
            ValueError,
            r"keep must be None with pattern '2:4', .* got 9",
        ),
        (lambda w: topk_mask([w], None), TypeError, r"keep must be .* with pattern 'unstructured', got None"),
        (lambda w: topk_mask([w], None, "block:4x1"), TypeError, r"keep must be .* pattern 'block:4x1', got None"),
        (
            lambda w: topk_mask([w], 30, "block:4x1"),
            ValueError,
            r"keep must be a multiple of the block's 4 weights, got 30",
        ),
        (
            lambda w: topk_mask([w], [30], "block:4x1"),
            ValueError,
            r"keep\[0\] must be a multiple of .* 4 weights, got 30",
        ),
        (lambda w: topk_mask([w], 300, "block:4x1"), ValueError, r"keep must be in \[0, 288\], got 300"),
        (
            lambda w: topk_mask([w, w[:, :3]], None, "2:4"),
            ValueError,
            r"weights\[1\] must fit pattern '2:4', got shape \[24, 3\]: its input axis \(3\) is not a multiple of 4",
        ),
        (
            lambda w: topk_mask([w[0]], None, "2:4"),
            ValueError,
            r"weights\[0\] must fit pattern '2:4', got shape \[12\]: it has 1 dimension",
        ),
        (
            lambda w: topk_mask([w[:6]], None, "2:4-transposable"),
            ValueError,
            r"got shape \[6, 12\]: its output axis \(6\) is not a multiple of 4",
        ),
        (
            lambda w: topk_mask([w], 0, "block:32x4"),
            ValueError,
            r"got shape \[24, 12\]: its output axis \(24\) is not a multiple of 32",
        ),
        (
            lambda w: topk_mask([w], None, "4:2"),
            ValueError,
            r"topk_mask: pattern 'n:m' must be .* 1 <= n < m, .* got '4:2'",
        ),
        (
            lambda w: topk_mask([w[:0]], 0, "block:1x2000000000"),
            ValueError,
            r"topk_mask: pattern must have numbers of at most 134217728, got 'block:1x2000000000'",
        ),
        (lambda w: topk_mask([w], 4, "block:0x1"), ValueError, r"R and C of at least 1, .* got 'block:0x1'"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.randn(24, 12, device=DEVICE))
