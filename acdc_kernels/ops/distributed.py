"""Weights that several processes hold: shards of them, or replicas.

The selection over shards never gathers the model. A radix selection over magnitude keys, whose histograms are summed
over the processes, finds the k-th largest weight; what is left to share out are the ties with it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .magnitude_histogram import magnitude_histogram
from .magnitude_histogram.contract import MOST_BITS

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["disagreeing", "from_first", "is_sharded", "local_part", "shard_budgets", "shard_group_of"]

_COUNTS = 1 << 13  # of all histograms together: a small part of the 1 MiB that a selection may need


def is_sharded(tensor: object) -> bool:
    """Whether it is a DTensor. Where nobody has imported DTensor (it takes a second), nothing is one."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """This process's shard of a DTensor, sharing its memory; a plain tensor is its own."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def shard_group_of(tensors: Sequence[Tensor]) -> ProcessGroup:
    """The group over which DTensors are sharded along their first dimension.

    Raises ValueError if they are not: several meshes, a mesh of more than one dimension, another placement.
    """
    meshes = {t.device_mesh for t in tensors if is_sharded(t)}
    if len(meshes) != 1 or not all(map(is_sharded, tensors)):
        raise ValueError("weights must all be DTensors of one mesh, or all plain tensors")
    (mesh,) = meshes
    for i, t in enumerate(tensors):
        if mesh.ndim != 1 or not t.placements[0].is_shard(0):
            raise ValueError(
                f"weights[{i}] must be sharded along its first dimension over a mesh of one dimension, "
                f"got {t.placements} over {mesh.ndim}"
            )
    return mesh.get_group()


def disagreeing(tensors: Sequence[Tensor], group: ProcessGroup) -> list[int]:
    """The indices of the tensors that aren't the same on every process of ``group``: the same list on all of them.

    Needs memory for one more tensor at a time, and sends each once.
    """
    differs = torch.zeros(len(tensors), dtype=torch.int64, device=tensors[0].device)
    for i, tensor in enumerate(tensors):
        first = tensor.clone()
        torch.distributed.broadcast(first, torch.distributed.get_global_rank(group, 0), group)
        differs[i] = int(not torch.equal(first, tensor))
    _sum(differs, group)
    return differs.nonzero().flatten().tolist()


def from_first(text: str, group: ProcessGroup, device: torch.device) -> str:
    """The ``text`` of the group's rank 0, on every process; it travels in tensors on ``device``."""
    first = torch.distributed.get_global_rank(group, 0)
    data = torch.frombuffer(bytearray(text.encode() + b"\n"), dtype=torch.uint8).to(device)
    size = torch.tensor([data.numel()], device=device)
    torch.distributed.broadcast(size, first, group)
    if torch.distributed.get_rank(group) != 0:
        data = torch.empty(int(size), dtype=torch.uint8, device=device)
    torch.distributed.broadcast(data, first, group)
    return bytes(data.tolist()).decode().removesuffix("\n")


def shard_budgets(shards: Sequence[Tensor], keep: Sequence[int], group: ProcessGroup, by_weight: bool) -> list[int]:
    """How many weights are kept in each of this process's shards: [len(shards)].

    keep: one budget over all shards of all processes, or one for each shard's whole weight. Ties with the k-th largest
    go to the lowest (weight, process) with ``by_weight``, else to the lowest (process, weight). Every process must
    call it. Raises ValueError, on every process, if a budget is larger than what there is.
    """
    each = len(keep) == len(shards)
    rows = len(shards) if each else 1
    device = shards[0].device
    row_of = list(range(len(shards))) if each else [0] * len(shards)
    sizes = torch.zeros(rows, dtype=torch.int64, device=device)
    for i, shard in enumerate(shards):
        sizes[row_of[i]] += shard.numel()
    _sum(sizes, group)
    if too_many := [(k, n) for k, n in zip(keep, sizes.tolist(), strict=True) if not 0 <= k <= n]:
        raise ValueError(f"topk_mask: keep must be in [0, {too_many[0][1]}], got {too_many[0][0]}")
    rank = torch.tensor(list(keep), dtype=torch.int64, device=device)  # counted from the largest key, from 1
    base = torch.zeros(rows, dtype=torch.int64, device=device)
    width = shards[0].dtype.itemsize * 8 - 1
    at_once = max(1, min(MOST_BITS, (_COUNTS // rows).bit_length() - 1))
    while width > 0:
        shift = max(width - at_once, 0)
        bins = 1 << (width - shift)
        counts = magnitude_histogram(shards, base, width, shift)
        _sum(counts, group)
        above = counts[:, :-1].flip(1).cumsum(1)  # [r, j]: keys in the j + 1 highest bins
        steps = (above < rank[:, None]).sum(1).clamp(max=bins - 1)
        passed = torch.where(steps > 0, above.gather(1, (steps - 1).clamp(min=0)[:, None]).squeeze(1), 0)
        rank = rank - passed
        base = base + ((bins - 1 - steps) << shift)
        width = shift
    equal, greater = magnitude_histogram(shards, base.expand(len(shards)), 0, 0).t().contiguous()
    taken = (rank[row_of] - _ties_before(equal, group, by_weight, each)).clamp(min=0).minimum(equal)
    none = rank.new_tensor([keep[row] == 0 for row in row_of], dtype=torch.bool)
    return torch.where(none, 0, greater + taken).tolist()


def _ties_before(equal: Tensor, group: ProcessGroup, by_weight: bool, each: bool) -> Tensor:
    """How many ties come before those of each of this process's shards: int64 [len(shards)].

    Only with ``by_weight`` do all processes have shards of the same weights, so that they can send them one by one.
    """
    mine = equal if by_weight else equal.sum().reshape(1)
    everyone = [torch.empty_like(mine) for _ in range(group.size())]
    torch.distributed.all_gather(everyone, mine, group)
    ties = torch.stack(everyone)
    before = ties[: torch.distributed.get_rank(group)].sum(0)
    if each:
        return before
    in_order = ties.sum(0) if by_weight else equal
    return before + in_order.cumsum(0) - in_order


def _sum(tensor: Tensor, group: ProcessGroup) -> None:
    torch.distributed.all_reduce(tensor, group=group)
