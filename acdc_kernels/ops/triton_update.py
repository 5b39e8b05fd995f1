"""What the Triton kernels of the masked updates share: how a program finds its tensor, and its elements in it.

A program takes a chunk of one tensor, whose row in the table (``_update_tables``) it searches. Where all of a tensor's
parts lie one element after another, a thread's eight elements are those of one byte of the mask: where the byte is 0,
nothing is read of them, and nothing written either if their zeros are kept; else elements go by twos or more in 16
bytes. Other tensors are walked one element at a time, in the order of the parameter's memory.

Kernels are compiled without the fusion of products and sums: where one rounding is meant, they say ``tl.fma``.
"""

from collections.abc import Iterable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._update_tables import FLAT_CHUNK, WALKED_CHUNK, Launch

TYPES = {torch.float32: tl.float32, torch.float64: tl.float64, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
WARPS = 4
_WALKED_BLOCK = 256  # elements that a program holds at a time, where each has five addresses


@triton.jit
def number(host, device, TYPE: tl.constexpr):
    """The number on the device, or where there is none, the one that the host gave; in this type."""
    if device is None:
        return tl.full((), host, tl.float64).to(TYPE)
    else:
        return tl.load(device).to(tl.float64).to(TYPE)


@triton.jit
def is_skipped(found_inf):
    """1 where the step changes nothing."""
    if found_inf is None:
        return tl.full((), 0, tl.int32)
    else:
        return (tl.load(found_inf).to(tl.float64) != 0).to(tl.int32)


@triton.jit
def find(table, SLOTS: tl.constexpr, WIDTH: tl.constexpr):
    """(the row of this program's tensor, the number of its chunk in it)"""
    starts = tl.load(table + tl.arange(0, SLOTS))
    program = tl.program_id(0).to(tl.int64)
    entry = tl.sum((starts <= program).to(tl.int32), 0) - 1
    return table + SLOTS + entry * WIDTH, program - tl.load(table + entry)


@triton.jit
def pointer(row, at: tl.constexpr, TYPE: tl.constexpr, DIMS: tl.constexpr):
    """The tensor whose address is there; 16 bytes are aligned where elements lie one after another."""
    found = tl.load(row + at).to(tl.pointer_type(TYPE), bitcast=True)
    if DIMS == 0:
        found = tl.multiple_of(found, 16)
    return found


@triton.jit
def elements(
    row, chunk, turn, skipped, REFS: tl.constexpr, DIMS: tl.constexpr, WIDE: tl.constexpr, LANES: tl.constexpr,
    BLOCK: tl.constexpr, TURNS: tl.constexpr,
):  # fmt: skip
    """(kept, to be read, to be written, where they lie in each of up to five tensors): a chunk's ``turn``-th block.

    ``skipped``: nothing is to be read or written.
    """
    bits = tl.load(row + REFS).to(tl.pointer_type(tl.uint8), bitcast=True)
    # Limits and bits for what holds of a whole tensor: interpreters make no mask of one truth value for many elements.
    numel = tl.where(skipped != 0, 0, tl.load(row + REFS + 1))
    masked = tl.where(tl.load(row + REFS) != 0, numel, 0)
    always = tl.where(tl.load(row + REFS + 3) != 0, 0, 255)  # bits of what is written even where all is masked
    if DIMS == 0:
        vectors: tl.constexpr = BLOCK // LANES
        vector = (chunk * TURNS + turn) * vectors + tl.arange(0, vectors)[:, None]
        here = vector < numel // LANES
        at = vector * LANES
        byte = tl.load(bits + (at >> 3), mask=vector < masked // LANES, other=255).to(tl.int32)
        lane = tl.arange(0, LANES)[None, :]
        keep = ((byte >> ((at & 7).to(tl.int32) + lane)) & 1) != 0
        reads = tl.broadcast_to(here & (byte != 0), (vectors, LANES))
        writes = tl.broadcast_to(here & ((byte | always) != 0), (vectors, LANES))
        at += lane
        return keep, reads, writes, at, at, at, at, at
    else:
        at = (chunk * TURNS + turn) * BLOCK + tl.arange(0, BLOCK)
        here = at < numel
        left = at if WIDE else at.to(tl.int32)
        bit = tl.zeros((BLOCK,), tl.int64)
        at0, at1, at2, at3, at4 = bit, bit, bit, bit, bit
        axes = row + REFS + 4
        for d in tl.static_range(DIMS - 1, -1, -1):
            size = tl.load(axes + d)
            size = size if WIDE else size.to(tl.int32)
            outer = left // size
            i = (left - outer * size).to(tl.int64)
            left = outer
            bit += i * tl.load(axes + DIMS + d)
            at0 += i * tl.load(axes + 2 * DIMS + d)
            at1 += i * tl.load(axes + 3 * DIMS + d)
            if REFS > 2:
                at2 += i * tl.load(axes + 4 * DIMS + d)
            if REFS > 3:
                at3 += i * tl.load(axes + 5 * DIMS + d)
            if REFS > 4:
                at4 += i * tl.load(axes + 6 * DIMS + d)
        byte = tl.load(bits + (bit >> 3), mask=at < masked, other=255).to(tl.int32)
        one = (byte >> (bit & 7).to(tl.int32)) & 1
        keep = one != 0
        return keep, here & keep, here & ((one | always) != 0), at0, at1, at2, at3, at4


@triton.jit
def quotient(a, b):
    """Rounded to nearest."""
    if a.dtype == tl.float32:
        return tl.div_rn(a, b)
    else:
        return a / b


@triton.jit
def root(x):
    """Rounded to nearest."""
    if x.dtype == tl.float32:
        return tl.sqrt_rn(x)
    else:
        return tl.sqrt(x)


@triton.jit
def gradient(stored, scale, SCALED: tl.constexpr, MAXIMIZE: tl.constexpr, TYPE: tl.constexpr):
    """As it is computed with: widened, negated for ``MAXIMIZE``, then unscaled."""
    g = stored.to(TYPE)
    if MAXIMIZE:
        g = g * -1.0  # the subtraction from zero that Triton makes of -g gives no -0.0
    if SCALED:
        g = quotient(g, tl.broadcast_to(scale, g.shape))
    return g


def launch(kernel: Any, launches: Iterable[Launch], refs: int, *args: Any, **constants: Any) -> None:
    """``kernel(table, *args, ...)`` for each of the tables of a step; ``refs``: parameter, gradient and states."""
    for one in launches:
        lanes = 16 // max(one.dtype.itemsize, one.state_dtype.itemsize)
        # Vectors that a thread holds of each tensor: more, where there are many tensors, would take too many registers.
        flat = WARPS * 32 * lanes * (2 if refs <= 3 else 1)
        chunk, block = (WALKED_CHUNK, _WALKED_BLOCK) if one.dims else (FLAT_CHUNK, flat)
        kernel[(one.chunks,)](
            one.table, *args, T=TYPES[one.dtype], S=TYPES[one.state_dtype], SLOTS=one.slots, REFS=refs, DIMS=one.dims,
            WIDE=one.wide, LANES=lanes, BLOCK=block, TURNS=chunk // block, num_warps=WARPS, enable_fp_fusion=False,
            **constants,
        )  # fmt: skip


def rate_of(lr: float, lr_tensor: Tensor | None) -> tuple[float, Tensor | None]:
    """A learning rate as kernels take it: a number of the host, or a tensor on the device."""
    if lr_tensor is not None and lr_tensor.device.type == "cpu":
        return float(lr_tensor), None
    return lr, lr_tensor
