"""Cases of ``masked_sgd_``: every option of torch.optim.SGD, shapes around vectors and chunks, layouts, masks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "scalar": ((),),
    "empty_among_others": ((3,), (0, 4), (5,)),
    "around_a_vector": ((1,), (7,), (8,), (9,), (15,), (16,), (17,), (63,)),
    "convolutions": ((16, 3, 3, 3), (32, 16, 1, 1), (10, 33)),
    "around_a_chunk": ((32767,), (32768,), (32769,)),
}

OPTIONS: dict[str, dict[str, float | bool]] = {
    "plain": {"lr": 0.1},
    "decay": {"lr": 0.1, "weight_decay": 1e-2},
    "momentum": {"lr": 0.1, "momentum": 0.9},
    "dampened": {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 1e-2},
    "nesterov": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-2},
    "maximize": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-2, "maximize": True},
    "maximize_plain": {"lr": 0.1, "maximize": True},
    "no_learning": {"lr": 0.0, "momentum": 0.9},
}

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1) if x.dim() > 1 else x,
    "every_other": lambda x: torch.stack((x, x), -1)[..., 0],
    "unaligned": lambda x: torch.cat((x.new_zeros(1), x.flatten()))[1:].view(x.shape),
    "channels_last": lambda x: x.to(memory_format=torch.channels_last) if x.dim() == 4 else x,
}

MASKS: dict[str, Callable[[tuple[int, ...], torch.Generator], Tensor | None]] = {
    "none": lambda shape, g: None,
    "tenth": lambda shape, g: torch.rand(shape, generator=g) < 0.1,
    "all_kept": lambda shape, g: torch.ones(shape, dtype=torch.bool),
    "all_pruned": lambda shape, g: torch.zeros(shape, dtype=torch.bool),
}
