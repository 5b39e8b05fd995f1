"""Topologies of large blocks against a walk over the mask, and blocks gathered and scattered to the bit."""

import copy
import io
import pickle

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.utils import _pytree as pytree

import acdc_kernels as acdc
from acdc_kernels.formats import blocks
from acdc_kernels.formats.mask_bits import mask_bytes
from acdc_kernels.ops import build_topology
from acdc_kernels.ops.block_linear import cases
from acdc_kernels.ops.values import cases as matrices

from .conftest import BLOCK_DTYPES, DEVICE

OPS = torch.ops.acdc_kernels
NAMES = ("starts", "columns", "rows", "order", "t_starts", "t_rows", "t_blocks", "t_order")
INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16}

each_dtype = pytest.mark.parametrize("dtype", BLOCK_DTYPES, ids=str)
each_block = pytest.mark.parametrize("block", cases.BLOCKS, ids=str)


def name_of(block):
    return f"block:{block[0]}x{block[1]}"


def same_bits(a, b):
    integers = INTEGERS[a.element_size()]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(integers), b.view(integers))


def built(block, grid=(3, 4), mask="half", seed=0):
    """A mask and its topology, on DEVICE."""
    mask = cases.mask(grid, block, mask, seed).to(DEVICE)
    return mask, build_topology(acdc.pack_mask(mask), *mask.shape, name_of(block))


def special(shape, dtype, seed=0):
    """Numbers of every kind: NaN, infinities, -0.0, denormals and what float16 doesn't hold."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=g, dtype=torch.float64)
    tiny = torch.finfo(dtype).tiny
    kinds = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, 0.0, tiny / 4, -tiny / 2, 7e4, 1e-30]).double()
    chosen = torch.rand(shape, generator=g) < 0.3
    weight[chosen] = kinds[torch.arange(int(chosen.sum())) % len(kinds)]
    return weight.to(dtype).to(DEVICE)


def walk(mask, block):
    """The index, a block at a time."""
    rows, columns = mask.shape[0] // block[0], mask.shape[1] // block[1]
    kept = [[bool(mask[r * block[0], c * block[1]]) for c in range(columns)] for r in range(rows)]
    places = [(r, c) for r in range(rows) for c in range(columns) if kept[r][c]]
    sideways = [(c, r) for c in range(columns) for r in range(rows) if kept[r][c]]

    def side(entries, lines):
        counts = [sum(line == i for line, _ in entries) for i in range(lines)]
        starts = [sum(counts[:i]) for i in range(lines + 1)]
        return starts, sorted(range(lines), key=lambda i: -counts[i])

    starts, order = side(places, rows)
    t_starts, t_order = side(sideways, columns)
    index = starts, [c for _, c in places], [r for r, _ in places], order
    t_index = t_starts, [r for _, r in sideways], [places.index((r, c)) for c, r in sideways], t_order
    return places, [*index, *t_index]


@pytest.mark.parametrize("grid", [*cases.GRIDS, (9, 2), (7, 11)], ids=str)
@each_block
def test_index_is_the_format_entry_by_entry(block, grid):
    for name in cases.MASKS:
        mask, topology = built(block, grid, name)
        places, want = walk(mask.cpu(), block)
        kept = len(places) * block[0] * block[1]
        assert topology.meta == (*mask.shape, kept, *block)
        for what, tensor, entries in zip(NAMES, topology.index[1:], want, strict=True):
            assert tensor.tolist() == entries, (name, what)
        layout = blocks.index_layout(topology.meta)
        assert [(list(t.shape), t.dtype) for t in topology.index] == layout
        assert all(t.device.type == DEVICE.type and t.is_contiguous() for t in topology.index)
        assert (topology.format, topology.block, topology.kind) == ("blocks", block, f"blocks-{block[0]}x{block[1]}")
        assert topology.values_shape == (len(places), *block)
        assert topology.kept == int(mask.sum())


@each_dtype
@each_block
def test_small_values_are_the_weights_to_the_bit(block, dtype):
    for grid, name in (((2, 3), "half"), ((1, 2), "all kept"), ((2, 2), "all pruned"), ((3, 2), "ragged")):
        mask, topology = built(block, grid, name)
        weight = special(mask.shape, dtype)
        values, same = acdc.compress(weight, topology)
        assert same is topology
        assert values.shape == topology.values_shape
        assert values.is_contiguous()
        (r, c), (places, _) = block, walk(mask.cpu(), block)
        for value, (row, column) in zip(values, places, strict=True):
            assert same_bits(value, weight[row * r : (row + 1) * r, column * c : (column + 1) * c])
        for given in (values, values.view(-1)):
            back = acdc.decompress(given, topology)
            assert back.is_contiguous()
            assert same_bits(back, weight.masked_fill(~mask, 0.0))
        fresh = acdc.compress(weight, topology.bits, name_of(block))
        assert same_bits(fresh[0], values)
        assert all(map(torch.equal, fresh[1].index, topology.index))


@pytest.mark.parametrize("to", BLOCK_DTYPES, ids=str)
@each_dtype
def test_small_a_cast_on_the_way_is_torchs(dtype, to):
    mask, topology = built((32, 64), (3, 3))
    weight = special(mask.shape, dtype)
    values = OPS.gather_blocks(weight, topology.index, topology.meta, to)
    want = acdc.compress(weight, topology)[0].to(to)
    assert values.dtype == to
    assert torch.equal(values.isnan(), want.isnan())
    assert same_bits(values.nan_to_num(1.5, torch.inf, -torch.inf), want.nan_to_num(1.5, torch.inf, -torch.inf))


@each_dtype
@pytest.mark.parametrize("how", [*cases.WEIGHTS, "every other", "one row repeated"])
def test_small_weights_of_any_stride(how, dtype):
    layouts = {**matrices.LAYOUTS, **cases.WEIGHTS, "one row repeated": lambda t: t[:1].expand_as(t)}
    for block in ((32, 32), (64, 128)):
        mask, topology = built(block, (2, 3), "ragged")
        weight = layouts[how](special(mask.shape, dtype))
        want = acdc.compress(weight.contiguous(), topology)[0]
        values = acdc.compress(weight, topology)[0]
        assert values.is_contiguous()
        assert same_bits(values, want)


@each_dtype
@pytest.mark.parametrize("layout", matrices.LAYOUTS)
def test_small_values_of_any_stride(layout, dtype):
    _, topology = built((32, 64), (2, 3), "ragged")
    values = special(topology.values_shape, dtype)
    want = acdc.decompress(values, topology)
    assert same_bits(acdc.decompress(matrices.LAYOUTS[layout](values), topology), want)
    flat = matrices.LAYOUTS[layout](values.view(-1, 1)).squeeze(1)
    assert same_bits(acdc.decompress(flat, topology), want)


@pytest.mark.parametrize("start", [1, 2, 3, 7])
def test_a_mask_may_start_at_any_byte(start):
    mask, want = built((32, 64), (3, 3))
    bits = torch.cat((want.bits.new_full((start,), 255), want.bits))[start:]
    topology = build_topology(bits, *mask.shape, "block:32x64")
    assert topology.bits is bits
    assert all(map(torch.equal, topology.index, want.index))


@each_dtype
def test_small_gather_and_scatter_are_each_others_gradient(dtype):
    mask, topology = built((32, 64), (2, 2), "ragged")
    weight = special(mask.shape, dtype).nan_to_num(1.0, 2.0, 3.0).requires_grad_()
    values = acdc.compress(weight, topology)[0]
    upstream = torch.randn(values.mT.shape).to(dtype).to(DEVICE).mT
    (grad,) = torch.autograd.grad(values, weight, upstream)
    assert same_bits(grad, acdc.decompress(upstream, topology))
    leaf = values.detach().requires_grad_()
    upstream = torch.randn(*mask.t().shape).to(dtype).to(DEVICE).t()
    (grad,) = torch.autograd.grad(acdc.decompress(leaf, topology), leaf, upstream)
    assert same_bits(grad, acdc.compress(upstream, topology)[0])
    flat = values.detach().view(-1).requires_grad_()
    (of_flat,) = torch.autograd.grad(acdc.decompress(flat, topology), flat, upstream)
    assert same_bits(of_flat, grad.view(-1))


@pytest.mark.skipif(torch.float32 not in BLOCK_DTYPES, reason="what is cast is float32")
@pytest.mark.parametrize("to", [d for d in BLOCK_DTYPES if d.itemsize == 2], ids=str)
def test_small_the_gradient_of_a_cast_has_the_weights_dtype(to):
    mask, topology = built((32, 64), (2, 2), "ragged")
    weight = torch.randn(mask.shape).to(DEVICE).requires_grad_()
    values = OPS.gather_blocks(weight, topology.index, topology.meta, to)
    upstream = torch.randn(values.shape).to(to).to(DEVICE)
    (grad,) = torch.autograd.grad(values, weight, upstream)
    assert same_bits(grad, acdc.decompress(upstream.float(), topology))


@pytest.mark.skipif(torch.float64 not in BLOCK_DTYPES, reason="differences are taken in float64")
def test_gradcheck():
    mask, topology = built((32, 32), (1, 2), "one kept")
    weight = torch.randn(mask.shape, dtype=torch.float64, device=DEVICE, requires_grad=True)
    values = acdc.compress(weight, topology)[0].detach().requires_grad_()
    fast = {"fast_mode": True}
    assert torch.autograd.gradcheck(lambda w: acdc.compress(w, topology)[0], weight, **fast)
    assert torch.autograd.gradcheck(lambda v: acdc.decompress(v, topology), values, **fast)
    assert torch.autograd.gradgradcheck(
        lambda w: acdc.decompress(acdc.compress(w, topology)[0] ** 3, topology), weight, **fast
    )


@each_dtype
def test_opcheck(dtype):
    mask, topology = built((32, 32), (2, 2), "ragged")
    weight = torch.randn(mask.shape).to(dtype).to(DEVICE)
    where = list(topology.index), list(topology.meta)
    for to in (dtype, torch.float32):
        torch.library.opcheck(OPS.gather_blocks.default, (weight.clone().requires_grad_(), *where, to))
    values = torch.randn(topology.kept).to(dtype).to(DEVICE).requires_grad_()
    torch.library.opcheck(OPS.scatter_blocks.default, (values, *where))


def test_a_topology_is_a_frozen_pytree_that_copies_and_pickles():
    mask, topology = built((64, 32))
    assert topology.nbytes == sum(t.numel() * t.element_size() for t in topology.index[1:])
    assert topology.density == topology.kept / mask.numel()
    assert repr(topology).startswith("Topology('blocks-64x32', [192, 128], kept=")
    with pytest.raises(AttributeError):
        topology.format = "other"
    values = torch.randn(topology.values_shape).to(DEVICE)
    for other in (
        copy.deepcopy(topology),
        copy.copy(topology),
        pickle.loads(pickle.dumps(topology)),
        pytree.tree_map(torch.clone, topology),
        pytree.tree_unflatten(*pytree.tree_flatten(topology)),
    ):
        assert (other.format, other.meta) == (topology.format, topology.meta)
        assert all(torch.equal(a, b) for a, b in zip(other.index, topology.index, strict=True))
        assert torch.equal(acdc.decompress(values, other), acdc.decompress(values, topology))
    leaves, spec = pytree.tree_flatten(topology)
    assert len(leaves) == 9
    assert pytree.treespec_loads(pytree.treespec_dumps(spec)) == spec
    file = io.BytesIO()
    torch.save(topology, file)
    file.seek(0)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        torch.load(file, weights_only=True)


def test_a_topology_dies_with_its_mask():
    mask, topology = built((32, 64))
    weight = torch.randn(mask.shape).to(DEVICE)
    values, x = acdc.compress(weight, topology)[0], torch.randn(3, mask.shape[1]).to(DEVICE)
    topology.bits[0] ^= 1
    for stale in (topology, copy.deepcopy(topology), pickle.loads(pickle.dumps(topology))):
        for call in (
            lambda stale=stale: acdc.decompress(values, stale),
            lambda stale=stale: acdc.compress(weight, stale),
            lambda stale=stale: acdc.sparse_linear(x, values, stale),
        ):
            with pytest.raises(ValueError, match=r"topology must be of the mask as it is now, .* compress again"):
                call()


def scaled(weight, topology):
    return acdc.decompress(acdc.compress(weight, topology)[0] * 2, topology)


def test_new_phases_recompile_once():
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(scaled, fullgraph=True, backend=counter)
    for name in ("half", "ragged", "all kept", "few columns", "empty rows and columns"):
        mask, topology = built((32, 64), (3, 4), name)
        weight = torch.randn(mask.shape).to(BLOCK_DTYPES[-1]).to(DEVICE)
        assert same_bits(compiled(weight, topology), (weight * 2).masked_fill(~mask, 0.0))
    assert 1 <= counter.frame_count <= 2


def torn(block, at, grid=(3, 3)):
    """A mask of which one weight of a block isn't what the others are."""
    mask = cases.mask(grid, block, "ragged")
    mask[at] ^= True
    return mask


@each_block
def test_torn_blocks_are_found_wherever_they_are_torn(block):
    (r, c), kept, pruned = block, (1, 1), (0, 2)
    for row, column in (kept, pruned):
        for dr, dc in ((0, 0), (0, c - 1), (r - 1, 0), (r - 1, c - 1), (r // 2, 9)):
            mask = torn(block, (row * r + dr, column * c + dc)).to(DEVICE)
            message = (
                f"build_topology: bits must keep whole blocks of {r} rows and {c} columns with pattern "
                f"'{name_of(block)}', got a part of the block at row {row * r} and column {column * c}"
            )
            with pytest.raises(ValueError) as raised:  # noqa: PT011
                build_topology(acdc.pack_mask(mask), *mask.shape, name_of(block))
            assert str(raised.value) == message


MASK, TOPOLOGY = built((32, 64), (2, 2), "ragged")
WEIGHT = torch.ones(MASK.shape, dtype=BLOCK_DTYPES[0], device=DEVICE)
VALUES = torch.ones(TOPOLOGY.values_shape, dtype=BLOCK_DTYPES[0], device=DEVICE)
PATTERNS = "pattern must be 'unstructured', 'block:4x1' or 'block:RxC' with R and C of 32, 64 or 128, got"


def zeros(*shape):
    return torch.zeros(mask_bytes(shape[0] * shape[1]), dtype=torch.uint8, device=DEVICE), *shape


BAD = {
    "rows": (
        lambda: build_topology(*zeros(48, 64), "block:32x64"),
        ValueError,
        "build_topology: rows must be a multiple of 32 with pattern 'block:32x64', got 48",
    ),
    "columns": (
        lambda: build_topology(*zeros(64, 96), "block:32x64"),
        ValueError,
        "build_topology: cols must be a multiple of 64 with pattern 'block:32x64', got 96",
    ),
    "rows, for compress": (
        lambda: acdc.compress(torch.ones(48, 64, device=DEVICE), zeros(48, 64)[0], "block:32x64"),
        ValueError,
        "compress: rows must be a multiple of 32 with pattern 'block:32x64', got 48",
    ),
    **{
        f"pattern {pattern}": (
            lambda pattern=pattern: build_topology(*zeros(64, 64), pattern),
            ValueError,
            f"build_topology: {PATTERNS} '{pattern}'",
        )
        for pattern in ("block:16x16", "block:32", "block:32x256", "block:64x48", "blocks", "2:4")
    },
    "a pattern of no topology": (
        lambda: acdc.compress(WEIGHT, TOPOLOGY, "block:16x16"),
        ValueError,
        f"compress: {PATTERNS} 'block:16x16'",
    ),
    "another topology's blocks": (
        lambda: acdc.compress(WEIGHT, TOPOLOGY, "block:64x32"),
        ValueError,
        "compress: pattern must be the topology's (blocks-32x64), got 'block:64x32'",
    ),
    "another topology's format": (
        lambda: acdc.compress(WEIGHT, TOPOLOGY, "block:4x1"),
        ValueError,
        "compress: pattern must be the topology's (blocks-32x64), got 'block:4x1'",
    ),
    "another topology's shape": (
        lambda: acdc.compress(WEIGHT.t(), TOPOLOGY),
        ValueError,
        "compress: weight must have shape [64, 128] as the topology, got [128, 64]",
    ),
    "too few values": (
        lambda: acdc.decompress(VALUES[1:], TOPOLOGY),
        ValueError,
        "decompress: values must have shape [3, 32, 64], one element a kept weight of the topology, got [2, 32, 64]",
    ),
    "a weight elsewhere": (
        lambda: acdc.compress(WEIGHT.to("meta"), TOPOLOGY),
        ValueError,
        f"compress: weight must be on {TOPOLOGY.bits.device} as the topology, got meta",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, error, message = BAD[name]
    with pytest.raises(error) as raised:
        call()
    assert str(raised.value) == message


def test_a_topologys_own_pattern_is_fine():
    assert acdc.compress(WEIGHT, TOPOLOGY, "block:32x64")[1] is TOPOLOGY
