"""Forward and input gradient of blocks: tiles of samples by the side of a block, in Triton.

Both walk the kept blocks of one block row (of one block column, for the input gradient). Where the next block lies is
loaded a step ahead and carried: the compiler then keeps as many tiles on their way as a config's ``stages`` says, which
it doesn't where a load waits for another of its own step. Rows beyond the last sample are read from the last one and
not written. Tiles of the same samples run one after another, the longest block rows first, so that they find those
samples in L2.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .._machine import aligned, arithmetic, in_rows, machine, on_device
from .configs import FORWARD, Config, resident


@triton.jit
def _where(inner, blocks, entry, last, GIVEN: tl.constexpr):
    """The block column (or row) of an entry and its place among the values; (0, 0) past the last."""
    at = tl.load(inner + entry, mask=entry < last, other=0)
    block = tl.load(blocks + entry, mask=entry < last, other=0) if GIVEN else entry
    return at, block


@triton.jit
def _begin(tile, outers, order, starts, inner, blocks, GIVEN: tl.constexpr):
    """Which block row (or column) a tile computes, its entries, and where the first of them is."""
    outer = tl.load(order + tile % outers)
    first = tl.load(starts + outer)
    last = tl.load(starts + outer + 1)
    at, block = _where(inner, blocks, first, last, GIVEN)
    return outer, first, last, at, block


@triton.jit
def _compute(
    x, w, bias, y, inner, blocks, n, x_stride, w_stride, y_stride, samples_first, outer, first, last, at, block,
    R: tl.constexpr, C: tl.constexpr, SAMPLES: tl.constexpr, DEPTH: tl.constexpr, TRANSPOSED: tl.constexpr,
    WHOLE: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    OUT: tl.constexpr = C if TRANSPOSED else R
    IN: tl.constexpr = R if TRANSPOSED else C
    STEPS: tl.constexpr = IN // DEPTH
    sample = samples_first + tl.arange(0, SAMPLES)
    out = tl.arange(0, OUT)
    deep = tl.arange(0, DEPTH)
    if not DESCRIPTORS:
        x_tile = x + tl.minimum(sample, n - 1)[:, None].to(tl.int64) * x_stride + deep[None, :]
        if TRANSPOSED:
            w_tile = w + deep[:, None].to(tl.int64) * w_stride + out[None, :]
        else:
            w_tile = w + out[:, None].to(tl.int64) * w_stride + deep[None, :]
    sums = tl.zeros((SAMPLES, OUT), tl.float32)
    for step in tl.range(first * STEPS, last * STEPS):
        here = at
        place = block
        k = step % STEPS * DEPTH
        at, block = _where(inner, blocks, (step + 1) // STEPS, last, TRANSPOSED and not WHOLE)
        # Row and column of the tile of weights, in the whole weight or in the blocks as one tall matrix.
        if WHOLE:
            w_row = (here if TRANSPOSED else outer) * R
            w_col = (outer if TRANSPOSED else here) * C
        else:
            w_row = place * R
            w_col = 0
        if TRANSPOSED:
            w_row += k
        else:
            w_col += k
        if DESCRIPTORS:
            x_part = x.load([samples_first, here * IN + k])
            w_part = w.load([w_row, w_col])
        else:
            x_part = tl.load(x_tile + (here * IN + k))
            w_part = tl.load(w_tile + (w_row.to(tl.int64) * w_stride + w_col))
        if not TRANSPOSED:
            w_part = tl.trans(w_part)
        sums = tl.dot(x_part, w_part, sums, input_precision=PRECISION)
    if BIAS:
        sums += tl.load(bias + outer * OUT + out).to(tl.float32)[None, :]
    y_tile = y + sample[:, None].to(tl.int64) * y_stride + (outer * OUT + out)[None, :]
    tl.store(y_tile, sums.to(y.dtype.element_ty), mask=(sample < n)[:, None])


@triton.jit(do_not_specialize=["n", "outers"])
def _multiply(
    x, w, bias, y, starts, inner, blocks, order, n, outers, x_stride, w_stride, y_stride,
    R: tl.constexpr, C: tl.constexpr, SAMPLES: tl.constexpr, DEPTH: tl.constexpr, TRANSPOSED: tl.constexpr,
    WHOLE: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr, DESCRIPTORS: tl.constexpr,
    PERSISTENT: tl.constexpr,
):  # fmt: skip
    GIVEN: tl.constexpr = TRANSPOSED and not WHOLE
    tile = tl.program_id(0)
    outer, first, last, at, block = _begin(tile, outers, order, starts, inner, blocks, GIVEN)
    if PERSISTENT:
        tiles = tl.cdiv(n, SAMPLES) * outers
        for this in tl.range(tile, tiles, tl.num_programs(0)):
            # The next tile's beginning is on its way while this one is computed.
            following = tl.minimum(this + tl.num_programs(0), tiles - 1)
            outer_, first_, last_, at_, block_ = _begin(following, outers, order, starts, inner, blocks, GIVEN)
            _compute(
                x, w, bias, y, inner, blocks, n, x_stride, w_stride, y_stride,
                this // outers * SAMPLES, outer, first, last, at, block,
                R, C, SAMPLES, DEPTH, TRANSPOSED, WHOLE, BIAS, PRECISION, DESCRIPTORS,
            )  # fmt: skip
            outer, first, last, at, block = outer_, first_, last_, at_, block_
    else:
        _compute(
            x, w, bias, y, inner, blocks, n, x_stride, w_stride, y_stride,
            tile // outers * SAMPLES, outer, first, last, at, block,
            R, C, SAMPLES, DEPTH, TRANSPOSED, WHOLE, BIAS, PRECISION, DESCRIPTORS,
        )  # fmt: skip


def multiply(
    product: str,
    config: Config,
    x: Tensor,
    values: Tensor,
    index: list[Tensor],
    meta: list[int],
    bias: Tensor | None,
    y: Tensor,
) -> None:
    """``y`` = forward or input gradient; ``y`` is contiguous and not empty."""
    rows, cols, kept, r, c = meta
    transposed, whole = product != FORWARD, values.dim() == 2
    width, height = (rows, cols) if transposed else (cols, rows)
    side, depth = (c, config.depth) if transposed else (r, config.depth)
    n = y.numel() // height
    x = in_rows(x, n, width)
    w = in_rows(values, rows, cols) if whole else values.reshape(kept // c, c).contiguous()
    descriptors = config.descriptors and kept > 0
    strides = x.stride(0), w.stride(0)
    source, weight = x, w
    if descriptors:
        source, weight = aligned(x), aligned(w)
        w_tile = [depth, side] if transposed else [side, depth]
        source = TensorDescriptor(source, source.shape, source.stride(), [config.samples, depth])
        weight = TensorDescriptor(weight, weight.shape, weight.stride(), w_tile)
    starts, inner, blocks, order = (index[i] for i in ((5, 6, 7, 8) if transposed else (1, 2, 2, 4)))
    programs = -(-n // config.samples) * (height // side)
    name = arithmetic(x.dtype)
    if config.persistent:
        sms, capability = machine(y.device)
        programs = min(programs, sms * resident(config, product, name, meta, capability))
    with on_device(y):
        _multiply[(programs,)](
            source, weight, y if bias is None else bias.contiguous(), y, starts, inner, blocks, order,
            n, height // side, *strides, height, R=r, C=c, SAMPLES=config.samples, DEPTH=depth, TRANSPOSED=transposed,
            WHOLE=whole, BIAS=bias is not None, PRECISION="tf32" if name == "tf32" else "ieee",
            DESCRIPTORS=descriptors, PERSISTENT=config.persistent, num_warps=config.warps, num_stages=config.stages,
            enable_fp_fusion=True,
        )  # fmt: skip
