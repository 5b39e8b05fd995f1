"""Kept blocks out of a dense weight and back on a GPU, in Triton: each program moves a part of one block."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._machine import in_rows, on_device

_HIGH = 32  # rows of a block a program: every block has a multiple of these


@triton.jit
def _move(
    source, target, columns, rows, stride, R: tl.constexpr, C: tl.constexpr, HIGH: tl.constexpr, GATHER: tl.constexpr
):
    block = tl.program_id(0)
    high = tl.program_id(1) * HIGH + tl.arange(0, HIGH)
    wide = tl.arange(0, C)
    row = (tl.load(rows + block) * R + high).to(tl.int64)
    in_weight = row[:, None] * stride + (tl.load(columns + block) * C + wide)[None, :]
    in_values = block.to(tl.int64) * (R * C) + high[:, None] * C + wide[None, :]
    if GATHER:
        tl.store(target + in_values, tl.load(source + in_weight).to(target.dtype.element_ty))
    else:
        tl.store(target + in_weight, tl.load(source + in_values))


def _launch(source: Tensor, target: Tensor, index: list[Tensor], meta: list[int], stride: int, gather: bool) -> None:
    _, _, kept, r, c = meta
    with on_device(target):
        _move[(kept // (r * c), r // _HIGH)](
            source, target, index[2], index[3], stride, R=r, C=c, HIGH=_HIGH, GATHER=gather, num_warps=4,
            enable_fp_fusion=True,
        )  # fmt: skip


def gather_blocks(weight: Tensor, index: list[Tensor], meta: list[int], dtype: torch.dtype) -> Tensor:
    rows, cols, kept, r, c = meta
    values = weight.new_empty((kept // (r * c), r, c), dtype=dtype)
    if kept:
        weight = in_rows(weight, rows, cols)
        _launch(weight, values, index, meta, weight.stride(0), True)
    return values


def scatter_blocks(values: Tensor, index: list[Tensor], meta: list[int]) -> Tensor:
    weight = values.new_zeros((meta[0], meta[1]))
    if meta[2]:
        _launch(values.contiguous(), weight, index, meta, meta[1], False)
    return weight
