"""The weight gradient of blocks, in Triton: each program sums over samples for one kept block, or several neighbours.

Neighbours are blocks that follow each other among those kept in a block row: they share the output's gradient. A
program starts at every kept block, and ends at once unless a group begins there. The sum over samples can be split into
parts, which are written apart and added in their order: the same bits each time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .._machine import aligned, arithmetic, in_rows, on_device
from .configs import Config


@triton.jit(do_not_specialize=["n", "share"])
def _sum_samples(
    grad, x, out, starts, columns, rows, n, share, grad_stride, x_stride, out_stride,
    R: tl.constexpr, C: tl.constexpr, SAMPLES: tl.constexpr, GROUP: tl.constexpr, WHOLE: tl.constexpr,
    PRECISION: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    part = tl.program_id(1)
    row = tl.load(rows + block)
    begin = part * share
    end = tl.minimum(begin + share, n)
    wide = tl.arange(0, GROUP * C)
    if GROUP > 1:
        leads = (block - tl.load(starts + row)) % GROUP == 0
        end = tl.where(leads, end, begin)
        last = tl.load(starts + row + 1)
        column = tl.load(columns + tl.minimum(block + wide // C, last - 1))
        x_col = tl.max_contiguous(tl.multiple_of(column * C + wide % C, C), C)
        last = tl.where(leads, last, block)
    else:
        column = tl.load(columns + block)
        x_col = column * C + wide
        last = block + 1
    member = block + wide // C
    high = tl.arange(0, R)
    sample = tl.arange(0, SAMPLES)
    if not DESCRIPTORS:
        grad_tile = grad + sample[:, None].to(tl.int64) * grad_stride + (row * R + high)[None, :]
        x_tile = x + sample[None, :].to(tl.int64) * x_stride + x_col[:, None]
    sums = tl.zeros((GROUP * C, R), tl.float32)
    for first in tl.range(begin, end, SAMPLES):
        if DESCRIPTORS:
            grad_part = grad.load([first, row * R])
            x_part = tl.trans(x.load([first, column * C]))
        else:
            inside = sample < n - first
            grad_part = tl.load(grad_tile + first * grad_stride.to(tl.int64), mask=inside[:, None], other=0.0)
            x_part = tl.load(x_tile + first * x_stride.to(tl.int64), mask=inside[None, :], other=0.0)
        sums = tl.dot(x_part, grad_part, sums, input_precision=PRECISION)
    if WHOLE:
        place = (row * R + high)[:, None].to(tl.int64) * out_stride + x_col[None, :]
    else:
        blocks = tl.num_programs(0)
        place = (part.to(tl.int64) * blocks + member)[None, :] * (R * C) + (wide % C)[None, :] + high[:, None] * C
    tl.store(out + place, tl.trans(sums).to(out.dtype.element_ty), mask=(member < last)[None, :])


@triton.jit(do_not_specialize=["parts"])
def _add_parts(
    sums, out, columns, rows, parts, out_stride,
    R: tl.constexpr, C: tl.constexpr, HIGH: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    high = tl.program_id(1) * HIGH + tl.arange(0, HIGH)
    wide = tl.arange(0, C)
    place = high[:, None] * C + wide[None, :]
    one = sums + block.to(tl.int64) * (R * C) + place
    total = tl.load(one)
    for part in tl.range(1, parts):
        total += tl.load(one + part * (tl.num_programs(0).to(tl.int64) * (R * C)))
    if WHOLE:
        row = (tl.load(rows + block) * R + high).to(tl.int64)
        target = out + row[:, None] * out_stride + (tl.load(columns + block) * C + wide)[None, :]
    else:
        target = out + block.to(tl.int64) * (R * C) + place
    tl.store(target, total.to(out.dtype.element_ty))


def weight_gradient(
    config: Config, grad: Tensor, x: Tensor, index: list[Tensor], meta: list[int], out: Tensor, whole: bool
) -> None:
    """Into ``out``: every kept block, and of the whole gradient nothing else. There is at least one."""
    rows, cols, kept, r, c = meta
    blocks, n = kept // (r * c), grad.numel() // rows
    grad, x = in_rows(grad, n, rows), in_rows(x, n, cols)
    name, group = arithmetic(x.dtype), config.depth // c
    share = triton.cdiv(triton.cdiv(n, config.splits), config.samples) * config.samples
    descriptors = config.descriptors and n > 0
    if descriptors:
        grad, x = aligned(grad), aligned(x)
        factors = tuple(
            TensorDescriptor(t, t.shape, t.stride(), [config.samples, side]) for t, side in ((grad, r), (x, c))
        )
    else:
        factors = grad, x
    split = config.splits > 1
    sums = out.new_empty((config.splits, blocks, r, c), dtype=torch.float32) if split else out
    with on_device(out):
        _sum_samples[(blocks, config.splits)](
            *factors, sums, index[1], index[2], index[3], n, share, grad.stride(0), x.stride(0), cols,
            R=r, C=c, SAMPLES=config.samples, GROUP=group, WHOLE=whole and not split,
            PRECISION="tf32" if name == "tf32" else "ieee", DESCRIPTORS=descriptors,
            num_warps=config.warps, num_stages=config.stages, enable_fp_fusion=True,
        )  # fmt: skip
        if split:
            _add_parts[(blocks, r // 32)](
                sums, out, index[2], index[3], config.splits, cols, R=r, C=c, HIGH=32, WHOLE=whole, num_warps=4,
                enable_fp_fusion=True,
            )  # fmt: skip
