"""What ``topk_mask`` means, in plain torch, on any device and any floating dtype."""

from __future__ import annotations

import functools
import itertools
import math

import torch
from torch import Tensor

from ...policy.patterns import parse_pattern
from ...policy.patterns.block import Block
from ...policy.patterns.n_m import NofM
from ...policy.patterns.transposable import Transposable
from ..mask_bits.reference import pack_mask

_TILES_AT_A_TIME = 65536


def _keep_largest(flat: Tensor, keep: int) -> Tensor:
    # torch sorts NaN as the largest value, and a stable sort gives ties to the lowest index.
    order = torch.sort(flat.abs(), descending=True, stable=True).indices[:keep]
    kept = torch.zeros(flat.shape, dtype=torch.bool, device=flat.device)
    kept[order] = True
    return kept


def _compete(flats: list[Tensor], keep: list[int]) -> list[Tensor]:
    """The ``keep[i]`` largest of each, or the ``keep[0]`` largest of all."""
    if len(keep) == len(flats):
        return [_keep_largest(flat, k) for flat, k in zip(flats, keep, strict=True)]
    return list(_keep_largest(torch.cat(flats), keep[0]).split([flat.numel() for flat in flats]))


def _n_of_m(w: Tensor, n: int, m: int) -> Tensor:
    groups = w.reshape(w.shape[0], w.shape[1] // m, m, math.prod(w.shape[2:])).abs()
    largest = torch.sort(groups, dim=2, descending=True, stable=True).indices[:, :, :n]
    return torch.zeros(groups.shape, dtype=torch.bool, device=w.device).scatter_(2, largest, True).reshape(w.shape)


@functools.cache
def transposable_masks() -> tuple[tuple[tuple[int, int], ...], ...]:
    """The 90 masks of a 4x4 tile with two kept in every row and column, as the kept columns of each row, in order."""
    pairs = tuple(itertools.combinations(range(4), 2))
    return tuple(
        rows for rows in itertools.product(pairs, repeat=4) if sorted(sum(rows, ())) == [0, 0, 1, 1, 2, 2, 3, 3]
    )


def _transposable(w: Tensor) -> Tensor:
    o, i, k = w.shape[0] // 4, w.shape[1] // 4, math.prod(w.shape[2:])
    tiles = w.reshape(o, 4, i, 4, k).permute(0, 2, 4, 1, 3).reshape(-1, 4, 4)
    kept = torch.zeros(tiles.shape, dtype=torch.bool, device=w.device)
    columns = torch.tensor(transposable_masks(), device=w.device)  # [90, row, 2]
    for first in range(0, len(tiles), _TILES_AT_A_TIME):
        part = tiles[first : first + _TILES_AT_A_TIME].abs().double()
        rows = [part[:, r, columns[:, r, 0]] + part[:, r, columns[:, r, 1]] for r in range(4)]
        best = (((rows[0] + rows[1]) + rows[2]) + rows[3]).argmax(1)  # the first of equal sums; NaN is the largest
        kept[first : first + _TILES_AT_A_TIME].scatter_(2, columns[best], True)
    return kept.reshape(o, i, k, 4, 4).permute(0, 3, 1, 4, 2).reshape(w.shape)


def _block_scores(w: Tensor, rows: int, columns: int) -> Tensor:
    """Mean magnitude of each block, [C_out / rows, C_in / columns, kernel]."""
    blocks = w.reshape(w.shape[0] // rows, rows, w.shape[1] // columns, columns, math.prod(w.shape[2:]))
    total = torch.zeros(blocks[:, 0, :, 0].shape, dtype=torch.float64, device=w.device)
    for r, c in itertools.product(range(rows), range(columns)):
        total += blocks[:, r, :, c].abs()
    # A tensor: on CUDA, a division by a number is a multiplication by its rounded inverse.
    return total / torch.tensor(rows * columns, dtype=torch.float64, device=w.device)


def _blocks(weights: list[Tensor], keep: list[int], rows: int, columns: int) -> list[Tensor]:
    scores = [_block_scores(w, rows, columns) for w in weights]
    kept = _compete([s.reshape(-1) for s in scores], [k // (rows * columns) for k in keep])
    return [
        k.reshape(s.shape).repeat_interleave(rows, 0).repeat_interleave(columns, 1).reshape(w.shape)
        for k, s, w in zip(kept, scores, weights, strict=True)
    ]


def topk_mask(weights: list[Tensor], keep: list[int], pattern: str) -> tuple[list[Tensor], Tensor]:
    weights = [w.detach() for w in weights]
    parsed = parse_pattern(pattern)
    if isinstance(parsed, NofM):
        kept = [_n_of_m(w, parsed.n, parsed.m) for w in weights]
    elif isinstance(parsed, Transposable):
        kept = [_transposable(w) for w in weights]
    elif isinstance(parsed, Block):
        kept = _blocks(weights, keep, parsed.rows, parsed.columns)
    else:
        kept = _compete([w.reshape(-1) for w in weights], keep)
    return [pack_mask(k) for k in kept], torch.stack([w.isnan().sum() for w in weights])
