"""Top-k thresholding by magnitude, over one tensor or a whole model, straight to mask bits."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from ..dtypes import FLOAT_DTYPES
from . import contract

PATTERNS = ("unstructured",)


def _integer(name: str, value: object) -> int:
    if isinstance(value, bool):
        raise TypeError(f"topk_mask: {name} must be an int, got {value!r}")
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"topk_mask: {name} must be an int, got {value!r} of type {type(value).__name__}") from None


def _check_keep(name: str, keep: int, numel: int) -> None:
    if not 0 <= keep <= numel:
        raise ValueError(f"topk_mask: {name} must be in [0, {numel}], got {keep}")


def _check(weights: Sequence[Tensor], keep: int | Sequence[int], pattern: str) -> tuple[list[Tensor], list[int]]:
    if isinstance(weights, Tensor):
        raise TypeError("topk_mask: weights must be a list of tensors, got a Tensor; pass [weight]")
    weights = list(weights)
    if not weights:
        raise ValueError("topk_mask: weights must have at least one tensor, got an empty list")
    if pattern not in PATTERNS:
        raise ValueError(f"topk_mask: pattern must be one of {', '.join(map(repr, PATTERNS))}, got {pattern!r}")
    for i, w in enumerate(weights):
        if not isinstance(w, Tensor) or w.dtype not in FLOAT_DTYPES or w.layout != torch.strided:
            got = f"{w.dtype} ({w.layout})" if isinstance(w, Tensor) else type(w).__name__
            raise TypeError(
                f"topk_mask: weights[{i}] must be a float32, float64, bfloat16 or float16 tensor, got {got}"
            )
        if w.dtype != weights[0].dtype:
            raise TypeError(f"topk_mask: weights[{i}] must be {weights[0].dtype} as weights[0], got {w.dtype}")
        if w.device != weights[0].device:
            raise ValueError(f"topk_mask: weights[{i}] must be on {weights[0].device} as weights[0], got {w.device}")
    if (
        isinstance(keep, (Sequence, Tensor))
        and not isinstance(keep, str)
        and not (isinstance(keep, Tensor) and keep.dim() == 0)
    ):
        budgets = [_integer(f"keep[{i}]", k) for i, k in enumerate(keep)]
        if len(budgets) != len(weights):
            raise ValueError(f"topk_mask: keep must have one entry a weight ({len(weights)}), got {len(budgets)}")
        for i, (k, w) in enumerate(zip(budgets, weights, strict=True)):
            _check_keep(f"keep[{i}]", k, w.numel())
    else:
        budgets = [_integer("keep", keep)]
        _check_keep("keep", budgets[0], sum(w.numel() for w in weights))
    return weights, budgets


@torch.no_grad()
def topk_mask_with_nan_count(
    weights: Sequence[Tensor], keep: int | Sequence[int], pattern: str = "unstructured"
) -> tuple[list[Tensor], Tensor]:
    """As :func:`topk_mask`, and how many NaNs each weight holds: int64 ``[len(weights)]`` on the weights' device."""
    checked, budgets = _check(weights, keep, pattern)
    return contract.topk_mask_op(checked, budgets, pattern)


def topk_mask(
    weights: Sequence[Tensor], keep: int | Sequence[int], pattern: str = "unstructured", shard_group: None = None
) -> list[Tensor]:
    r"""Bits of the ``keep`` weights of largest magnitude.

    .. math:: m_i = 1 \iff \lvert w_i \rvert \text{ is among the } k \text{ largest}

    Exactly ``keep`` bits are set, always. Ties go to the lowest (tensor order, logical row-major index); +0 and -0
    tie; every NaN counts as larger than Inf. The bits are the same on every backend and thread count.

    Args:
        weights: float32, float64, bfloat16 or float16 tensors, all of one dtype and on one device; any shapes and
            strides, empty ones too.
        keep: an int: that many over all weights together; a sequence: that many in each.
        pattern: which shapes of zeros are allowed; ``"unstructured"``.
        shard_group: reserved for sharded models; must be None.

    Returns:
        For each weight its bits, uint8 ``[(n + 7) // 8]``: see :func:`acdc_kernels.unpack_mask`.

    Raises:
        TypeError, ValueError: an empty list, another dtype, mixed dtypes or devices, ``keep`` out of range, an
            unknown pattern.

    Source: the projection of AC/DC (Peste et al. 2021, arXiv 2106.12379, algorithm 1). Beyond the outputs it needs at
    most 3% of the weights' bytes + 1 MiB.
    """
    if shard_group is not None:
        raise ValueError(f"topk_mask: shard_group must be None in this version, got {type(shard_group).__name__}")
    return topk_mask_with_nan_count(weights, keep, pattern)[0]
