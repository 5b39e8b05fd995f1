"""Weights that several processes hold: shards of them, or replicas.

The selection over shards never gathers the model. A radix selection over magnitude keys, whose histograms are summed
over the processes, finds the k-th largest weight; what is left to share out are the ties with it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["disagreeing", "from_first", "is_sharded", "local_part", "shard_budgets", "shard_group_of"]

_BINS = 12  # bits of the key that a histogram tells apart
# Together a small part of the 1 MiB that a selection may need.
_COUNTS = 1 << 13  # of all histograms together
_BLOCK = 1 << 14  # elements whose keys are in memory at a time
_INTEGERS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}


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
    width = torch.iinfo(_INTEGERS[shards[0].dtype]).bits - 1
    at_once = max(1, min(_BINS, (_COUNTS // rows).bit_length() - 1))
    while width > 0:
        shift = max(width - at_once, 0)
        bins = 1 << (width - shift)
        counts = torch.zeros(rows, bins, dtype=torch.int64, device=device)
        for i, shard in enumerate(shards):
            for keys in _keys(shard):
                # one bin more on each side for the keys outside
                inside = keys.sub_(base[row_of[i]]).bitwise_right_shift_(shift).clamp_(-1, bins).add_(1)
                counts[row_of[i]] += torch.bincount(inside, minlength=bins + 2)[1:-1]
        _sum(counts, group)
        above = counts.flip(1).cumsum(1)  # [r, j]: keys in the j + 1 highest bins
        steps = (above < rank[:, None]).sum(1).clamp(max=bins - 1)
        passed = torch.where(steps > 0, above.gather(1, (steps - 1).clamp(min=0)[:, None]).squeeze(1), 0)
        rank = rank - passed
        base = base + ((bins - 1 - steps) << shift)
        width = shift
    greater, equal = _around(shards, [base[row] for row in row_of])
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


def _around(shards: Sequence[Tensor], thresholds: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(keys above, keys equal) of each shard's threshold: int64 [len(shards)] each."""
    greater = thresholds[0].new_zeros(len(shards))
    equal = thresholds[0].new_zeros(len(shards))
    for i, (shard, threshold) in enumerate(zip(shards, thresholds, strict=True)):
        for keys in _keys(shard):
            greater[i] += (keys > threshold).sum()
            equal[i] += (keys == threshold).sum()
    return greater, equal


def _keys(shard: Tensor) -> Iterator[Tensor]:
    """Magnitudes as integers that are ordered as they are, every NaN just above Inf: a new int64 tensor a block."""
    integer = _INTEGERS[shard.dtype]
    magnitude = torch.iinfo(integer).max
    inf = int(torch.tensor(float("inf"), dtype=shard.dtype).view(integer))
    for block in _blocks(shard.detach()):
        yield (block.view(integer) & magnitude).clamp_(max=inf + 1).to(torch.int64)


def _blocks(shard: Tensor) -> Iterator[Tensor]:
    """Its elements, at most _BLOCK at a time, as [n]; copied only where they don't lie one after another."""
    if shard.is_contiguous():
        flat = shard.view(-1)
        yield from (flat[i : i + _BLOCK] for i in range(0, len(flat), _BLOCK))
    elif shard.numel() <= _BLOCK:
        yield shard.reshape(-1)
    else:
        rows = max(1, _BLOCK // shard[0].numel())
        for i in range(0, len(shard), rows):
            yield from _blocks(shard[i : i + rows] if rows > 1 or shard.dim() == 1 else shard[i])


def _sum(tensor: Tensor, group: ProcessGroup) -> None:
    torch.distributed.all_reduce(tensor, group=group)
