"""``topk_mask`` over shards of a model that several processes hold together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...policy.patterns import Pattern
from ..distributed import local_part, shard_budgets, shard_group_of
from . import contract

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def topk_mask_of_shards(
    weights: Sequence[Tensor], budgets: list[int], pattern: Pattern, shard_group: ProcessGroup | None
) -> tuple[list[Tensor], Tensor]:
    """(bits of this process's shards, NaNs in each weight as a whole), as if one process held all of them.

    shard_group: None for DTensors; else the processes whose plain tensors, one process after another, are the model.
    Raises ValueError for a pattern whose groups could lie on two processes.
    """
    if pattern.structured and not (pattern.fixed and pattern.unit == 1 and pattern.text != "2:4-transposable"):
        raise ValueError(
            f"topk_mask: pattern must be 'unstructured' or 'n:m' for sharded weights, got {pattern.text!r}"
        )
    try:
        group = shard_group_of(weights) if shard_group is None else shard_group
    except ValueError as error:
        raise ValueError(f"topk_mask: {error}") from None
    shards = [local_part(w) for w in weights]
    if budgets:
        budgets = shard_budgets(shards, budgets, group, by_weight=shard_group is None)
    masks, nan_count = contract.topk_mask_op(shards, budgets, pattern.text)
    if shard_group is None:
        torch.distributed.all_reduce(nan_count, group=group)
    return masks, nan_count
