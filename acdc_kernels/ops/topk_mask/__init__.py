"""Top-k thresholding by magnitude, over one tensor or a whole model, straight to mask bits."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...policy.patterns import Pattern, parse_pattern
from ..distributed import is_sharded
from ..dtypes import FLOAT_DTYPES
from . import contract
from .shards import topk_mask_of_shards

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def _integer(name: str, value: object) -> int:
    if isinstance(value, bool):
        raise TypeError(f"topk_mask: {name} must be an int, got {value!r}")
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"topk_mask: {name} must be an int, got {value!r} of type {type(value).__name__}") from None


def _check_keep(name: str, keep: int, numel: int, unit: int) -> None:
    if not 0 <= keep <= numel:
        raise ValueError(f"topk_mask: {name} must be in [0, {numel}], got {keep}")
    if keep % unit:
        raise ValueError(f"topk_mask: {name} must be a multiple of the block's {unit} weights, got {keep}")


def _check_weights(weights: Sequence[Tensor], pattern: Pattern) -> None:
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
        if (reason := pattern.misfit(w.shape)) is not None:
            raise ValueError(
                f"topk_mask: weights[{i}] must fit pattern {pattern.text!r}, got shape {list(w.shape)}: {reason}"
            )


def _check_budgets(weights: Sequence[Tensor], keep: int | Sequence[int] | None, pattern: Pattern) -> list[int]:
    if pattern.fixed:
        if keep is not None:
            raise ValueError(
                f"topk_mask: keep must be None with pattern {pattern.text!r}, which decides it itself, got {keep!r}"
            )
        return []
    if keep is None:
        raise TypeError(f"topk_mask: keep must be an int or a list of ints with pattern {pattern.text!r}, got None")
    if (
        isinstance(keep, (Sequence, Tensor))
        and not isinstance(keep, str)
        and not (isinstance(keep, Tensor) and keep.dim() == 0)
    ):
        budgets = [_integer(f"keep[{i}]", k) for i, k in enumerate(keep)]
        if len(budgets) != len(weights):
            raise ValueError(f"topk_mask: keep must have one entry a weight ({len(weights)}), got {len(budgets)}")
        for i, (k, w) in enumerate(zip(budgets, weights, strict=True)):
            _check_keep(f"keep[{i}]", k, w.numel(), pattern.unit)
        return budgets
    budget = _integer("keep", keep)
    _check_keep("keep", budget, sum(w.numel() for w in weights), pattern.unit)
    return [budget]


def _check(
    weights: Sequence[Tensor], keep: int | Sequence[int] | None, pattern: str, shard_group: ProcessGroup | None
) -> tuple[list[Tensor], list[int], Pattern]:
    if isinstance(weights, Tensor):
        raise TypeError("topk_mask: weights must be a list of tensors, got a Tensor; pass [weight]")
    weights = list(weights)
    if not weights:
        raise ValueError("topk_mask: weights must have at least one tensor, got an empty list")
    try:
        parsed = parse_pattern(pattern)
    except ValueError as error:
        raise ValueError(f"topk_mask: {error}") from None
    _check_weights(weights, parsed)
    if shard_group is None:
        return weights, _check_budgets(weights, keep, parsed), parsed
    if not isinstance(shard_group, torch.distributed.ProcessGroup):
        raise TypeError(f"topk_mask: shard_group must be a ProcessGroup, got {type(shard_group).__name__}")
    if any(map(is_sharded, weights)):
        raise ValueError("topk_mask: shard_group must be None for DTensors, which know their mesh")
    # how many weights there are over all processes is known only there
    return weights, _check_budgets(weights, keep, parsed) if parsed.fixed else [_integer("keep", keep)], parsed


@torch.no_grad()
def topk_mask_with_nan_count(
    weights: Sequence[Tensor],
    keep: int | Sequence[int] | None,
    pattern: str = "unstructured",
    shard_group: ProcessGroup | None = None,
) -> tuple[list[Tensor], Tensor]:
    """As :func:`topk_mask`, and how many NaNs each weight holds: int64 ``[len(weights)]`` on the weights' device."""
    checked, budgets, parsed = _check(weights, keep, pattern, shard_group)
    if shard_group is not None or any(map(is_sharded, checked)):
        return topk_mask_of_shards(checked, budgets, parsed, shard_group)
    return contract.topk_mask_op(checked, budgets, pattern)


def topk_mask(
    weights: Sequence[Tensor],
    keep: int | Sequence[int] | None,
    pattern: str = "unstructured",
    shard_group: ProcessGroup | None = None,
) -> list[Tensor]:
    r"""Bits of the weights of largest magnitude that ``pattern`` allows to be kept together.

    .. math:: m_i = 1 \iff \lvert w_i \rvert \text{ is among the } k \text{ largest}

    The bits are the same on every backend and thread count. In what follows a weight is ``[C_out, C_in, *kernel]``:
    the output axis is dim 0, the input axis dim 1, and the kernel position is the same within a group, tile or block.
    +0 and -0 tie; every NaN counts as larger than Inf.

    ``"unstructured"``
        The ``keep`` largest magnitudes. Ties go to the lowest (tensor order, logical row-major index).
    ``"n:m"`` (``1 <= n < m``)
        Of each m consecutive weights along the input axis the n of largest magnitude; ties to the lowest index.
        ``C_in`` must be a multiple of m, and ``keep`` None.
    ``"2:4-transposable"``
        Tiles of 4 x 4 (output x input axis), exactly two kept in every row and column of each: of the 90 such masks
        the one whose kept magnitudes have the largest sum

        .. math:: ((s_0 + s_1) + s_2) + s_3, \qquad s_r = \lvert w_{r,a} \rvert + \lvert w_{r,b} \rvert, \; a < b

        with every addition in float64, in this order. Of equal sums the mask whose kept indices (row-major in the
        tile) come first lexicographically wins; a sum that is NaN is above all others. ``C_out`` and ``C_in`` must be
        multiples of 4, and ``keep`` None. (Hubara et al. 2021, arXiv 2102.08124, ask for such masks so that the
        backward pass is 2:4 as well.)
    ``"block:RxC"``
        Blocks of R along the output and C along the input axis. A block's score is the mean of its magnitudes: their
        sum in float64, added in index order from 0.0, divided by R * C. The ``keep / (R * C)`` blocks of largest score
        are kept; ties go to the lowest (tensor order, logical index of the block's first weight); a NaN score is the
        largest. ``C_out`` must be a multiple of R, ``C_in`` of C and ``keep`` of R * C.

    Args:
        weights: float32, float64, bfloat16 or float16 tensors, all of one dtype and on one device; any strides; any
            shapes that the pattern divides, empty ones too.
        keep: an int: exactly that many weights over all together; a sequence: that many in each; None where the
            pattern decides it.
        pattern: which shapes of zeros are allowed, see above.
        shard_group: the processes whose ``weights``, one process after another, are one model; each gets the bits of
            its own, and ``keep`` is an int that counts over all of them. None: this process's weights are all there
            are. DTensors know their mesh and take None: they must be sharded along dim 0 over a mesh of one dimension,
            and each process gets the bits of its shards. Unstructured and n:m only; every process must call.

    Returns:
        For each weight its bits, uint8 ``[(n + 7) // 8]``: see :func:`acdc_kernels.unpack_mask`.

    Raises:
        TypeError, ValueError: an empty list, another dtype, mixed dtypes or devices, ``keep`` out of range, no
            multiple of a block or not what the pattern takes, an unknown pattern, a shape that it does not divide.

    Source: the projection of AC/DC (Peste et al. 2021, arXiv 2106.12379, algorithm 1). Beyond the outputs it needs at
    most 3% of the weights' bytes + 1 MiB.
    """
    return topk_mask_with_nan_count(weights, keep, pattern, shard_group)[0]
