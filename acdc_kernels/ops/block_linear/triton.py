"""The products of blocks on a GPU, in Triton; ``configs`` says how a kernel can go about one."""

from __future__ import annotations

import torch
from torch import Tensor

from .._machine import arithmetic, machine
from .configs import BYTES, FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT, Config, check, default, parse
from .triton_samples import multiply
from .triton_weight import weight_gradient


def _config(op: str, name: str, text: str, product: str, x: Tensor, meta: list[int], n: int) -> Config:
    dtype = arithmetic(x.dtype)
    if dtype not in BYTES:
        raise TypeError(f"{op}: x must be float32, bfloat16 or float16 on a GPU, got {x.dtype}")
    sms, capability = machine(x.device)
    if not text:
        return default(product, dtype, meta, n, sms, capability)
    try:
        config = parse(text)
        check(config, product, meta, capability)
    except ValueError as error:
        raise ValueError(f"{op}: {name}: {error}") from None
    return config


def block_linear(
    x: Tensor, values: Tensor, index: list[Tensor], meta: list[int], bias: Tensor | None, config: str
) -> Tensor:
    y = x.new_empty((*x.shape[:-1], meta[0]))
    chosen = _config("block_linear", "config", config, FORWARD, x, meta, x.shape[:-1].numel())
    if y.numel():
        multiply(FORWARD, chosen, x, values, index, meta, bias, y)
    return y


def block_linear_backward(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    index: list[Tensor],
    meta: list[int],
    need_input: bool,
    need_weight: bool,
    whole: bool,
    dtype: torch.dtype,
    input_config: str,
    weight_config: str,
) -> tuple[Tensor, Tensor]:
    rows, cols, kept, r, c = meta
    op, n = "block_linear_backward", grad.shape[:-1].numel()
    of_input = of_weight = None
    if need_input:
        of_input = _config(op, "input_config", input_config, INPUT_GRADIENT, grad, meta, n)
    if need_weight:
        of_weight = _config(op, "weight_config", weight_config, WEIGHT_GRADIENT, grad, meta, n)
    grad_x = grad.new_empty((*grad.shape[:-1], cols) if need_input else (0,))
    if of_input is not None and grad_x.numel():
        multiply(INPUT_GRADIENT, of_input, grad, values, index, meta, None, grad_x)
    shape = ((rows, cols) if whole else (kept // (r * c), r, c)) if need_weight else (0,)
    grad_weight = grad.new_zeros(shape, dtype=dtype) if whole else grad.new_empty(shape, dtype=dtype)
    if of_weight is not None and kept:
        weight_gradient(of_weight, grad, x, index, meta, grad_weight, whole)
    return grad_x, grad_weight
