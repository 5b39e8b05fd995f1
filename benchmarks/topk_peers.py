"""Structured masks as one writes them in plain torch: what `bench topk` compares the patterns with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from acdc_kernels.ops.topk_mask.reference import transposable_masks
from acdc_kernels.policy.patterns import parse_pattern
from acdc_kernels.policy.patterns.block import Block
from acdc_kernels.policy.patterns.n_m import NofM


def _inputs_last(weight: Tensor) -> Tensor:
    return weight.movedim(1, -1)


def n_of_m(weights: Sequence[Tensor], n: int, m: int) -> list[Tensor]:
    """The input axis in groups of m, topk, scatter. The masks' input axis is last."""
    masks = []
    for w in weights:
        groups = _inputs_last(w).abs().reshape(-1, m)
        kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, groups.topk(n, sorted=False).indices, True)
        masks.append(kept)
    return masks


@functools.cache
def _masks_of_a_tile(device: torch.device) -> Tensor:
    every = [[float(c in row) for row in rows for c in range(4)] for rows in transposable_masks()]
    return torch.tensor(every, device=device)


def transposable(weights: Sequence[Tensor]) -> list[Tensor]:
    """All 90 sums of every tile as one float32 matrix product, then argmax. A mask a tile."""
    every, masks = _masks_of_a_tile(weights[0].device), []
    for w in weights:
        o, i = w.shape[:2]
        tiles = w.abs().reshape(o // 4, 4, i // 4, 4, -1).permute(0, 2, 4, 1, 3).reshape(-1, 16)
        masks.append(every[(tiles @ every.t()).argmax(1)].bool())
    return masks


def blocks(weights: Sequence[Tensor], rows: int, columns: int, keep: int) -> list[Tensor]:
    """Mean magnitude of each block in float32, one topk over all, scatter. A bool a block."""
    scores = [
        w.abs().reshape(w.shape[0] // rows, rows, w.shape[1] // columns, columns, -1).mean((1, 3)) for w in weights
    ]
    flat = torch.cat([s.flatten() for s in scores])
    kept = torch.zeros_like(flat, dtype=torch.bool)
    kept[flat.topk(keep // (rows * columns), sorted=False).indices] = True
    return [k.view(s.shape) for k, s in zip(kept.split([s.numel() for s in scores]), scores, strict=True)]


def peers(pattern: str, weights: Sequence[Tensor], keep: int | None) -> dict[str, Callable[[], object]]:
    """Name -> call."""
    parsed = parse_pattern(pattern)
    if isinstance(parsed, NofM):
        return {"torch groups+topk": lambda: n_of_m(weights, parsed.n, parsed.m)}
    if isinstance(parsed, Block):
        assert keep is not None
        return {"torch mean+topk": lambda: blocks(weights, parsed.rows, parsed.columns, keep)}
    return {"torch matmul+argmax": lambda: transposable(weights)}
