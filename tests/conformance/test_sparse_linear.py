"""The sparse products against sums over the kept weights in float64.

float32 results may be off by 2 eps sqrt(k + 1) sum|terms| + (k + 1) 2^-149, with k the terms of a sum, eps = 2^-23 and
2^-149 the smallest denormal: the error of a sum of k roundings that don't conspire. NaN and Inf must be where they are.
"""

import importlib
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import acdc_kernels as acdc
from acdc_kernels import _native
from acdc_kernels.formats.bundles import FORMATS, choose_meta
from acdc_kernels.ops.sparse_linear import cases, reference
from acdc_kernels.ops.values import cases as shapes

from .conftest import no_products

pytestmark = no_products
OPS = torch.ops.acdc_kernels
EPS, DENORMAL = 2.0**-23, 2.0**-149
SOME_SHAPES = [
    *(("unstructured", s) for s in ((7, 33), (1, 600), (600, 1), (64, 64), (513, 17), (40, 1026))),
    *(("block:4x1", s) for s in ((12, 16), (4, 600), (600, 1), (516, 17), (40, 1026))),
]


class Layer:
    """Values, bias and topology of one case, and what the products of float64 numbers are."""

    def __init__(self, pattern, shape, mask="a tenth", numbers="normal", seed=0):
        g = torch.Generator().manual_seed(seed)
        self.g, self.shape, self.numbers = g, shape, numbers
        self.mask = shapes.mask(shape, mask, pattern, seed)
        self.weight = cases.NUMBERS[numbers](shape, g)
        values, self.topology = acdc.compress(self.weight, acdc.pack_mask(self.mask), pattern)
        self.values = values.view(-1)
        self.bias = cases.NUMBERS[numbers]((shape[0],), g)
        self.args = self.topology.index, self.topology.meta, self.topology.format

    def x(self, *leading):
        return cases.NUMBERS[self.numbers]((*leading, self.shape[1]), self.g)

    def grad(self, *leading):
        return cases.NUMBERS[self.numbers]((*leading, self.shape[0]), self.g)

    def forward(self, x, bias, save=False):
        return OPS.sparse_linear(x, self.values, *self.args, bias, save, False)

    def backward(self, grad, x, packed=False, need_input=True, need_values=True):
        return OPS.sparse_linear_backward(grad, x, packed, self.values, *self.args, need_input, need_values)


class Exact:
    """The products of a layer's numbers in float64, and the sums of their terms' magnitudes."""

    def __init__(self, layer, x, grad):
        self.layer, self.leading = layer, x.shape[:-1]
        index, meta, format = list(layer.args[0]), list(layer.args[1]), layer.args[2]
        self.products, self.gradients = [], []
        for of in (lambda t: t, torch.abs):
            x64, grad64, values = (of(t.double()) for t in (x, grad, layer.values))
            self.products.append(reference.sparse_linear(x64, values, index, meta, format, None, False, False)[0])
            self.gradients.append(
                reference.sparse_linear_backward(grad64, x64, False, values, index, meta, format, True, True)
            )

    def forward(self, y, bias):
        """``y`` is the product, plus ``bias`` if it isn't None."""
        want, sizes = self.products
        if bias is not None:
            want, sizes = want + bias.double(), sizes + bias.double().abs()
        assert y.shape == (*self.leading, self.layer.shape[0])
        close(y, want, sizes, self.layer.mask.sum(1) + (bias is not None))

    def backward(self, grad_x, grad_values):
        want, sizes = self.gradients
        assert grad_x.shape == (*self.leading, self.layer.shape[1])
        close(grad_x, want[0], sizes[0], self.layer.mask.sum(0))
        assert grad_values.shape == (self.layer.topology.kept,)
        close(grad_values, want[1], sizes[1], torch.tensor(math.prod(self.leading)))


def close(got, want, sizes, terms):
    assert got.dtype == torch.float32
    assert got.is_contiguous()
    assert got.shape == want.shape
    finite = want.isfinite()
    assert torch.equal(got.isnan(), want.isnan())
    infinite = want.isinf()
    assert torch.equal(got.double()[infinite], want[infinite])
    terms = (terms + 1).double().expand(want.shape)
    bound = 2 * EPS * terms.sqrt() * sizes + terms * DENORMAL
    error = (got.double() - want).abs()
    worst = ((error - bound)[finite]).max() if finite.any() else 0.0
    assert worst <= 0, f"worst {float((error / bound)[finite].max()):.2f} times the bound"


def check(layer, n):
    """All three products of n samples, the input packed and as it is, and both gradients alone."""
    x, grad = layer.x(n), layer.grad(n)
    before = [t.clone() for t in (x, grad, layer.values, layer.bias)]
    exact = Exact(layer, x, grad)
    y, tiles = layer.forward(x, layer.bias, save=True)
    exact.forward(y, layer.bias)
    assert torch.equal(tiles, reference.pack(x))
    plain, none = layer.forward(x, None)
    assert none.shape == (0,)
    exact.forward(plain, None)

    grad_x, grad_values = layer.backward(grad, tiles, packed=True)
    exact.backward(grad_x, grad_values)
    exact.backward(*layer.backward(grad, x))
    only_x, none = layer.backward(grad, x, need_values=False)
    assert none.shape == (0,)
    assert torch.equal(only_x, grad_x)
    none, only_values = layer.backward(grad, tiles, packed=True, need_input=False)
    assert none.shape == (0,)
    assert torch.equal(only_values, grad_values)
    assert all(torch.equal(a, b) for a, b in zip(before, (x, grad, layer.values, layer.bias), strict=True))


@pytest.mark.parametrize("n", cases.SAMPLES)
@pytest.mark.parametrize(("pattern", "shape"), SOME_SHAPES, ids=str)
def test_every_number_of_samples(pattern, shape, n):
    check(Layer(pattern, shape, seed=n), n)


@pytest.mark.parametrize("mask", shapes.MASKS)
@pytest.mark.parametrize(("pattern", "shape"), shapes.PATTERN_SHAPES, ids=str)
def test_every_shape_and_mask(pattern, shape, mask, threads):
    for n in (1, 33) if threads == 1 else (49,):
        check(Layer(pattern, shape, mask), n)


@pytest.mark.parametrize("numbers", cases.NUMBERS)
@pytest.mark.parametrize("pattern", FORMATS)
def test_numbers(pattern, numbers):
    for mask in ("a tenth", "nine tenths", "ragged"):
        check(Layer(pattern, (516, 70), mask, numbers), 33)


@pytest.mark.parametrize("pattern", FORMATS)
def test_whole_numbers_are_exact(pattern, threads):
    layer = Layer(pattern, (516, 530), "half", "integers")
    x, grad = layer.x(77), layer.grad(77)
    exact = Exact(layer, x, grad)
    y, tiles = layer.forward(x, layer.bias, save=True)
    assert torch.equal(y.double(), exact.products[0] + layer.bias)
    for got, want in zip(layer.backward(grad, tiles, packed=True), exact.gradients[0], strict=True):
        assert torch.equal(got.double(), want)


@pytest.mark.parametrize(
    "blocks", [(4, 4, 4, 4), (512, 256, 512, 256), (512, 512, 256, 128), (64, 32, 128, 16)], ids=str
)
@pytest.mark.parametrize("pattern", FORMATS)
def test_panels_and_blocks_of_other_sizes(pattern, blocks, threads):
    """Sizes are the topology's, not the kernels'."""
    layer = Layer(pattern, (516, 530), "a tenth")
    meta = (*layer.topology.meta[:3], *blocks)
    index = (layer.topology.bits, *OPS.build_bundles(layer.topology.bits, meta, layer.topology.format))
    layer.args = index, meta, layer.topology.format
    layer.values = OPS.gather_values(layer.weight, *layer.args)
    check(layer, 49)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mask", ["a tenth", "one in a hundred", "half", "all kept", "few rows", "few columns"])
@pytest.mark.parametrize("pattern", FORMATS)
def test_non_finite_inputs_reach_what_keeps_a_weight_for_them(pattern, mask, value, threads):
    for shape, n in (((68, 70), 37), ((516, 17), 16), ((8, 530), 5)):
        layer = Layer(pattern, shape, mask)
        x, grad = layer.x(n), layer.grad(n)
        for t in (x, grad):
            t[n // 2, t.shape[1] // 3] = value
            t[0, -1] = -value
            t[-1, 0] = value
        y, tiles = layer.forward(x, layer.bias, save=True)
        exact = Exact(layer, x, grad)
        exact.forward(y, layer.bias)
        for given, packed in ((tiles, True), (x, False)):
            exact.backward(*layer.backward(grad, given, packed))
        x = layer.x(n)  # only the gradient is broken, then only the input
        Exact(layer, x, grad).backward(*layer.backward(grad, x))
        grad, x[n // 3] = layer.grad(n), value
        Exact(layer, x, grad).backward(*layer.backward(grad, x))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("pattern", FORMATS)
def test_non_finite_weights_reach_their_row_and_column(pattern, value):
    layer = Layer(pattern, (68, 70))
    layer.values[[0, layer.topology.kept // 2, -1]] = value
    x, grad = layer.x(21), layer.grad(21)
    x[3] = 0.0  # times Inf: NaN
    exact = Exact(layer, x, grad)
    exact.forward(layer.forward(x, layer.bias)[0], layer.bias)
    exact.backward(*layer.backward(grad, x))
    layer.bias[5] = value
    exact.forward(layer.forward(x, layer.bias)[0], layer.bias)


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize(
    ("pattern", "shape"), [*SOME_SHAPES, ("unstructured", (5, 0)), ("unstructured", (0, 5))], ids=str
)
def test_layouts_give_the_contiguous_bits(pattern, shape, layout, threads):
    layer = Layer(pattern, shape)
    for n in (1, 16, 53):
        if layout == "one number repeated" and not all(shape):
            continue
        x, grad = (cases.LAYOUTS[layout](t) for t in (layer.x(n), layer.grad(n)))
        bias = shapes.LAYOUTS["every other"](layer.bias.view(1, -1)).squeeze(0)
        y, tiles = layer.forward(x, bias, save=True)
        want, want_tiles = layer.forward(x.contiguous(), layer.bias, save=True)
        assert torch.equal(y, want)
        assert torch.equal(tiles, want_tiles)
        exact, want = Exact(layer, x, grad), layer.backward(grad.contiguous(), x.contiguous())
        for given, packed in ((x, False), (tiles, True)):
            got = layer.backward(grad, given, packed)
            exact.backward(*got)
            assert torch.equal(got[0], want[0])


@pytest.mark.parametrize("leading", cases.LEADING, ids=str)
@pytest.mark.parametrize("pattern", FORMATS)
def test_leading_dimensions(pattern, leading):
    layer = Layer(pattern, (36, 50), "half")
    x, grad = layer.x(*leading), layer.grad(*leading)
    n = math.prod(leading)
    y = acdc.sparse_linear(x, layer.values, layer.topology, layer.bias)
    assert y.shape == (*leading, 36)
    assert torch.equal(y.reshape(n, 36), layer.forward(x.reshape(n, 50), layer.bias)[0])
    grad_x, grad_values = layer.backward(grad, x)
    assert grad_x.shape == x.shape
    Exact(layer, x, grad).backward(grad_x, grad_values)
    swapped = x.movedim(0, -2) if len(leading) > 1 else x
    want = layer.forward(swapped.contiguous(), layer.bias)[0]
    assert torch.equal(acdc.sparse_linear(swapped, layer.values, layer.topology, layer.bias), want)


@pytest.mark.parametrize("pattern", FORMATS)
def test_values_unaligned_and_strided(pattern):
    layer = Layer(pattern, (36, 50))
    x = layer.x(9)
    want = acdc.sparse_linear(x, layer.values, layer.topology, layer.bias)
    shifted = torch.cat((torch.full((1,), math.nan), layer.values))[1:]
    strided = torch.stack((layer.values, layer.values.new_full((), math.nan).expand_as(layer.values)), 1)[:, 0]
    for values in (shifted, strided, shifted.view(layer.topology.values_shape)):
        assert torch.equal(acdc.sparse_linear(x, values, layer.topology, layer.bias), want)


def test_same_bits_for_every_thread_count():
    before = torch.get_num_threads()
    seen = []
    for pattern in FORMATS:
        for n in (20, 300):
            layer = Layer(pattern, (516, 530), seed=n)
            x, grad = layer.x(n), layer.grad(n)
            results = []
            for threads in (1, 2, 3, 5, 2):
                torch.set_num_threads(threads)
                y, tiles = layer.forward(x, layer.bias, save=True)
                results.append([y, *layer.backward(grad, tiles, packed=True), *layer.backward(grad, x)])
            seen.append(results)
    torch.set_num_threads(before)
    for results in seen:
        assert all(torch.equal(a, b) for r in results[1:] for a, b in zip(results[0], r, strict=True))


@pytest.mark.parametrize(
    "shape", [(1, 1), (5, 3), (7, 33), (64, 64), (513, 17), (40, 1026), (516, 530), (0, 5), (5, 0)], ids=str
)
def test_half_precision_products_are_right_or_refused(shape, threads):
    """At most 16 terms are summed in float16: off by 4 * 2^-10 sum|terms| and the denormals of float16 at most."""
    for mask, n in (
        ("a tenth", 0),
        ("a tenth", 1),
        ("half", 16),
        ("a twentieth", 33),
        ("all kept", 65),
        ("ragged", 150),
    ):
        layer = Layer("unstructured", shape, mask)
        x, grad = layer.x(n), layer.grad(n)
        if _native.available() and not half_precision():
            with pytest.raises(RuntimeError, match=r"sparse_linear: fp16 must be False, got True: .* no AVX512-FP16"):
                OPS.sparse_linear(x, layer.values, *layer.args, layer.bias, True, True)
            continue
        y, tiles = OPS.sparse_linear(x, layer.values, *layer.args, layer.bias, True, True)
        assert torch.equal(tiles, reference.pack(x))
        assert torch.equal(
            OPS.sparse_linear(x.t().contiguous().t(), layer.values, *layer.args, layer.bias, False, True)[0], y
        )
        (want, sizes), terms = Exact(layer, x, grad).products, layer.mask.sum(1) + 1
        want, sizes = want + layer.bias.double(), sizes + layer.bias.double().abs()
        assert y.shape == want.shape
        assert bool(((y.double() - want).abs() <= 2.0**-8 * sizes + terms * 2.0**-24).all())
        if n > 1 and all(shape):
            x[n // 2, shape[1] // 2] = math.inf
            want = Exact(layer, x, grad).products[0]
            y = OPS.sparse_linear(x, layer.values, *layer.args, None, False, True)[0]
            assert torch.equal(y.isnan(), want.isnan())
            assert torch.equal(y.double()[want.isinf()], want[want.isinf()])


def half_precision():
    return _native.available() and importlib.import_module("acdc_kernels._C").cpu_fp16() != "none"


def test_half_precision_is_refused_for_blocks():
    if not _native.available():
        pytest.skip(_native.why_not())
    layer = Layer("block:4x1", (8, 6))
    with pytest.raises(RuntimeError, match="sparse_linear: fp16 must be False"):
        OPS.sparse_linear(layer.x(3), layer.values, *layer.args, None, False, True)


@pytest.mark.parametrize("needs", range(1, 8))
@pytest.mark.parametrize("pattern", FORMATS)
def test_gradients_are_those_of_the_dense_layer(pattern, needs):
    layer = Layer(pattern, (36, 50), "half")
    grad = layer.grad(3, 7)
    leaves = [t.requires_grad_(bool(needs >> i & 1)) for i, t in enumerate((layer.x(3, 7), layer.weight, layer.bias))]
    x, weight, bias = leaves
    values, _ = acdc.compress(weight, layer.topology)
    acdc.sparse_linear(x, values, layer.topology, bias).backward(grad)
    exact = [t.detach().double().requires_grad_(t.requires_grad) for t in leaves]
    torch.nn.functional.linear(exact[0], exact[1] * layer.mask, exact[2]).backward(grad.double())
    for got, want in zip(leaves, exact, strict=True):
        assert (got.grad is None) == (want.grad is None)
        if got.grad is not None:
            torch.testing.assert_close(got.grad.double(), want.grad, rtol=1e-5, atol=1e-5)
    if weight.grad is not None:
        assert not weight.grad[~layer.mask].any()
        assert not weight.grad[~layer.mask].signbit().any()


@pytest.mark.parametrize("pattern", FORMATS)
def test_gradcheck(pattern):
    """The op is linear in each argument, so float32 differences over a step of 1/4 are as good as exact."""
    layer = Layer(pattern, (8, 6), "half", "integers")
    leaves = [t.requires_grad_() for t in (layer.x(2, 3), layer.values.clone(), layer.bias)]

    def product(x, values, bias):
        return acdc.sparse_linear(x, values, layer.topology, bias)

    with pytest.warns(UserWarning, match="not a double precision"):
        assert torch.autograd.gradcheck(product, leaves, eps=0.25, atol=1e-4, rtol=1e-4)


class Reference(torch.autograd.Function):
    """The specification's own forward and backward, for any dtype."""

    @staticmethod
    def forward(ctx, x, values, bias, topology):
        ctx.args = list(topology.index), list(topology.meta), topology.format
        ctx.save_for_backward(x, values)
        return reference.sparse_linear(x, values, *ctx.args, bias, False, False)[0]

    @staticmethod
    def backward(ctx, grad):
        x, values = ctx.saved_tensors
        grad_x, grad_values = reference.sparse_linear_backward(grad, x, False, values, *ctx.args, True, True)
        packed = reference.pack(x.reshape(-1, x.shape[-1]))
        assert torch.equal(
            reference.sparse_linear_backward(grad, packed, True, values, *ctx.args, True, True)[1], grad_values
        )
        return grad_x, grad_values, grad.flatten(0, -2).sum(0), None


@pytest.mark.parametrize("pattern", FORMATS)
def test_gradcheck_of_the_reference(pattern):
    layer = Layer(pattern, (4, 3), "half")
    leaves = [t.double().requires_grad_() for t in (layer.x(2, 2), layer.values, layer.bias)]
    assert torch.autograd.gradcheck(lambda x, v, b: Reference.apply(x, v, b, layer.topology), leaves)


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 32, 33, 48, 49, 64, 81])
def test_tiles_hold_the_samples_feature_by_feature(n):
    x = torch.arange(1, 3 * n + 1, dtype=torch.float32).view(n, 3)
    tiles = reference.pack(x)
    assert tiles.shape == (3 * math.ceil(n / 16) * 16,)
    at = 0
    for first in range(0, n, 32):
        width = 16 if n - first <= 16 else 32
        for feature in range(3):
            samples = x[first : first + width, feature].tolist()
            assert tiles[at : at + width].tolist() == samples + [0.0] * (width - len(samples))
            at += width
    assert at == tiles.numel()
    assert torch.equal(reference.unpack(tiles, n, 3), x)


def test_the_reference_makes_no_product_with_what_is_not_kept():
    mask = torch.tensor([[True, False], [False, False]])
    _, topology = acdc.compress(torch.ones(2, 2), acdc.pack_mask(mask))
    x = torch.tensor([[2.0, math.nan], [3.0, math.inf]])
    y = reference.sparse_linear(
        x, torch.ones(1), list(topology.index), list(topology.meta), "bundles", None, False, False
    )
    assert y[0].tolist() == [[2.0, 0.0], [3.0, 0.0]]


def test_flops_are_two_a_kept_weight_and_sample():
    layer = Layer("unstructured", (36, 50))
    for needs_input, needs_values in ((True, True), (True, False), (False, True), (False, False)):
        x, values = layer.x(3, 5).requires_grad_(needs_input), layer.values.clone().requires_grad_(needs_values)
        with FlopCounterMode(display=False) as counter:
            y = acdc.sparse_linear(x, values, layer.topology, layer.bias.clone().requires_grad_())
            y.sum().backward()
        assert counter.get_total_flops() == 2 * 15 * layer.topology.kept * (1 + needs_input + needs_values)


def test_no_input_is_kept_for_a_backward_that_needs_none():
    """Packed input only for the weight gradient; nothing at all under no_grad."""
    layer = Layer("unstructured", (36, 50))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        acdc.sparse_linear(layer.x(40).requires_grad_(), layer.values, layer.topology)
        without = {t.data_ptr() for t in saved if t.dtype == torch.float32}
        assert without == {layer.values.data_ptr()}
        saved.clear()
        values = layer.values.clone().requires_grad_()
        acdc.sparse_linear(layer.x(40), values, layer.topology)
        assert sorted(t.numel() for t in saved if t.dtype == torch.float32) == sorted((48 * 50, layer.topology.kept))
        saved.clear()
        with torch.no_grad():
            acdc.sparse_linear(layer.x(40), values, layer.topology)
        assert not saved


def test_double_backward_is_an_error_that_says_so():
    layer = Layer("unstructured", (36, 50))
    x, values = layer.x(4).requires_grad_(), layer.values.clone().requires_grad_()
    for leaf in (x, values):
        (grad,) = torch.autograd.grad(
            acdc.sparse_linear(x, values, layer.topology).square().sum(), leaf, create_graph=True
        )
        with pytest.raises(RuntimeError, match="sparse_linear: double backward is not supported"):
            grad.sum().backward()


def test_backward_twice_needs_retain_graph_as_torchs():
    layer = Layer("unstructured", (36, 50))
    x = layer.x(4).requires_grad_()
    y = acdc.sparse_linear(x, layer.values, layer.topology).sum()
    y.backward(retain_graph=True)
    once = x.grad.clone()
    y.backward()
    assert torch.equal(x.grad, once * 2)
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


def test_values_changed_between_forward_and_backward_are_noticed():
    layer = Layer("unstructured", (36, 50))
    x, values = layer.x(4).requires_grad_(), layer.values.clone()
    y = acdc.sparse_linear(x, values, layer.topology)
    values.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_the_kernels_run_where_they_were_built():
    if not _native.available():
        pytest.skip(_native.why_not())
    for name in ("build_bundles", "gather_values", "scatter_values", "sparse_linear", "sparse_linear_backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"acdc_kernels::{name}", "CPU")


LAYER = Layer("unstructured", (8, 6), "half")
X, V, T, B = LAYER.x(3), LAYER.values, LAYER.topology, LAYER.bias
OTHER = Layer("unstructured", (6, 8), "half").topology
BAD = {
    "float64": (
        lambda: acdc.sparse_linear(X.double(), V, T),
        TypeError,
        "sparse_linear: x must be torch.float32, got torch.float64",
    ),
    "bfloat16": (
        lambda: acdc.sparse_linear(X.bfloat16(), V, T),
        TypeError,
        "x must be torch.float32, got torch.bfloat16",
    ),
    "no tensor": (lambda: acdc.sparse_linear([1.0], V, T), TypeError, "x must be torch.float32, got list"),
    "a sparse input": (
        lambda: acdc.sparse_linear(X.to_sparse(), V, T),
        TypeError,
        r"got torch.float32 \(torch.sparse_coo\)",
    ),
    "an input elsewhere": (
        lambda: acdc.sparse_linear(X.to("meta"), V, T),
        ValueError,
        "x must be on cpu as the topology, got meta",
    ),
    "a scalar": (
        lambda: acdc.sparse_linear(torch.tensor(1.0), V, T),
        ValueError,
        r"x must have shape \[..., 6\] \(the topology's inputs\), got \[\]",
    ),
    "other inputs": (
        lambda: acdc.sparse_linear(X[:, 1:], V, T),
        ValueError,
        r"x must have shape \[..., 6\] .* got \[3, 5\]",
    ),
    "another layer's topology": (lambda: acdc.sparse_linear(X, V, OTHER), ValueError, r"x must have shape \[..., 8\]"),
    "no topology": (lambda: acdc.sparse_linear(X, V, T.index), TypeError, "topology must be a Topology, got tuple"),
    "float64 values": (
        lambda: acdc.sparse_linear(X, V.double(), T),
        TypeError,
        "values must be torch.float32, got torch.float64",
    ),
    "other values": (
        lambda: acdc.sparse_linear(X, V[:-1], T),
        ValueError,
        r"values must have shape \[\d+\], one element a kept weight",
    ),
    "the weight for values": (
        lambda: acdc.sparse_linear(X, LAYER.weight, T),
        ValueError,
        r"values must have .* got \[8, 6\]",
    ),
    "a float64 bias": (
        lambda: acdc.sparse_linear(X, V, T, B.double()),
        TypeError,
        "bias must be torch.float32, got torch.float64",
    ),
    "another bias": (
        lambda: acdc.sparse_linear(X, V, T, B[1:]),
        ValueError,
        r"bias must have shape \[8\] \(the topology's outputs\), got \[7\]",
    ),
    "a scalar bias": (lambda: acdc.sparse_linear(X, V, T, B[0]), ValueError, r"bias must have shape \[8\] .* got \[\]"),
    "a bias elsewhere": (
        lambda: acdc.sparse_linear(X, V, T, B.to("meta")),
        ValueError,
        "bias must be on cpu as the topology, got meta",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()


PUBLIC = {
    "sparse_linear": (lambda x: acdc.sparse_linear(x, V, T), torch.ones(3, T.cols)),
    "compress": (lambda w: acdc.compress(w, T)[0], torch.ones(T.shape)),
    "decompress": (lambda values: acdc.decompress(values, T), V.detach()),
}
TRANSFORMS = {
    "vmap": lambda f, x: torch.func.vmap(f)(torch.stack((x, x))),
    "grad": lambda f, x: torch.func.grad(lambda x: f(x).sum())(x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x,)),
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
}


@pytest.mark.parametrize("op", PUBLIC)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_are_errors_that_say_so(op, transform):
    function, x = PUBLIC[op]
    with pytest.raises(RuntimeError, match=rf"{op}: derivatives must be asked for by backward .* torch\.func"):
        TRANSFORMS[transform](function, x)


@pytest.mark.parametrize("op", PUBLIC)
def test_a_tangent_is_an_error_that_says_so(op):
    function, x = PUBLIC[op]
    with torch.autograd.forward_ad.dual_level():
        function(x)
        with pytest.raises(RuntimeError, match=rf"{op}: derivatives must be .* got forward mode \(a tangent\)"):
            function(torch.autograd.forward_ad.make_dual(x, x))


def test_an_index_of_other_sizes_never_reaches_memory():
    """What only a caller of the ops can do: the kernels check sizes, so it is an error and not a bad read."""
    if not _native.available():
        pytest.skip(_native.why_not())
    index, _, format = LAYER.args
    for meta in (choose_meta(16, 6, T.kept), choose_meta(8, 6, T.kept + 1), choose_meta(600, 600, T.kept)):
        with pytest.raises(RuntimeError, match="sparse_linear"):
            OPS.sparse_linear(torch.ones(3, meta[1]), V, index, meta, format, None, False, False)
    with pytest.raises(RuntimeError, match="tiles must be those of 3 samples"):
        OPS.sparse_linear_backward(LAYER.grad(3), torch.ones(5), True, V, *LAYER.args, True, True)
