"""The products of blocks against sums over the kept weights in float64.

Sums are off by 2 eps sqrt(k + 1) sum|terms| + (k + 1) 2^-149 at most, with k the terms of a sum and eps = 2^-23: they are
taken in float32, whatever the inputs. 16-bit results are rounded once, by half a unit in their last place. NaN and Inf
must be where they are. Tests named ``small`` are enough for a slow backend, and ``ACDC_TEST_BLOCK_DTYPES`` says which
dtypes it has ("float32,float16").
"""

import math

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.utils.flop_counter import FlopCounterMode

import acdc_kernels as acdc
from acdc_kernels.ops.block_linear import cases
from acdc_kernels.ops.values import cases as matrices

from .conftest import BLOCK_DTYPES, DEVICE

OPS = torch.ops.acdc_kernels
EPS, DENORMAL = 2.0**-23, 2.0**-149
DTYPES = [d for d in BLOCK_DTYPES if d != torch.float64]
SIXTEEN = [d for d in DTYPES if d != torch.float32]

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_small = pytest.mark.parametrize("block", cases.SMALL, ids=str)


class Layer:
    """Weight, values, bias and topology of one case on DEVICE. What is pruned of the weight is NaN: nobody may read it."""

    def __init__(self, block, grid=(3, 4), mask="half", dtype=torch.float32, whole_numbers=False, seed=0):
        self.g = torch.Generator().manual_seed(seed)
        self.block, self.grid, self.dtype, self.whole_numbers = block, grid, dtype, whole_numbers
        self.shape = grid[0] * block[0], grid[1] * block[1]
        self.mask = cases.mask(grid, block, mask, seed)
        self.clean = self.numbers(*self.shape).masked_fill(self.mask.logical_not().to(DEVICE), 0.0)
        self.weight = self.clean.masked_fill(self.mask.logical_not().to(DEVICE), math.nan)
        bits = acdc.pack_mask(self.mask.to(DEVICE))
        self.values, self.topology = acdc.compress(self.weight, bits, f"block:{block[0]}x{block[1]}")
        self.bias = self.numbers(self.shape[0])
        self.args = list(self.topology.index), list(self.topology.meta)

    def numbers(self, *shape):
        if self.whole_numbers:
            return torch.randint(-8, 9, shape, generator=self.g).to(self.dtype).to(DEVICE)
        return torch.randn(shape, generator=self.g).to(self.dtype).to(DEVICE)

    def x(self, *leading):
        return self.numbers(*leading, self.shape[1])

    def grad(self, *leading):
        return self.numbers(*leading, self.shape[0])

    def forward(self, x, bias, values=None):
        return OPS.block_linear(x, self.values if values is None else values, *self.args, bias, "")

    def backward(self, grad, x, values=None, need_input=True, need_weight=True, whole=False, dtype=None):
        values, dtype = self.values if values is None else values, dtype or self.dtype
        return OPS.block_linear_backward(grad, x, values, *self.args, need_input, need_weight, whole, dtype, "", "")


class Exact:
    """The products in float64, block by block over the mask, and the sums of their terms' magnitudes."""

    def __init__(self, layer, x, grad, clean=None):
        self.layer, self.leading = layer, x.shape[:-1]
        clean = (layer.clean if clean is None else clean).detach().cpu().double()
        rows, cols = layer.shape
        n = math.prod(self.leading)
        x, grad = x.detach().cpu().double().reshape(n, cols), grad.detach().cpu().double().reshape(n, rows)
        self.y, self.x, self.weight = [], [], []
        for of in (lambda t: t, torch.abs):
            y, into, weight = x.new_zeros(n, rows), x.new_zeros(n, cols), x.new_zeros(rows, cols)
            for row in range(0, rows, layer.block[0]):
                for col in range(0, cols, layer.block[1]):
                    if layer.mask[row, col]:
                        r, c = slice(row, row + layer.block[0]), slice(col, col + layer.block[1])
                        y[:, r] += of(x[:, c]) @ of(clean[r, c]).t()
                        into[:, c] += of(grad[:, r]) @ of(clean[r, c])
                        weight[r, c] = of(grad[:, r]).t() @ of(x[:, c])
            self.y.append(y.view(*self.leading, rows))
            self.x.append(into.view(*self.leading, cols))
            self.weight.append(weight)

    def forward(self, y, bias):
        want, sizes = self.y
        if bias is not None:
            bias = bias.detach().cpu().double()
            want, sizes = want + bias, sizes + bias.abs()
        close(y, want, sizes, self.layer.mask.sum(1) + (bias is not None), self.layer.dtype)

    def input(self, grad_x):
        close(grad_x, *self.x, self.layer.mask.sum(0), self.layer.dtype)

    def whole(self, grad_weight, dtype=None):
        """A dense gradient: +0.0 where nothing is kept."""
        close(grad_weight, *self.weight, torch.tensor(math.prod(self.leading)), dtype or self.layer.dtype)
        pruned = grad_weight.cpu()[~self.layer.mask]
        assert not pruned.any()
        assert not pruned.signbit().any()

    def blocks(self, grad_values, dtype=None):
        want, sizes = (self.cut(t) for t in self.weight)
        close(grad_values, want, sizes, torch.tensor(math.prod(self.leading)), dtype or self.layer.dtype)

    def cut(self, dense):
        (r, c), grid = self.layer.block, self.layer.grid
        kept = self.layer.mask[::r, ::c]
        return dense.view(grid[0], r, grid[1], c).transpose(1, 2)[kept]


def close(got, want, sizes, terms, dtype):
    assert got.dtype == dtype
    assert got.device.type == DEVICE.type
    assert got.is_contiguous()
    assert got.shape == want.shape
    got = got.detach().cpu().double()
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got[want.isinf()], want[want.isinf()])
    finite, terms = want.isfinite(), (terms + 1).double().expand(want.shape)
    bound = 2 * EPS * terms.sqrt() * sizes + terms * DENORMAL
    if dtype != torch.float32:
        half, smallest = torch.finfo(dtype).eps / 2, torch.finfo(dtype).tiny * torch.finfo(dtype).eps
        bound += half * (want.abs() + bound) + smallest / 2
    error = (got - want).abs()
    worst = ((error - bound)[finite]).max() if finite.any() else 0.0
    assert worst <= 0, f"worst {float((error / bound)[finite].max()):.2f} times the bound"


def check(layer, n):
    """All three products, values as blocks and as the whole weight, both gradients alone, and nothing written to."""
    x, grad = layer.x(n), layer.grad(n)
    given = x, grad, layer.values, layer.weight, layer.bias
    before = [t.clone() for t in given]
    exact = Exact(layer, x, grad)
    for values in (layer.values, layer.values.view(-1), layer.weight):
        y = layer.forward(x, layer.bias, values)
        exact.forward(y, layer.bias)
        exact.forward(layer.forward(x, None, values), None)
        grad_x, grad_values = layer.backward(grad, x, values)
        exact.input(grad_x)
        exact.blocks(grad_values)
    grad_x, grad_weight = layer.backward(grad, x, layer.weight, whole=True)
    exact.input(grad_x)
    exact.whole(grad_weight)
    assert all(same(a, b) for a, b in zip(before, given, strict=True))


def same(a, b):
    """The same bits, NaN and all."""
    size = {2: torch.int16, 4: torch.int32}[a.element_size()]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(size), b.view(size))


@each_dtype
@each_small
def test_small_products(block, dtype):
    for grid, mask, n in (((2, 3), "half", 33), ((3, 2), "empty rows and columns", 17), ((1, 2), "all kept", 1)):
        check(Layer(block, grid, mask, dtype), n)
    for mask, n in (("all pruned", 5), ("half", 0)):
        check(Layer(block, (2, 2), mask, dtype), n)


@each_dtype
@pytest.mark.parametrize("n", cases.SAMPLES)
@pytest.mark.parametrize("block", [(32, 64), (128, 128)], ids=str)
def test_every_number_of_samples(block, n, dtype):
    check(Layer(block, (2, 3), "half", dtype, seed=n), n)


@each_dtype
@pytest.mark.parametrize("block", cases.BLOCKS, ids=str)
def test_every_block_and_mask(block, dtype):
    for mask in cases.MASKS:
        check(Layer(block, (3, 4), mask, dtype), 19)


@each_dtype
@each_small
def test_every_grid(block, dtype):
    for grid in cases.GRIDS:
        for mask in ("all kept", "ragged"):
            check(Layer(block, grid, mask, dtype), 18)


@each_dtype
@pytest.mark.parametrize("block", cases.BLOCKS, ids=str)
def test_small_whole_numbers_are_rounded_once(block, dtype):
    """Every sum is exact in float32, so the result is the sum's nearest number, whatever the order."""
    layer = Layer(block, (2, 3), "ragged", dtype, whole_numbers=True)
    x, grad = layer.x(37), layer.grad(37)
    exact = Exact(layer, x, grad)
    assert torch.equal(layer.forward(x, layer.bias).cpu(), (exact.y[0] + layer.bias.cpu().double()).to(dtype))
    grad_x, grad_weight = layer.backward(grad, x, layer.weight, whole=True)
    assert torch.equal(grad_x.cpu(), exact.x[0].to(dtype))
    assert torch.equal(grad_weight.cpu(), exact.weight[0].to(dtype))


@pytest.mark.parametrize("dtype", SIXTEEN, ids=str)
def test_small_sums_pass_what_16_bits_hold(dtype):
    """Terms of 2000 * 64 that cancel: partial sums are beyond float16, and not to be had in 8 bits."""
    layer = Layer((32, 32), (1, 2), "all kept", dtype)
    signs = torch.tensor([1.0, -1.0]).repeat_interleave(32).to(DEVICE)
    layer.weight.copy_((64 * signs).expand(32, 64).to(dtype))
    x = torch.full((3, 64), 2000.0, device=DEVICE).to(dtype)
    x[:, 0] += 8.0
    want = (x[:, 0] - x[:, 1]).double() * 64
    y = layer.forward(x, None, layer.weight)
    assert torch.equal(y.double(), want.view(-1, 1).expand(3, 32))
    grad = (1000 * signs[:1].expand(200, 32) * torch.tensor([1.0, -1.0], device=DEVICE).repeat(100).view(-1, 1)).to(
        dtype
    )
    _, of_weight = layer.backward(grad, x[:1].expand(200, 64), layer.weight, whole=True)
    assert not of_weight.any()


@each_dtype
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True), (False, False)], ids=str)
def test_small_what_is_not_needed_is_empty(needs, whole, dtype):
    layer = Layer((32, 64), dtype=dtype)
    x, grad = layer.x(21), layer.grad(21)
    both = layer.backward(grad, x, whole=whole)
    got = layer.backward(grad, x if needs[1] else grad, None, *needs, whole=whole)
    for need, tensor, want in zip(needs, got, both, strict=True):
        if need:
            assert same(tensor, want)
        else:
            assert tensor.shape == (0,)
            assert tensor.dtype == dtype


@pytest.mark.parametrize("dtype", SIXTEEN, ids=str)
@each_small
def test_small_a_float32_gradient_of_16_bits_is_the_sum_itself(block, dtype):
    """As under autocast: straight from the accumulator, not through 16 bits."""
    layer = Layer(block, dtype=dtype)
    x, grad = layer.x(45), layer.grad(45)
    exact = Exact(layer, x, grad)
    grad_x, grad_weight = layer.backward(grad, x, whole=True, dtype=torch.float32)
    exact.input(grad_x)
    exact.whole(grad_weight, torch.float32)
    assert not same(grad_weight, grad_weight.to(dtype).float())
    exact.blocks(layer.backward(grad, x, whole=False, dtype=torch.float32)[1], torch.float32)
    nothing = layer.backward(grad, x, need_weight=False, dtype=torch.float32)[1]
    assert nothing.dtype == torch.float32


@each_dtype
@pytest.mark.parametrize("how", cases.WEIGHTS)
@each_small
def test_small_whole_weights_of_any_stride(block, how, dtype):
    layer = Layer(block, (2, 3), "ragged", dtype)
    x, grad = layer.x(23), layer.grad(23)
    weight = cases.WEIGHTS[how](layer.weight)
    exact = Exact(layer, x, grad)
    exact.forward(layer.forward(x, layer.bias, weight), layer.bias)
    for whole in (False, True):
        grad_x, grad_weight = layer.backward(grad, x, weight, whole=whole)
        exact.input(grad_x)
        (exact.whole if whole else exact.blocks)(grad_weight)


@each_dtype
@pytest.mark.parametrize("n", [1, 16, 53])
@pytest.mark.parametrize("layout", matrices.LAYOUTS)
def test_layouts(layout, n, dtype):
    lay = matrices.LAYOUTS[layout]
    for block in ((32, 32), (64, 128)):
        layer = Layer(block, (3, 2), "half", dtype)
        x, grad = lay(layer.x(n)), lay(layer.grad(n))
        bias = matrices.LAYOUTS["every other"](layer.bias.view(1, -1)).squeeze(0)
        exact = Exact(layer, x, grad)
        exact.forward(layer.forward(x, bias), layer.bias)
        exact.forward(acdc.sparse_linear(x, lay(layer.values), layer.topology, bias), layer.bias)
        grad_x, grad_values = layer.backward(grad, x)
        exact.input(grad_x)
        exact.blocks(grad_values)
        exact.whole(layer.backward(grad, x, whole=True)[1])


@each_dtype
def test_small_numbers_that_are_repeated(dtype):
    """What sum().backward() gives: a gradient of stride 0."""
    layer = Layer((32, 64), dtype=dtype)
    x, grad = layer.x(1).expand(19, -1), layer.grad(1)[:, :1].expand(19, layer.shape[0])
    exact = Exact(layer, x, grad)
    exact.forward(layer.forward(x, layer.bias[:1].expand(layer.shape[0])), layer.bias[:1].expand(layer.shape[0]))
    grad_x, grad_values = layer.backward(grad, x)
    exact.input(grad_x)
    exact.blocks(grad_values)


@each_dtype
@pytest.mark.parametrize("leading", [(), (0,), (1,), (3, 0, 2), (2, 3), (1, 5, 1), (3, 1, 2, 7)], ids=str)
def test_leading_dimensions(leading, dtype):
    layer = Layer((32, 64), (2, 2), "half", dtype)
    x, grad = layer.x(*leading), layer.grad(*leading)
    exact = Exact(layer, x, grad)
    exact.forward(acdc.sparse_linear(x, layer.values, layer.topology, layer.bias), layer.bias)
    grad_x, grad_values = layer.backward(grad, x)
    exact.input(grad_x)
    exact.blocks(grad_values)
    if len(leading) > 1:
        x, grad = (t.transpose(0, -2).contiguous().transpose(0, -2) for t in (x, grad))
        exact.forward(layer.forward(x, layer.bias), layer.bias)
        exact.input(layer.backward(grad, x)[0])
        exact.blocks(layer.backward(grad, x)[1])


@each_dtype
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mask", ["half", "one kept", "few columns", "all pruned", "empty rows and columns"])
def test_small_non_finite_inputs_reach_what_keeps_a_block_for_them(mask, value, dtype):
    for block, n in (((32, 32), 37), ((64, 128), 5)):
        layer = Layer(block, (3, 3), mask, dtype)
        x, grad = layer.x(n), layer.grad(n)
        for t in (x, grad):
            t[n // 2, t.shape[1] // 3] = value
            t[0, -1] = -value
            t[-1, 0] = value
        for broken_x, broken_grad in ((x, grad), (layer.x(n), grad), (x, layer.grad(n))):
            exact = Exact(layer, broken_x, broken_grad)
            exact.forward(layer.forward(broken_x, layer.bias), layer.bias)
            grad_x, grad_weight = layer.backward(broken_grad, broken_x, whole=True)
            exact.input(grad_x)
            exact.whole(grad_weight)


@each_dtype
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_small_non_finite_weights_reach_their_row_and_column(value, dtype):
    layer = Layer((32, 64), (3, 3), "ragged", dtype)
    for row, col in layer.mask.nonzero()[[0, int(layer.mask.sum()) // 2, -1]].tolist():
        layer.clean[row, col] = layer.weight[row, col] = value
    layer.bias[5] = -value
    x, grad = layer.x(21), layer.grad(21)
    x[3] = 0.0  # times Inf: NaN
    exact = Exact(layer, x, grad)
    exact.forward(layer.forward(x, layer.bias, layer.weight), layer.bias)
    exact.input(layer.backward(grad, x, layer.weight)[0])


@each_dtype
def test_same_bits_every_time(dtype):
    for n in (3, 257):
        layer = Layer((32, 64), (3, 4), "half", dtype)
        x, grad = layer.x(n), layer.grad(n)
        first = [layer.forward(x, layer.bias), *layer.backward(grad, x, whole=True)]
        for _ in range(3):
            again = [layer.forward(x, layer.bias), *layer.backward(grad, x, whole=True)]
            assert all(same(a, b) for a, b in zip(first, again, strict=True))


def public(layer, weight, x, bias):
    values, topology = acdc.compress(weight, layer.topology)
    return acdc.sparse_linear(x, values, topology, bias)


@each_dtype
@pytest.mark.parametrize("needs", range(1, 8))
def test_small_gradients_are_those_of_the_dense_layer(needs, dtype):
    layer = Layer((32, 64), (2, 2), "ragged", dtype)
    grad = layer.grad(3, 7)
    leaves = [t.requires_grad_(bool(needs >> i & 1)) for i, t in enumerate((layer.x(3, 7), layer.weight, layer.bias))]
    x, weight, bias = leaves
    y = public(layer, weight, x, bias)
    y.backward(grad)
    exact = Exact(layer, x, grad)
    exact.forward(y, bias)
    assert [t.grad is not None for t in leaves] == [t.requires_grad for t in leaves]
    if x.requires_grad:
        exact.input(x.grad)
    if weight.requires_grad:
        exact.whole(weight.grad)
    if bias.requires_grad:
        torch.testing.assert_close(bias.grad, grad.sum((0, 1)))


@each_dtype
def test_small_only_what_is_asked_for_is_computed(dtype):
    """torch.autograd.grad of one of the leaves."""
    layer = Layer((32, 64), (2, 2), "ragged", dtype)
    grad, leaves = layer.grad(9), [layer.x(9).requires_grad_(), layer.values.clone().requires_grad_()]
    want = layer.backward(grad, leaves[0].detach())
    for i in range(2):
        y = acdc.sparse_linear(*leaves, layer.topology, layer.bias)
        (got,) = torch.autograd.grad(y, leaves[i], grad)
        assert same(got, want[i])


@pytest.mark.skipif(torch.float32 not in DTYPES, reason="what autocast casts is float32")
@pytest.mark.parametrize("dtype", SIXTEEN, ids=str)
def test_small_autocast_computes_in_its_dtype(dtype):
    layer = Layer((32, 64), (2, 2), "ragged")
    x, weight, bias = layer.x(11).requires_grad_(), layer.weight.requires_grad_(), layer.bias.requires_grad_()
    with torch.autocast(DEVICE.type, dtype):
        y = public(layer, weight, x, bias)
        mixed = acdc.sparse_linear(x.detach().to(dtype), layer.values, layer.topology)
    assert y.dtype == mixed.dtype == dtype
    grad = layer.grad(11).to(dtype)
    y.backward(grad)
    layer.dtype = dtype
    exact = Exact(layer, x.detach().to(dtype), grad, layer.clean.to(dtype))
    exact.forward(y, bias.detach().to(dtype))
    exact.forward(mixed, None)
    assert x.grad.dtype == weight.grad.dtype == bias.grad.dtype == torch.float32
    exact.input(x.grad.to(dtype))
    exact.whole(weight.grad.to(dtype))
    with torch.autocast(DEVICE.type, dtype), torch.autocast(DEVICE.type, enabled=False):
        assert public(layer, weight, x, bias).dtype == torch.float32


def test_flops_are_two_a_kept_weight_and_sample():
    layer = Layer((32, 64), (2, 2), "ragged", DTYPES[0])
    for needs_input, needs_values in ((True, True), (True, False), (False, True), (False, False)):
        x, values = layer.x(3, 5).requires_grad_(needs_input), layer.values.clone().requires_grad_(needs_values)
        with FlopCounterMode(display=False) as counter:
            y = acdc.sparse_linear(x, values, layer.topology, layer.bias.clone().requires_grad_())
            y.sum().backward()
        assert counter.get_total_flops() == 2 * 15 * layer.topology.kept * (1 + needs_input + needs_values)


def test_no_input_is_kept_for_a_backward_that_needs_none():
    layer = Layer((32, 64), (2, 2), "ragged", DTYPES[0])
    x, values = layer.x(40), layer.values.clone()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        acdc.sparse_linear(x.clone().requires_grad_(), values, layer.topology)
        assert set(saved) == {values.data_ptr()}
        saved.clear()
        acdc.sparse_linear(x, values.requires_grad_(), layer.topology)
        assert x.data_ptr() in saved  # itself: no copy
        saved.clear()
        with torch.no_grad():
            acdc.sparse_linear(x, values, layer.topology)
        assert not saved


def test_double_backward_is_an_error_that_says_so():
    layer = Layer((32, 64), (2, 2), "ragged", DTYPES[0])
    x, values = layer.x(4).requires_grad_(), layer.values.clone().requires_grad_()
    for leaf in (x, values):
        y = acdc.sparse_linear(x, values, layer.topology)
        (grad,) = torch.autograd.grad(y.square().sum(), leaf, create_graph=True)
        with pytest.raises(RuntimeError, match="sparse_linear: double backward is not supported"):
            grad.sum().backward()
        y = OPS.block_linear(x, values, *layer.args, None, "")
        (grad,) = torch.autograd.grad(y.square().sum(), leaf, create_graph=True)
        with pytest.raises(RuntimeError, match="sparse_linear: double backward is not supported"):
            grad.sum().backward()


def test_backward_twice_needs_retain_graph_as_torchs():
    layer = Layer((32, 64), (2, 2), "ragged", DTYPES[0])
    x = layer.x(4).requires_grad_()
    y = acdc.sparse_linear(x, layer.values, layer.topology).sum()
    y.backward(retain_graph=True)
    once = x.grad.clone()
    y.backward()
    assert torch.equal(x.grad, once * 2)
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


def test_what_changes_between_forward_and_backward_is_noticed():
    layer = Layer((32, 64), (2, 2), "ragged", DTYPES[0])
    for change in (0, 1):
        tensors = [layer.x(4), layer.values.clone()]
        tensors[1 - change].requires_grad_()
        y = acdc.sparse_linear(*tensors, layer.topology)
        tensors[change].zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()
    x = layer.x(4).requires_grad_()
    y = acdc.sparse_linear(x, layer.values, layer.topology)
    layer.topology.bits.zero_()
    with pytest.raises(RuntimeError, match="backward must find the mask of its forward, but it was changed in place"):
        y.sum().backward()


@each_dtype
def test_opcheck(dtype):
    layer = Layer((32, 64), (2, 2), "ragged", dtype)
    x, grad = layer.x(2, 3), layer.grad(2, 3)
    for values in (layer.values, layer.values.view(-1), layer.clean):
        leaves = [t.clone().requires_grad_() for t in (x, values, layer.bias)]
        torch.library.opcheck(OPS.block_linear.default, (*leaves[:2], *layer.args, leaves[2], ""))
    for needs in ((True, True), (True, False), (False, True)):
        for whole, into in ((False, dtype), (True, torch.float32)):
            args = grad, x, layer.values, *layer.args, *needs, whole, into, "", ""
            torch.library.opcheck(OPS.block_linear_backward.default, args)


def whole_layer(weight, x, bias, topology):
    values, same = acdc.compress(weight, topology)
    return acdc.sparse_linear(x, values, same, bias), acdc.decompress(values * 2, same)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compiles_to_one_graph_with_gradients(backend):
    layer = Layer((32, 64), (2, 3), "ragged", DTYPES[0])
    leaves = [t.requires_grad_() for t in (layer.clean, layer.x(3, 9), layer.bias)]
    upstream = layer.grad(3, 9), layer.numbers(*layer.shape)
    torch._dynamo.reset()
    compiled = torch.compile(whole_layer, fullgraph=True, backend=backend)
    results = []
    for function in (compiled, whole_layer):
        out = function(*leaves, layer.topology)
        results.append([*out, *torch.autograd.grad(out, leaves, upstream)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


def test_new_phases_recompile_once():
    """The number of blocks changes with every phase: after the second it is dynamic."""
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(whole_layer, fullgraph=True, backend=counter)
    for seed, grid_mask in enumerate(("half", "ragged", "all kept", "few columns", "half", "empty rows and columns")):
        layer = Layer((32, 64), (3, 4), grid_mask, DTYPES[0], seed=seed)
        y, dense = compiled(layer.clean, layer.x(6), layer.bias, layer.topology)
        assert y.shape == (6, layer.shape[0])
        assert torch.equal(dense, layer.clean * 2)
    assert 1 <= counter.frame_count <= 2


def bad():
    layer = Layer((32, 64), (2, 2), "ragged", DTYPES[0])
    x, values, topology, bias = layer.x(3), layer.values, layer.topology, layer.bias
    own, other = str(DTYPES[0]), DTYPES[1]
    either = "torch.float32 or torch.bfloat16 or torch.float16"
    sizes = r"must have shape \[3, 32, 64\], one element a kept weight of the topology, got"
    return {
        "float64": ((x.double(), values, topology), TypeError, f"x must be {either}, got torch.float64"),
        "whole numbers": ((x.int(), values, topology), TypeError, f"x must be {either}, got torch.int32"),
        "no tensor": (([1.0], values, topology), TypeError, f"x must be {either}, got list"),
        "another dtype": ((x, values.to(other), topology), TypeError, f"values must be {own}, got {other}"),
        "another input": ((x.to(other), values, topology), TypeError, f"values must be {other}, got {own}"),
        "a bias's dtype": ((x, values, topology, bias.to(other)), TypeError, f"bias must be {own}, got {other}"),
        "an input elsewhere": (
            (x.to("meta"), values, topology),
            ValueError,
            f"x must be on {topology.bits.device} as the topology, got meta",
        ),
        "values elsewhere": ((x, values.to("meta"), topology), ValueError, "values must be on .* got meta"),
        "other inputs": ((x[:, 1:], values, topology), ValueError, r"x must have shape \[..., 128\] .* got \[3, 127\]"),
        "a scalar": ((x[0, 0], values, topology), ValueError, r"x must have shape \[..., 128\] .* got \[\]"),
        "values of others": ((x, values[1:], topology), ValueError, rf"values {sizes} \[2, 32, 64\]"),
        "blocks on their side": ((x, values.mT, topology), ValueError, rf"values {sizes} \[3, 64, 32\]"),
        "the whole weight": ((x, layer.weight, topology), ValueError, rf"values {sizes} \[64, 128\]"),
        "a short bias": ((x, values, topology, bias[1:]), ValueError, r"bias must have shape \[64\] .* got \[63\]"),
        "no topology": ((x, values, topology.index), TypeError, "topology must be a Topology, got tuple"),
    }


@pytest.mark.parametrize("name", bad())
def test_bad_input(name):
    args, error, message = bad()[name]
    with pytest.raises(error, match=f"sparse_linear: {message}"):
        acdc.sparse_linear(*args)
