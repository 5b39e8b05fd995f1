"""Every op is a good citizen of torch: schema, fake, autograd registration, and torch.compile in one graph."""

import pytest
import torch

from acdc_kernels import pack_mask, topk_mask, unpack_mask
from acdc_kernels.ops import apply_mask_, masked_adamw_, masked_sgd_, roofline

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


CALLS = {
    "topk_mask": lambda d: (OPS.topk_mask.default, (tensors(d), [20], "unstructured")),
    "topk_mask, a budget each": lambda d: (OPS.topk_mask.default, (tensors(d), [20, 3], "unstructured")),
    "topk_mask, 2:4": lambda d: (OPS.topk_mask.default, ([torch.randn(3, 8).to(d)], [], "2:4")),
    "topk_mask, 2:4-transposable": lambda d: (
        OPS.topk_mask.default,
        ([torch.randn(4, 8).to(d)], [], "2:4-transposable"),
    ),
    "topk_mask, blocks": lambda d: (OPS.topk_mask.default, ([torch.randn(8, 3).to(d)], [8], "block:4x1")),
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
    "roofline_read": lambda d: (OPS.roofline_read.default, (tensors(d),)),
    "roofline_update_": lambda d: (OPS.roofline_update_.default, (*(tensors(torch.float32) for _ in range(3)), bits())),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name, dtype):
    op, arguments = CALLS[name](dtype)
    torch.library.opcheck(op, arguments)


def flip_and_step(params, grads, buffers):
    masks = topk_mask(params, 20)
    apply_mask_(params, masks)
    masked_sgd_(params, grads, buffers, masks, lr=0.1, momentum=0.9)
    squares, counts = [b.square() for b in buffers], [torch.ones(()) for _ in params]
    masked_adamw_(params, grads, buffers, squares, [], counts, masks, lr=torch.tensor(0.1))
    return [pack_mask(unpack_mask(m, p.shape)) for m, p in zip(masks, params, strict=True)]


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compiles_to_one_graph_with_the_same_bits(backend):
    ours = [tensors(torch.float32) for _ in range(3)]
    theirs = [[t.clone() for t in ts] for ts in ours]
    torch._dynamo.reset()
    masks = torch.compile(flip_and_step, fullgraph=True, backend=backend)(*ours)
    want = flip_and_step(*theirs)
    assert all(torch.equal(a, b) for a, b in zip(masks, want, strict=True))
    assert all(torch.equal(a, b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize(("pattern", "keep"), [("2:4", None), ("2:4-transposable", None), ("block:2x2", 16)])
def test_a_pattern_compiles_to_one_graph_with_the_same_bits(pattern, keep):
    weights = [torch.randn(8, 4), torch.randn(4, 8, 3, 3)]
    torch._dynamo.reset()
    masks = torch.compile(lambda w: topk_mask(w, keep, pattern), fullgraph=True, backend="aot_eager")(weights)
    assert all(torch.equal(a, b) for a, b in zip(masks, topk_mask(weights, keep, pattern), strict=True))


def test_masks_carry_no_gradient():
    w = torch.randn(10, requires_grad=True)
    assert not topk_mask([w], 3)[0].requires_grad
