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
    """The block column (or row) of an entry, and its place among the values; 0 and 0 past the last."""
    there = entry < last
    at = tl.load(inner + entry, mask=there, other=0)
    block = tl.load(blocks + entry, mask=there, other=0) if GIVEN else tl.where(there, entry, 0)
    return at, block


@triton.jit
def _row(tile, outers, order, starts):
    """Which block row (or column) a tile computes, its first entry, and the first that isn't its own."""
    outer = tl.load(order + tile % outers)
    return outer, tl.load(starts + outer), tl.load(starts + outer + 1)


@triton.jit
def _factors(
    x, w, n, x_stride, w_stride, samples, outer, at, block, k,
    R: tl.constexpr, C: tl.constexpr, SAMPLES: tl.constexpr, DEPTH: tl.constexpr, TRANSPOSED: tl.constexpr,
    WHOLE: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """``k`` wide into a block: what its step multiplies, [SAMPLES, DEPTH] and [DEPTH, side]."""
    OUT: tl.constexpr = C if TRANSPOSED else R
    IN: tl.constexpr = R if TRANSPOSED else C
    # Row and column of the weights: in the whole weight, or in the blocks as one tall matrix.
    if WHOLE:
        w_row = (at if TRANSPOSED else outer) * R
        w_col = (outer if TRANSPOSED else at) * C
    else:
        w_row = block * R
        w_col = 0
    if TRANSPOSED:
        w_row += k
    else:
        w_col += k
    out = tl.arange(0, OUT)
    deep = tl.arange(0, DEPTH)
    if DESCRIPTORS:
        x_part = x.load([samples, at * IN + k])
        w_part = w.load([w_row, w_col])
    else:
        sample = tl.minimum(samples + tl.arange(0, SAMPLES), n - 1).to(tl.int64)
        x_part = tl.load(x + sample[:, None] * x_stride + deep[None, :] + (at * IN + k))
        w_start = w + (w_row.to(tl.int64) * w_stride + w_col)
        if TRANSPOSED:
            w_part = tl.load(w_start + deep[:, None].to(tl.int64) * w_stride + out[None, :])
        else:
            w_part = tl.load(w_start + out[:, None].to(tl.int64) * w_stride + deep[None, :])
    if not TRANSPOSED:
        w_part = tl.trans(w_part)
    return x_part, w_part


@triton.jit
def _write(sums, bias, y, n, y_stride, samples, outer, SAMPLES: tl.constexpr, OUT: tl.constexpr, BIAS: tl.constexpr):
    out = outer * OUT + tl.arange(0, OUT)
    sample = samples + tl.arange(0, SAMPLES)
    if BIAS:
        sums += tl.load(bias + out).to(tl.float32)[None, :]
    y_tile = y + sample[:, None].to(tl.int64) * y_stride + out[None, :]
    tl.store(y_tile, sums.to(y.dtype.element_ty), mask=(sample < n)[:, None])


@triton.jit(do_not_specialize=["n", "outers"])
def _tile(
    x, w, bias, y, starts, inner, blocks, order, n, outers, x_stride, w_stride, y_stride,
    R: tl.constexpr, C: tl.constexpr, SAMPLES: tl.constexpr, DEPTH: tl.constexpr, TRANSPOSED: tl.constexpr,
    WHOLE: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    GIVEN: tl.constexpr = TRANSPOSED and not WHOLE
    OUT: tl.constexpr = C if TRANSPOSED else R
    STEPS: tl.constexpr = (R if TRANSPOSED else C) // DEPTH
    tile = tl.program_id(0)
    samples = tile // outers * SAMPLES
    outer, first, last = _row(tile, outers, order, starts)
    at, block = _where(inner, blocks, first, last, GIVEN)
    sums = tl.zeros((SAMPLES, OUT), tl.float32)
    for step in tl.range(first * STEPS, last * STEPS):
        x_part, w_part = _factors(
            x, w, n, x_stride, w_stride, samples, outer, at, block, step % STEPS * DEPTH,
            R, C, SAMPLES, DEPTH, TRANSPOSED, WHOLE, DESCRIPTORS,
        )  # fmt: skip
        sums = tl.dot(x_part, w_part, sums, input_precision=PRECISION)
        at, block = _where(inner, blocks, (step + 1) // STEPS, last, GIVEN)
    _write(sums, bias, y, n, y_stride, samples, outer, SAMPLES, OUT, BIAS)


@triton.jit(do_not_specialize=["n", "outers"])
def _tiles(
    x, w, bias, y, starts, inner, blocks, order, n, outers, x_stride, w_stride, y_stride,
    R: tl.constexpr, C: tl.constexpr, SAMPLES: tl.constexpr, DEPTH: tl.constexpr, TRANSPOSED: tl.constexpr,
    WHOLE: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """Tile after tile in one loop over all their steps, so that the next tile's factors are on their way while one is
    written. A tile without blocks takes a step too, whose product is dropped."""
    GIVEN: tl.constexpr = TRANSPOSED and not WHOLE
    OUT: tl.constexpr = C if TRANSPOSED else R
    STEPS: tl.constexpr = (R if TRANSPOSED else C) // DEPTH
    MANY: tl.constexpr = 32
    tile = tl.program_id(0)
    programs = tl.num_programs(0)
    tiles = tl.cdiv(n, SAMPLES) * outers
    total = 0
    for some in tl.range(tile, tiles, programs * MANY):
        these = some + tl.arange(0, MANY) * programs
        row = tl.load(order + these % outers)
        steps = tl.maximum((tl.load(starts + row + 1) - tl.load(starts + row)) * STEPS, 1)
        total += tl.sum(tl.where(these < tiles, steps, 0))
    outer, first, last = _row(tile, outers, order, starts)
    following = tl.minimum(tile + programs, tiles - 1)
    outer_, first_, last_ = _row(following, outers, order, starts)
    at, block = _where(inner, blocks, first, last, GIVEN)
    step = first * STEPS
    sums = tl.zeros((SAMPLES, OUT), tl.float32)
    for _ in tl.range(0, total):
        samples = tile // outers * SAMPLES
        x_part, w_part = _factors(
            x, w, n, x_stride, w_stride, samples, outer, at, block, step % STEPS * DEPTH,
            R, C, SAMPLES, DEPTH, TRANSPOSED, WHOLE, DESCRIPTORS,
        )  # fmt: skip
        sums = tl.dot(x_part, w_part, sums, input_precision=PRECISION)
        step += 1
        ends = step >= last * STEPS
        if ends:
            sums = tl.where(first < last, sums, 0.0)
            _write(sums, bias, y, n, y_stride, samples, outer, SAMPLES, OUT, BIAS)
            sums = tl.zeros((SAMPLES, OUT), tl.float32)
        # Chosen, not branched: the compiler keeps nothing on its way past a branch that says where the next step is.
        tile = tl.where(ends, following, tile)
        outer = tl.where(ends, outer_, outer)
        first = tl.where(ends, first_, first)
        last = tl.where(ends, last_, last)
        step = tl.where(ends, first_ * STEPS, step)
        at, block = _where(inner, blocks, step // STEPS, last, GIVEN)
        following = tl.minimum(tile + programs, tiles - 1)
        outer_, first_, last_ = _row(following, outers, order, starts)


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
    strides = x.stride(0), w.stride(0)
    source, weight = x, w
    descriptors = config.descriptors and kept > 0
    if descriptors:
        source, weight = aligned(x), aligned(w)
        w_tile = [depth, side] if transposed else [side, depth]
        source = TensorDescriptor(source, source.shape, source.stride(), [config.samples, depth])
        weight = TensorDescriptor(weight, weight.shape, weight.stride(), w_tile)
    starts, inner, blocks, order = (index[i] for i in ((5, 6, 7, 8) if transposed else (1, 2, 2, 4)))
    kernel, programs = _tile, -(-n // config.samples) * (height // side)
    name = arithmetic(x.dtype)
    if config.persistent and kept:
        sms, capability = machine(y.device)
        kernel, programs = _tiles, min(programs, sms * resident(config, product, name, meta, capability))
    with on_device(y):
        kernel[(programs,)](
            source, weight, y if bias is None else bias.contiguous(), y, starts, inner, blocks, order,
            n, height // side, *strides, height, R=r, C=c, SAMPLES=config.samples, DEPTH=depth, TRANSPOSED=transposed,
            WHOLE=whole, BIAS=bias is not None, PRECISION="tf32" if name == "tf32" else "ieee",
            DESCRIPTORS=descriptors, num_warps=config.warps, num_stages=config.stages, enable_fp_fusion=True,
        )  # fmt: skip
