"""Topologies to the bit, and values gathered and scattered to the bit, against the format as its page says it."""

import copy
import io
import pickle

import pytest
import torch
from torch.utils import _pytree as pytree

import acdc_kernels as acdc
from acdc_kernels.formats import bundles
from acdc_kernels.formats.mask_bits import mask_bytes
from acdc_kernels.ops import build_topology
from acdc_kernels.ops.dtypes import FLOAT_DTYPES
from acdc_kernels.ops.values import cases, reference

from .conftest import DEVICE, ON_CPU, cpu_only, on_cpu

OPS = torch.ops.acdc_kernels
NAMES = ("rank", "position", "bundles", "starts", "offsets", "t_bundles", "t_starts", "t_offsets", "t_permutation")
INTEGERS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}


def same_bits(a, b):
    return (
        a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(INTEGERS[a.dtype]), b.view(INTEGERS[b.dtype]))
    )


def walk(kept_of, rows, cols, panel, block, lanes):
    """One side, an element at a time: (order of its entries, bundles, starts, offsets)."""
    order, found, starts, offsets = [], [], [0], []
    for first in range(0, rows, panel):
        for left in range(0, cols, block):
            count = min(panel, rows - first)
            columns = [[c for c in kept_of(first + r) if left <= c < left + block] for r in range(count)]
            if lanes == 1:  # a group of rows that keep the same columns
                for g in sorted(range(0, count, 4), key=lambda g, columns=columns: -len(columns[g])):
                    found.append([g, g + 1, g + 2, g + 3, len(columns[g]), 0, 0, 0])
                    order += [(first + g + s, c) for c in columns[g] for s in range(4)]
                    offsets += [(c - left) * 64 for c in columns[g]]
                starts.append(len(order))
                continue
            by_kept = sorted(range(count), key=lambda r, columns=columns: -len(columns[r]))
            for i in range(0, count, 4):
                four = by_kept[i : i + 4] + [panel] * (i + 4 - min(i + 4, count))
                each = [columns[r] if r < panel else [] for r in four]
                steps = len(each[3])
                found.append([*four, steps, *(len(e) - steps for e in each[:3])])
                entries = [(first + r, e[t]) for t in range(steps) for r, e in zip(four, each, strict=True)]
                entries += [(first + r, c) for r, e in zip(four, each, strict=True) for c in e[steps:]]
                order += entries
                offsets += [(c - left) * 64 for _, c in entries]
            starts.append(len(order))
    return order, found, starts, offsets


def index_by_walking(mask, meta, format):
    rows, cols, kept, panel, block, t_panel, t_block = meta
    by_row = [row.nonzero().view(-1).tolist() for row in mask]
    by_col = [col.nonzero().view(-1).tolist() for col in mask.t()]
    blocks = format == "bundles-4x1"
    order, *side = walk(lambda r: by_row[r], rows, cols, panel, block, 1 if blocks else 4)
    t_order, *t_side = walk(
        lambda c: [r for r in by_col[c] if not blocks or r % 4 == 0], cols, rows, t_panel, t_block, 4
    )
    place = {at: i for i, at in enumerate(order)}
    flat = mask.reshape(-1)
    rank = [int(flat[:i].sum()) for i in range(0, flat.numel(), 4096)] + [kept]
    permutation = [place[r, c] // (4 if blocks else 1) for c, r in t_order]
    return [rank, [place[r, c] for r in range(rows) for c in by_row[r]], *side, *t_side, permutation]


@pytest.mark.parametrize(("pattern", "shape"), [c for c in cases.PATTERN_SHAPES if c[1][0] * c[1][1] < 20000], ids=str)
def test_the_reference_is_the_format_entry_by_entry(pattern, shape):
    for name in ("a twentieth", "half", "ragged", "all kept", "few rows"):
        mask = cases.mask(shape, name, pattern)
        bits = acdc.pack_mask(mask)
        for blocks in (None, (4, 4, 4, 4), (16, 8, 8, 32)):
            meta = bundles.choose_meta(*shape, int(mask.sum()))
            meta = meta if blocks is None else (*meta[:3], *blocks)
            format = bundles.FORMATS[pattern]
            got = reference.build_bundles(bits, list(meta), format)
            for what, tensor, want in zip(NAMES, got, index_by_walking(mask, meta, format), strict=True):
                assert tensor.tolist() == want, (name, blocks, what)


@pytest.mark.parametrize("name", cases.MASKS)
@pytest.mark.parametrize(("pattern", "shape"), cases.PATTERN_SHAPES, ids=str)
def test_index_is_the_references_to_the_bit(pattern, shape, name, threads):
    mask = cases.mask(shape, name, pattern)
    bits = acdc.pack_mask(mask)
    bits = bits.to(DEVICE)
    topology = build_topology(bits, *shape, pattern)
    assert topology.bits is bits
    assert topology.shape == shape
    assert topology.kept == int(mask.sum())
    metas = [topology.meta, (*topology.meta[:3], 4, 8, 12, 4), (*topology.meta[:3], 64, 512, 256, 128)]
    for meta in metas:
        got = on_cpu(OPS.build_bundles(bits, meta, topology.format))
        want = reference.build_bundles(bits.cpu(), list(meta), topology.format)
        for what, a, b in zip(NAMES, got, want, strict=True):
            assert a.dtype == b.dtype, what
            assert a.shape == b.shape, what
            assert torch.equal(a, b), (meta, what)
    layout = bundles.index_layout(topology.meta, topology.format)
    assert [(list(t.shape), t.dtype) for t in topology.index] == layout


def test_index_of_a_larger_weight(threads):
    for pattern, density in (("unstructured", 0.05), ("unstructured", 0.2), ("block:4x1", 0.1)):
        mask = torch.rand(1536 // (4 if pattern != "unstructured" else 1), 2100) < density
        bits = acdc.pack_mask(mask.repeat_interleave(4, 0) if pattern != "unstructured" else mask)
        topology = build_topology(bits.to(DEVICE), 1536, 2100, pattern)
        want = reference.build_bundles(bits, list(topology.meta), topology.format)
        assert all(torch.equal(a, b) for a, b in zip(on_cpu(topology.index[1:]), want, strict=True))


def test_blocks_are_smaller_for_dense_masks():
    assert bundles.choose_meta(100, 100, 700) == (100, 100, 700, 512, 512, 512, 512)
    assert bundles.choose_meta(100, 100, 701) == (100, 100, 701, 512, 256, 512, 256)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize(("pattern", "shape"), cases.PATTERN_SHAPES, ids=str)
def test_values_are_the_weights_to_the_bit(pattern, shape, dtype, threads):
    g = torch.Generator().manual_seed(1)
    for name in ("a tenth", "nine tenths", "all kept", "all pruned", "ragged"):
        mask = cases.mask(shape, name, pattern)
        weight = torch.randn(shape, generator=g).to(dtype)
        special = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, 1e-40]).to(dtype)
        chosen = torch.rand(shape, generator=g) < 0.2
        weight[chosen] = special[torch.arange(int(chosen.sum())) % 5]
        weight, mask = weight.to(DEVICE), mask.to(DEVICE)
        values, topology = acdc.compress(weight, acdc.pack_mask(mask), pattern)
        assert values.shape == topology.values_shape
        assert values.is_contiguous()
        index = on_cpu(topology.index)
        want = reference.gather_values(weight.cpu(), index, list(topology.meta), topology.format)
        assert same_bits(values.cpu().view(-1), want)
        assert same_bits(values.view(-1)[topology.index[2].long()], weight[mask])
        back = acdc.decompress(values, topology)
        assert back.is_contiguous()
        assert same_bits(back, weight.masked_fill(~mask, 0.0))


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("pattern", bundles.FORMATS)
def test_layouts_give_the_contiguous_bits(pattern, layout, dtype, threads):
    for shape in ((260, 137), (64, 64), (4, 9)):
        mask = cases.mask(shape, "a tenth", pattern).to(DEVICE)
        weight = torch.randn(shape).to(dtype).to(DEVICE)
        want, topology = acdc.compress(weight, acdc.pack_mask(mask), pattern)
        again, same = acdc.compress(cases.LAYOUTS[layout](weight), topology)
        assert same is topology
        assert same_bits(want.view(-1), again.view(-1))
        strided = cases.LAYOUTS[layout](want.view(-1, 1)).squeeze(1)
        assert same_bits(acdc.decompress(strided, topology), weight.masked_fill(~mask, 0.0))
    broadcast = torch.randn(1, 9).to(dtype).to(DEVICE).expand(4, 9)
    values, topology = acdc.compress(broadcast, acdc.pack_mask(torch.ones(4, 9, dtype=torch.bool, device=DEVICE)))
    assert same_bits(acdc.decompress(values, topology), broadcast.contiguous())


@pytest.mark.parametrize("start", [1, 2, 3, 7])
@pytest.mark.parametrize("pattern", bundles.FORMATS)
def test_a_mask_may_start_at_any_byte(pattern, start):
    mask = cases.mask((20, 213), "half", pattern).to(DEVICE)
    aligned = acdc.pack_mask(mask)
    bits = torch.cat((aligned.new_full((start,), 255), aligned))[start:]
    weight = torch.randn(20, 213, device=DEVICE)
    values, topology = acdc.compress(weight, bits, pattern)
    want, index = acdc.compress(weight, aligned, pattern)
    assert same_bits(values, want)
    assert all(map(torch.equal, topology.index, index.index))
    assert same_bits(acdc.decompress(values, topology), weight.masked_fill(~mask, 0.0))


@pytest.mark.parametrize("pattern", bundles.FORMATS)
def test_gather_and_scatter_are_each_others_gradient(pattern):
    mask = cases.mask((12, 9), "half", pattern).to(DEVICE)
    bits = acdc.pack_mask(mask)
    weight = torch.randn(12, 9, dtype=torch.float64, device=DEVICE, requires_grad=True)
    values, topology = acdc.compress(weight, bits, pattern)
    upstream = torch.randn_like(values)
    (grad,) = torch.autograd.grad(values, weight, upstream)
    assert torch.equal(grad, acdc.decompress(upstream, topology))
    leaf = values.detach().requires_grad_()
    dense = acdc.decompress(leaf, topology)
    upstream = torch.randn(9, 12, dtype=torch.float64, device=DEVICE).t()
    (grad,) = torch.autograd.grad(dense, leaf, upstream)
    assert torch.equal(grad, acdc.compress(upstream, topology)[0])
    assert torch.autograd.gradcheck(lambda w: acdc.compress(w, topology)[0], weight)
    assert torch.autograd.gradcheck(lambda v: acdc.decompress(v, topology), leaf)
    assert torch.autograd.gradgradcheck(lambda w: acdc.decompress(acdc.compress(w, topology)[0] ** 3, topology), weight)


def test_a_topology_is_a_frozen_pytree_that_copies_and_pickles():
    bits = acdc.pack_mask(torch.rand(40, 70, device=DEVICE) < 0.2)
    _, topology = acdc.compress(torch.randn(40, 70, device=DEVICE), bits)
    assert topology.nbytes == sum(t.numel() * t.element_size() for t in topology.index[1:])
    assert topology.density == topology.kept / 2800
    assert "kept" in repr(topology)
    assert len(repr(topology)) < 100
    with pytest.raises(AttributeError):
        topology.format = "other"
    copies = [
        copy.deepcopy(topology),
        copy.copy(topology),
        pickle.loads(pickle.dumps(topology)),
        pytree.tree_map(torch.clone, topology),
        pytree.tree_unflatten(*pytree.tree_flatten(topology)),
    ]
    values = torch.randn(topology.kept, device=DEVICE)
    for other in copies:
        assert (other.format, other.meta) == (topology.format, topology.meta)
        assert all(torch.equal(a, b) for a, b in zip(other.index, topology.index, strict=True))
        assert torch.equal(acdc.decompress(values, other), acdc.decompress(values, topology))
    leaves, spec = pytree.tree_flatten(topology)
    assert all(isinstance(leaf, torch.Tensor) for leaf in leaves)
    assert pytree.treespec_loads(pytree.treespec_dumps(spec)) == spec
    assert pytree.tree_map(lambda t: t.dtype, topology).index[0] == torch.uint8


def test_a_topology_is_no_plain_data():
    """An index that a file brings would be trusted by kernels."""
    bits = acdc.pack_mask(torch.rand(8, 9, device=DEVICE) < 0.5)
    values, topology = acdc.compress(torch.randn(8, 9, device=DEVICE), bits)
    file = io.BytesIO()
    torch.save(topology, file)
    file.seek(0)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        torch.load(file, weights_only=True)
    again = acdc.compress(acdc.decompress(values, topology), bits)
    assert torch.equal(again[0], values)
    assert all(map(torch.equal, again[1].index, topology.index))


def test_a_topology_dies_with_its_mask():
    bits = acdc.pack_mask(torch.rand(40, 70, device=DEVICE) < 0.2)
    weight = torch.randn(40, 70, device=DEVICE)
    values, topology = acdc.compress(weight, bits)
    bits[0] ^= 1
    x = torch.randn(3, 70, device=DEVICE)
    for stale in (
        topology,
        copy.deepcopy(topology),
        pickle.loads(pickle.dumps(topology)),
        pytree.tree_map(torch.clone, topology),
    ):
        for call in (
            lambda stale=stale: acdc.decompress(values, stale),
            lambda stale=stale: acdc.compress(weight, stale),
            lambda stale=stale: acdc.sparse_linear(x, values, stale),
        ):
            with pytest.raises(ValueError, match=r"topology must be of the mask as it is now, .* compress again"):
                call()
    assert torch.equal(acdc.decompress(*acdc.compress(weight, bits)), weight * acdc.unpack_mask(bits, (40, 70)))


def test_masks_made_in_inference_mode_have_topologies():
    with torch.inference_mode():
        bits = acdc.pack_mask(torch.rand(8, 9, device=DEVICE) < 0.5)
        values, topology = acdc.compress(torch.ones(8, 9, device=DEVICE), bits)
    assert torch.equal(acdc.decompress(values, topology), acdc.unpack_mask(bits, (8, 9)).float())
    assert not topology.outlived_mask()
    with torch.inference_mode():
        bits[:2] = (
            0  # an inference tensor counts no changes: its kept weights are compared, where nothing waits for that
        )
    if not ON_CPU:
        assert acdc.decompress(values, topology)[acdc.unpack_mask(bits, (8, 9))].isnan().all()
        return
    with pytest.raises(ValueError, match="topology must be of the mask as it is now"):
        acdc.decompress(values, topology)


def test_a_mask_changed_in_inference_mode_is_noticed():
    bits = acdc.pack_mask(torch.rand(8, 9, device=DEVICE) < 0.5)
    topology = acdc.compress(torch.ones(8, 9, device=DEVICE), bits)[1]
    with torch.inference_mode():
        bits[0] ^= 1
        assert topology.outlived_mask()


NO_WAITING = "a GPU's kernels don't wait to raise: tests/cuda has what they do"
STALE = r"index must be of the mask as it is now, got one whose bits were changed since it was built; compress again"


@cpu_only(NO_WAITING)
@pytest.mark.parametrize("op", ["gather_values", "scatter_values"])
@pytest.mark.parametrize("by", ["ops", "reference"])
def test_a_mask_that_keeps_other_numbers_never_reaches_memory(op, by):
    bits, weight = acdc.pack_mask(torch.rand(100, 100) < 0.2), torch.randn(100, 100)
    values, topology = acdc.compress(weight, bits)
    bits[:4] = 255
    run = getattr(OPS if by == "ops" else reference, op)
    with pytest.raises((ValueError, RuntimeError), match=f"{op}: {STALE}"):
        run(weight if op == "gather_values" else values, list(topology.index), list(topology.meta), topology.format)


@cpu_only(NO_WAITING)
def test_a_compiled_compress_refuses_a_mask_that_keeps_other_numbers():
    bits, weight = acdc.pack_mask(torch.rand(100, 100) < 0.2), torch.randn(100, 100)
    _, topology = acdc.compress(weight, bits)
    compiled = torch.compile(lambda w, t: acdc.compress(w, t)[0], backend="aot_eager", fullgraph=True)
    compiled(weight, topology)
    bits[:4] = 255
    with pytest.raises((ValueError, RuntimeError), match=f"gather_values: {STALE}"):
        compiled(weight, topology)


WEIGHT = torch.randn(8, 6).to(DEVICE)
BITS = acdc.pack_mask(cases.mask((8, 6), "half", "block:4x1").to(DEVICE))
VALUES, TOPOLOGY = acdc.compress(WEIGHT, BITS)
BAD = {
    "no tensor": (lambda: acdc.compress([1.0], BITS), TypeError, "compress: weight must be a tensor, got list"),
    "an integer weight": (
        lambda: acdc.compress(WEIGHT.int(), BITS),
        TypeError,
        r"compress: weight must be torch.float32 or .* got torch.int32",
    ),
    "a sparse weight": (
        lambda: acdc.compress(WEIGHT.to_sparse(), BITS),
        TypeError,
        r"got torch.float32 \(torch.sparse_coo\)",
    ),
    "a convolution's weight": (
        lambda: acdc.compress(torch.randn(4, 4, 3, 1), BITS),
        ValueError,
        r"compress: weight must have 2 dimensions \(of a linear layer\), got shape \[4, 4, 3, 1\]",
    ),
    "a short mask": (
        lambda: acdc.compress(WEIGHT, BITS[:-1]),
        ValueError,
        r"compress: bits must have shape \[6\] \(48 elements, one bit each\), got \[5\]",
    ),
    "a boolean mask": (
        lambda: acdc.compress(WEIGHT, torch.ones(8, 6, dtype=torch.bool)),
        TypeError,
        "compress: bits must be of dtype torch.uint8, got torch.bool",
    ),
    "no mask": (lambda: acdc.compress(WEIGHT, None), TypeError, "compress: bits must be a uint8 tensor, got NoneType"),
    "unused bits": (
        lambda: acdc.compress(torch.randn(3, 1), torch.tensor([255], dtype=torch.uint8)),
        ValueError,
        "compress: bits must have zeros in the unused bits",
    ),
    "a weight elsewhere": (
        lambda: acdc.compress(WEIGHT.to("meta"), BITS),
        ValueError,
        f"compress: bits must be on meta, got {DEVICE}",
    ),
    "a weight elsewhere than its topology": (
        lambda: acdc.compress(WEIGHT.to("meta"), TOPOLOGY),
        ValueError,
        f"compress: weight must be on {DEVICE} as the topology, got meta",
    ),
    "a mask without data": (
        lambda: build_topology(BITS.to("meta"), 8, 6),
        ValueError,
        "build_topology: bits must hold a mask, got a tensor on meta",
    ),
    "a pattern without storage": (
        lambda: acdc.compress(WEIGHT, BITS, "2:4"),
        ValueError,
        "compress: pattern must be 'unstructured', 'block:4x1' or 'block:RxC' with R and C of 32, 64 or 128, got '2:4'",
    ),
    "another topology's pattern": (
        lambda: acdc.compress(WEIGHT, TOPOLOGY, "block:4x1"),
        ValueError,
        r"compress: pattern must be the topology's \(bundles\), got 'block:4x1'",
    ),
    "another topology's shape": (
        lambda: acdc.compress(WEIGHT.t(), TOPOLOGY),
        ValueError,
        r"compress: weight must have shape \[8, 6\] as the topology, got \[6, 8\]",
    ),
    "rows that are no groups": (
        lambda: build_topology(torch.zeros(mask_bytes(30), dtype=torch.uint8), 6, 5, "block:4x1"),
        ValueError,
        "build_topology: rows must be a multiple of 4 with pattern 'block:4x1', got 6",
    ),
    "blocks that are not whole": (
        lambda: build_topology(acdc.pack_mask(torch.arange(72).view(12, 6) == 30), 12, 6, "block:4x1"),
        ValueError,
        "build_topology: bits must keep whole blocks .* got rows 4 to 7 that differ",
    ),
    "blocks of whole bytes that are not whole": (
        lambda: build_topology(acdc.pack_mask(torch.arange(128).view(8, 16) == 127), 8, 16, "block:4x1"),
        ValueError,
        "got rows 4 to 7 that differ",
    ),
    "rows of no number": (
        lambda: build_topology(BITS, 8.0, 6),
        TypeError,
        "build_topology: rows must be an int, got float",
    ),
    "negative columns": (
        lambda: build_topology(BITS, 8, -6),
        ValueError,
        "build_topology: cols must be at least 0, got -6",
    ),
    "no topology": (
        lambda: acdc.decompress(VALUES, BITS),
        TypeError,
        "decompress: topology must be a Topology, got Tensor",
    ),
    "too few values": (
        lambda: acdc.decompress(VALUES[1:], TOPOLOGY),
        ValueError,
        rf"decompress: values must have shape \[{TOPOLOGY.kept}\], .* got \[{TOPOLOGY.kept - 1}\]",
    ),
    "integer values": (
        lambda: acdc.decompress(VALUES.int(), TOPOLOGY),
        TypeError,
        "decompress: values must be torch.float32 or .* got torch.int32",
    ),
    "values elsewhere": (
        lambda: acdc.decompress(VALUES.to("meta"), TOPOLOGY),
        ValueError,
        f"decompress: values must be on {DEVICE} as the topology, got meta",
    ),
    "a count that isn't the mask's": (
        lambda: OPS.build_bundles(BITS, [8, 6, 47, 512, 512, 512, 512], "bundles"),
        (RuntimeError, ValueError),
        "build_bundles: bits must",
    ),
    "a pattern that is no text": (
        lambda: acdc.compress(WEIGHT, BITS, pattern=["a"]),
        TypeError,
        "compress: pattern must be a str, got list",
    ),
    "a topology, and a pattern that is no text": (
        lambda: acdc.compress(WEIGHT, TOPOLOGY, pattern=["a"]),
        TypeError,
        "compress: pattern must be a str, got list",
    ),
    "rows that are not whole groups, for compress": (
        lambda: acdc.compress(torch.ones(6, 5), torch.zeros(mask_bytes(30), dtype=torch.uint8), "block:4x1"),
        ValueError,
        "compress: rows must be a multiple of 4 with pattern 'block:4x1', got 6",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    if not ON_CPU and name == "a count that isn't the mask's":
        pytest.skip(NO_WAITING)
    call, error, message = BAD[name]
    with DEVICE, pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("pattern", bundles.FORMATS)
def test_values_of_blocks_are_blocks(pattern):
    values, topology = acdc.compress(WEIGHT, BITS, pattern)
    assert values.shape == ((topology.kept // 4, 4, 1) if pattern == "block:4x1" else (topology.kept,))
    assert torch.equal(acdc.decompress(values, topology), acdc.decompress(values.view(-1), topology))
