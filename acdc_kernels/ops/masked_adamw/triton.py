"""``masked_adamw_`` on a GPU in Triton, for builds without CUDA kernels: all tensors of one type in one launch.

Another launch before them counts the steps and computes what depends on them. It rounds as the compiled kernels do,
except for powers in the bias corrections, which come from logarithms of the host in float64.
"""

import math
from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .._machine import on_device
from .._update_tables import tables
from ..triton_update import (
    elements,
    find,
    gradient,
    is_skipped,
    launch,
    number,
    pointer,
    quotient,
    rate_of,
    root,
)

_STEPS = 128  # tensors a program of the first launch


@triton.jit(do_not_specialize=["count"])
def _start(
    steps, count, numbers, lr: "fp64", log_beta1: "fp64", log_beta2: "fp64", weight_decay: "fp64", lr_tensor,
    found_inf, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = i < tl.where(is_skipped(found_inf) != 0, 0, count)
    address = tl.load(steps + i, mask=here, other=0).to(tl.pointer_type(tl.float32), bitcast=True)
    step = tl.load(address, mask=here, other=0) + 1
    tl.store(address, step, mask=here)
    step = step.to(tl.float64)
    rate = number(lr, lr_tensor, tl.float64)
    one = tl.full((BLOCK,), 1, tl.float64)
    correction1 = one - tl.exp2(step * number(log_beta1, None, tl.float64))
    correction2 = one - tl.exp2(step * number(log_beta2, None, tl.float64))
    tl.store(numbers + 3 * i, one - rate * number(weight_decay, None, tl.float64), mask=here)
    tl.store(numbers + 3 * i + 1, -(rate / correction1), mask=here)
    tl.store(numbers + 3 * i + 2, tl.sqrt(correction2), mask=here)


@triton.jit
def _update(
    table, numbers, lerp: "fp64", fresh: "fp64", beta2: "fp64", eps: "fp64", grad_scale, found_inf,
    T: tl.constexpr, S: tl.constexpr, SLOTS: tl.constexpr, REFS: tl.constexpr, DIMS: tl.constexpr, WIDE: tl.constexpr,
    LANES: tl.constexpr, BLOCK: tl.constexpr, TURNS: tl.constexpr, NEAR: tl.constexpr, MAXIMIZE: tl.constexpr,
):  # fmt: skip
    C: tl.constexpr = tl.float64 if T == tl.float64 else tl.float32
    row, chunk = find(table, SLOTS, REFS + 4 + DIMS * (2 + REFS))
    lerp = number(lerp, None, C) if NEAR else number(lerp, None, C) - 1
    fresh = number(fresh, None, C)
    beta2 = number(beta2, None, C)
    eps = number(eps, None, C)
    scale = number(1.0, grad_scale, C)
    skipped = is_skipped(found_inf)
    constants = numbers + 3 * tl.load(row + REFS + 2)
    decay = tl.load(constants).to(C)
    minus_step_size = tl.load(constants + 1).to(C)
    correction = tl.load(constants + 2).to(C)
    param = pointer(row, 0, T, DIMS)
    grad = pointer(row, 1, T, DIMS)
    average = pointer(row, 2, S, DIMS)
    square = pointer(row, 3, S, DIMS)
    for turn in range(TURNS):
        keep, reads, writes, at_p, at_g, at_m, at_v, at_x = elements(
            row, chunk, turn, skipped, REFS, DIMS, WIDE, LANES, BLOCK, TURNS
        )
        p = tl.load(param + at_p, mask=reads, other=0).to(C)
        g = tl.load(grad + at_g, mask=reads, other=0)
        m = tl.load(average + at_m, mask=reads, other=0).to(C)
        v = tl.load(square + at_v, mask=reads, other=0).to(C)
        g = gradient(g, scale, grad_scale is not None, MAXIMIZE, C)
        m = tl.fma(tl.broadcast_to(lerp, p.shape), g - m, m if NEAR else g)
        v = tl.fma(fresh * g, g, v * beta2)
        tl.store(average + at_m, tl.where(keep, m, 0).to(S), mask=writes)
        tl.store(square + at_v, tl.where(keep, v, 0).to(S), mask=writes)
        if REFS == 5:
            largest = pointer(row, 4, S, DIMS)
            x = tl.load(largest + at_x, mask=reads, other=0).to(C)
            v = tl.where((x > v) | (x != x), x, v)
            tl.store(largest + at_x, tl.where(keep, v, 0).to(S), mask=writes)
        denominator = quotient(root(v), tl.broadcast_to(correction, p.shape)) + eps
        p = p * decay + quotient(minus_step_size * m, denominator)
        tl.store(param + at_p, tl.where(keep, p, 0).to(T), mask=writes)


def masked_adamw_(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    masks: list[Tensor | None],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    amsgrad: bool,
    maximize: bool,
    lr_tensor: Tensor | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    zeros_kept: Sequence[bool] = (),
) -> None:
    columns = [params, grads, exp_avgs, exp_avg_sqs, *([max_exp_avg_sqs] if amsgrad else ())]
    rate, rate_tensor = rate_of(lr, lr_tensor)
    logs = [math.log2(beta) if beta > 0 else -math.inf for beta in (beta1, beta2)]
    near = 1 - beta1 < 0.5  # of the two ends of m's interpolation, m is the base
    with on_device(params[0]):
        made = tables(columns, masks, zeros_kept, steps)
        _start[(-(-len(steps) // _STEPS),)](
            made.extra, len(steps), made.scratch, rate, *logs, weight_decay, rate_tensor, found_inf, BLOCK=_STEPS,
            num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
        launch(
            _update, made.launches, len(columns),
            made.scratch, 1 - beta1, 1 - beta2, beta2, eps, grad_scale, found_inf,
            NEAR=near, MAXIMIZE=maximize,
        )  # fmt: skip
