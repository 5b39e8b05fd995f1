"""Cases of ``magnitude_histogram``: the weights are those of ``topk_mask``; here are the intervals."""

from __future__ import annotations

import torch
from torch import Tensor

from .contract import MOST_BITS
from .reference import keys


def windows(dtype: torch.dtype, at_once: int = MOST_BITS) -> list[tuple[int, int]]:
    """(width, shift) of a selection that tells ``at_once`` bits apart at a time, down to single keys."""
    width = dtype.itemsize * 8 - 1
    steps = [*range(width, 0, -at_once), 0]
    return [(high, max(high - at_once, 0)) for high in steps]


def bases(weights: list[Tensor], rows: int, width: int, seed: int = 0) -> dict[str, Tensor]:
    """Where intervals begin: at both ends of all keys, at NaN's, and ``rows`` different ones around keys there are."""
    g = torch.Generator().manual_seed(seed)
    dtype = weights[0].dtype
    most = (1 << (dtype.itemsize * 8 - 1)) - 1
    nan = int(keys(torch.tensor(float("nan"), dtype=dtype)))
    present = torch.cat([*map(keys, weights), torch.tensor([1])])
    drawn = present[torch.randint(len(present), (rows,), generator=g)]
    before = (torch.rand(rows, generator=g, dtype=torch.float64) * 2.0 ** max(width - 1, 0)).long()
    return {
        "from zero": torch.zeros(rows, dtype=torch.int64),
        "around a key": (drawn - before).clamp(min=0),
        "at a key": drawn,
        "at NaN": torch.full((rows,), nan),
        "above all": torch.full((rows,), most),
    }
