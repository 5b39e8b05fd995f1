"""Every op is a good citizen of torch: schema, fake, autograd registration, and torch.compile in one graph."""

import pytest
import torch

import acdc_kernels as acdc
from acdc_kernels import pack_mask, topk_mask, unpack_mask
from acdc_kernels.ops import apply_mask_, magnitude_histogram, masked_adamw_, masked_sgd_, roofline

from .conftest import DEVICE, ON_CPU, no_products

assert roofline.roofline_read  # importing the room registers its ops
OPS = torch.ops.acdc_kernels


def tensors(dtype, n=2):
    return [torch.randn(7, 5).to(dtype) for _ in range(n)]


def bits(n=2):
    return [pack_mask(torch.rand(7, 5) < 0.5) for _ in range(n)]


def moments(dtype, n):
    """Parameters, gradients and n lists of state."""
    return *(tensors(dtype) for _ in range(3)), *([t.square() for t in tensors(dtype)] for _ in range(n - 1))


def steps():
    return [torch.tensor(3.0), torch.tensor(0.0)]


def scalars():
    """A learning rate, a scale, and no infinity found."""
    return torch.tensor(0.1), torch.tensor(64.0), torch.tensor(0.0)


def topology(format="bundles"):
    """Index, meta and format of a mask [8, 5]."""
    mask = (torch.rand(2, 5) < 0.5).repeat_interleave(4, 0) if format == "bundles-4x1" else torch.rand(8, 5) < 0.5
    pattern = "block:4x1" if format == "bundles-4x1" else "unstructured"
    built = acdc.compress(torch.zeros(8, 5), pack_mask(mask), pattern)[1]
    return list(built.index), list(built.meta), built.format


def leaf(*shape, dtype=torch.float32):
    return torch.randn(shape).to(dtype).requires_grad_()


def values_of(args, dtype):
    return (leaf(args[1][2], dtype=dtype), *args)


def product(args, save):
    """Arguments of sparse_linear, all of whose factors need a gradient."""
    return leaf(2, 3, 5), leaf(args[1][2]), *args, leaf(8), save, False


def gradients(args, packed, *needs):
    x = torch.randn(5 * 16) if packed else torch.randn(2, 3, 5)
    return torch.randn(2, 3, 8), x, packed, torch.randn(args[1][2]), *args, *needs


CALLS = {
    "topk_mask": lambda d: (OPS.topk_mask.default, (tensors(d), [20], "unstructured")),
    "topk_mask, a budget each": lambda d: (OPS.topk_mask.default, (tensors(d), [20, 3], "unstructured")),
    "topk_mask, 2:4": lambda d: (OPS.topk_mask.default, ([torch.randn(3, 8).to(d)], [], "2:4")),
    "topk_mask, 2:4-transposable": lambda d: (
        OPS.topk_mask.default,
        ([torch.randn(4, 8).to(d)], [], "2:4-transposable"),
    ),
    "topk_mask, blocks": lambda d: (OPS.topk_mask.default, ([torch.randn(8, 3).to(d)], [8], "block:4x1")),
    "magnitude_histogram": lambda d: (OPS.magnitude_histogram.default, (tensors(d), torch.tensor([0]), 15, 3)),
    "magnitude_histogram, a row each": lambda d: (
        OPS.magnitude_histogram.default,
        (tensors(d), torch.tensor([0, 16000]), 0, 0),
    ),
    "pack_mask": lambda d: (OPS.pack_mask.default, (torch.rand(7, 5) < 0.5,)),
    "unpack_mask": lambda d: (OPS.unpack_mask.default, (bits()[0], [7, 5])),
    "apply_mask_": lambda d: (OPS.apply_mask_.default, (tensors(d), bits())),
    "masked_sgd_": lambda d: (
        OPS.masked_sgd_.default,
        (
            tensors(d),
            tensors(d),
            tensors(d),
            [bits()[0], None],
            0.1,
            0.9,
            0.0,
            0.01,
            True,
            False,
            False,
            None,
            None,
            None,
        ),
    ),
    "masked_sgd_, no momentum": lambda d: (
        OPS.masked_sgd_.default,
        (tensors(d), tensors(d), [], [None, None], 0.1, 0.0, 0.0, 0.0, False, False, True, None, None, None),
    ),
    "masked_sgd_, scaled": lambda d: (
        OPS.masked_sgd_.default,
        (tensors(d), tensors(d), tensors(d), [bits()[0], None], 0.0, 0.9, 0.0, 0.0, False, False, False, *scalars()),
    ),
    "masked_adamw_": lambda d: (
        OPS.masked_adamw_.default,
        (*moments(d, 2), [], steps(), [bits()[0], None], 0.1, 0.9, 0.99, 1e-8, 0.01, False, False, None, None, None),
    ),
    "masked_adamw_, amsgrad, scaled": lambda d: (
        OPS.masked_adamw_.default,
        (*moments(d, 3), steps(), [bits()[0], None], 0.0, 0.9, 0.99, 1e-8, 0.01, True, True, *scalars()),
    ),
    "build_bundles": lambda d: (OPS.build_bundles.default, (lambda index, *rest: (index[0], *rest))(*topology())),
    "gather_values": lambda d: (OPS.gather_values.default, (leaf(8, 5, dtype=d), *topology())),
    "gather_values, blocks": lambda d: (OPS.gather_values.default, (leaf(8, 5, dtype=d), *topology("bundles-4x1"))),
    "scatter_values": lambda d: (OPS.scatter_values.default, values_of(topology(), d)),
    "sparse_linear": lambda d: (OPS.sparse_linear.default, product(topology(), True)),
    "sparse_linear, blocks": lambda d: (OPS.sparse_linear.default, product(topology("bundles-4x1"), False)),
    "sparse_linear_backward": lambda d: (
        OPS.sparse_linear_backward.default,
        gradients(topology(), True, True, True),
    ),
    "sparse_linear_backward, of the input": lambda d: (
        OPS.sparse_linear_backward.default,
        gradients(topology("bundles-4x1"), False, True, False),
    ),
    "sparse_linear_backward, of the values": lambda d: (
        OPS.sparse_linear_backward.default,
        gradients(topology("bundles-4x1"), False, False, True),
    ),
    "roofline_read": lambda d: (OPS.roofline_read.default, (tensors(d),)),
    "roofline_update_": lambda d: (OPS.roofline_update_.default, (*(tensors(torch.float32) for _ in range(3)), bits())),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name, dtype):
    if not ON_CPU and name.startswith(("sparse_linear", "roofline")):
        pytest.skip("sparse products and rooflines have no CUDA kernel in this version")
    with DEVICE:
        op, arguments = CALLS[name](dtype)
    torch.library.opcheck(op, arguments)


def flip_and_step(params, grads, buffers):
    device = params[0].device
    masks = topk_mask(params, 20)
    apply_mask_(params, masks)
    masked_sgd_(params, grads, buffers, masks, lr=0.1, momentum=0.9)
    squares, counts = [b.square() for b in buffers], [torch.ones((), device=device) for _ in params]
    masked_adamw_(params, grads, buffers, squares, [], counts, masks, lr=torch.tensor(0.1, device=device))
    counts = magnitude_histogram(params, torch.tensor([0], device=device), 31, 19)
    return [*(pack_mask(unpack_mask(m, p.shape)) for m, p in zip(masks, params, strict=True)), counts]


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compiles_to_one_graph_with_the_same_bits(backend):
    with DEVICE:
        ours = [tensors(torch.float32) for _ in range(3)]
    theirs = [[t.clone() for t in ts] for ts in ours]
    torch._dynamo.reset()
    masks = torch.compile(flip_and_step, fullgraph=True, backend=backend)(*ours)
    want = flip_and_step(*theirs)
    assert all(torch.equal(a, b) for a, b in zip(masks, want, strict=True))
    assert all(torch.equal(a, b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize(("pattern", "keep"), [("2:4", None), ("2:4-transposable", None), ("block:2x2", 16)])
def test_a_pattern_compiles_to_one_graph_with_the_same_bits(pattern, keep):
    weights = [torch.randn(8, 4, device=DEVICE), torch.randn(4, 8, 3, 3, device=DEVICE)]
    torch._dynamo.reset()
    masks = torch.compile(lambda w: topk_mask(w, keep, pattern), fullgraph=True, backend="aot_eager")(weights)
    assert all(torch.equal(a, b) for a, b in zip(masks, topk_mask(weights, keep, pattern), strict=True))


def compress_decompress(weight, index):
    return acdc.decompress(acdc.compress(weight, index)[0] * 2, index)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("pattern", ["unstructured", "block:4x1"])
def test_values_compile_to_one_graph_with_gradients(pattern, backend):
    mask = (torch.rand(10, 30) < 0.3).repeat_interleave(4, 0).to(DEVICE)
    weight = torch.randn(40, 30, device=DEVICE, requires_grad=True)
    index = acdc.compress(weight, pack_mask(mask), pattern)[1]
    upstream = torch.randn(40, 30, device=DEVICE)
    torch._dynamo.reset()
    out = torch.compile(compress_decompress, fullgraph=True, backend=backend)(weight, index)
    assert torch.equal(out, weight * 2 * mask)
    assert torch.equal(torch.autograd.grad(out, weight, upstream)[0], upstream * 2 * mask)


def compress_multiply_decompress(weight, x, bias, index):
    values, same = acdc.compress(weight, index)
    y = acdc.sparse_linear(x, values, same, bias)
    return y, acdc.decompress(values * 2, same)


@no_products
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("pattern", ["unstructured", "block:4x1"])
def test_sparse_products_compile_to_one_graph_with_gradients(pattern, backend):
    bits = pack_mask((torch.rand(10, 30) < 0.3).repeat_interleave(4, 0))
    weight, x, bias = leaf(40, 30), leaf(3, 9, 30), leaf(40)
    index = acdc.compress(weight, bits, pattern)[1]
    upstream = torch.randn(3, 9, 40), torch.randn(40, 30)
    torch._dynamo.reset()
    compiled = torch.compile(compress_multiply_decompress, fullgraph=True, backend=backend)
    results = []
    for function in (compiled, compress_multiply_decompress):
        out = function(weight, x, bias, index)
        results.append([*out, *torch.autograd.grad(out, (weight, x, bias), upstream)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


@no_products
def test_new_topologies_recompile_once():
    """Lengths of an index change with every phase: after the second they are dynamic."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(compress_multiply_decompress, fullgraph=True, backend=counter)
    weight, bias = leaf(40, 30), leaf(40)
    for i in range(10):
        index = acdc.compress(weight, pack_mask(torch.rand(40, 30) < 0.1 + 0.05 * i))[1]
        y, dense = compiled(weight, torch.randn(6, 30), bias, index)
        assert y.shape == (6, 40)
        assert torch.equal(dense, acdc.decompress(acdc.compress(weight, index)[0] * 2, index))
    assert counter.frame_count <= 2


@no_products
def test_compressing_a_mask_leaves_the_graph_and_says_why():
    def build(weight, bits, x):
        return acdc.sparse_linear(x, *acdc.compress(weight, bits))

    weight, bits, x = torch.randn(8, 6), pack_mask(torch.rand(8, 6) < 0.5), torch.randn(3, 6)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="in a full graph, pass compress a topology"):
        torch.compile(build, fullgraph=True, backend="aot_eager")(weight, bits, x)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(build, backend="aot_eager")(weight, bits, x), build(weight, bits, x))


@no_products
def test_topologies_are_pytrees_to_export():
    class Layer(torch.nn.Module):
        def forward(self, x, values, index):
            return acdc.sparse_linear(x, values, index)

    values, index = acdc.compress(torch.randn(8, 6), pack_mask(torch.rand(8, 6) < 0.5))
    x = torch.randn(3, 6)
    exported = torch.export.export(Layer(), (x, values, index))
    assert torch.equal(exported.module()(x, values, index), acdc.sparse_linear(x, values, index))


def test_masks_carry_no_gradient():
    w = torch.randn(10, device=DEVICE, requires_grad=True)
    assert not topk_mask([w], 3)[0].requires_grad
