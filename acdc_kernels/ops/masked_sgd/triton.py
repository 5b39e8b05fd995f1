"""``masked_sgd_`` on a GPU in Triton, for builds without CUDA kernels: all tensors of one type in one launch.

It rounds as the reference does in float32 and float64, each sum being one fused multiply-add.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .._machine import on_device
from .._update_tables import tables
from ..triton_update import elements, find, gradient, is_skipped, launch, number, pointer, rate_of


@triton.jit
def _update(
    table, lr: "fp64", momentum: "fp64", fresh: "fp64", decay: "fp64", lr_tensor, grad_scale, found_inf,
    T: tl.constexpr, S: tl.constexpr, SLOTS: tl.constexpr, REFS: tl.constexpr, DIMS: tl.constexpr, WIDE: tl.constexpr,
    LANES: tl.constexpr, BLOCK: tl.constexpr, TURNS: tl.constexpr, DECAYS: tl.constexpr, FIRST: tl.constexpr,
    NESTEROV: tl.constexpr, MAXIMIZE: tl.constexpr,
):  # fmt: skip
    C: tl.constexpr = tl.float64 if T == tl.float64 else tl.float32
    row, chunk = find(table, SLOTS, REFS + 4 + DIMS * (2 + REFS))
    minus_lr = number(lr, lr_tensor, C) * -1.0
    momentum = number(momentum, None, C)
    fresh = number(fresh, None, C)
    decay = number(decay, None, C)
    scale = number(1.0, grad_scale, C)
    skipped = is_skipped(found_inf)
    param = pointer(row, 0, T, DIMS)
    grad = pointer(row, 1, T, DIMS)
    for turn in range(TURNS):
        keep, reads, writes, at_p, at_g, at_b, _, _ = elements(
            row, chunk, turn, skipped, REFS, DIMS, WIDE, LANES, BLOCK, TURNS
        )
        p = tl.load(param + at_p, mask=reads, other=0).to(C)
        g = tl.load(grad + at_g, mask=reads, other=0)
        g = gradient(g, scale, grad_scale is not None, MAXIMIZE, C)
        if DECAYS:
            g = tl.fma(tl.broadcast_to(decay, p.shape), p, g)
        if REFS == 3:
            buffer = pointer(row, 2, S, DIMS)
            if FIRST:
                b = g
            else:
                b = tl.load(buffer + at_b, mask=reads, other=0).to(C)
                b = tl.fma(tl.broadcast_to(fresh, p.shape), g, b * momentum)
            tl.store(buffer + at_b, tl.where(keep, b, 0).to(S), mask=writes)
            g = tl.fma(tl.broadcast_to(momentum, p.shape), b, g) if NESTEROV else b
        p = tl.fma(tl.broadcast_to(minus_lr, p.shape), g, p)
        tl.store(param + at_p, tl.where(keep, p, 0).to(T), mask=writes)


def masked_sgd_(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor],
    masks: list[Tensor | None],
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    first_step: bool,
    lr_tensor: Tensor | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    zeros_kept: Sequence[bool] = (),
) -> None:
    columns = [params, grads, momentum_buffers] if momentum != 0 else [params, grads]
    rate, rate_tensor = rate_of(lr, lr_tensor)
    with on_device(params[0]):
        launch(
            _update, tables(columns, masks, zeros_kept).launches, len(columns),
            rate, momentum, 1 - dampening, weight_decay, rate_tensor, grad_scale, found_inf,
            DECAYS=weight_decay != 0, FIRST=first_step, NESTEROV=nesterov, MAXIMIZE=maximize,
        )  # fmt: skip


def skips_kept_zeros(param: Tensor) -> bool:
    return True
