"""What the Sparsifier refuses, and in which words."""

from __future__ import annotations

from collections.abc import MutableMapping

import torch
from torch import nn

from .policy.schedules import Schedule

__all__ = ["check_choice", "check_group", "check_one", "check_types"]


def check_types(model: object, optimizer: object, schedule: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"Sparsifier: model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(getattr(optimizer, "masks", None), MutableMapping):
        raise TypeError(
            f"Sparsifier: optimizer must be one with masks, got {type(optimizer).__name__}; "
            "use acdc_kernels.MaskedSGD or MaskedAdamW, drop-ins for torch.optim.SGD and AdamW"
        )
    if not isinstance(schedule, Schedule):
        raise TypeError(
            f"Sparsifier: schedule must be made by acdc_kernels.schedules.acdc or dense, got {type(schedule).__name__}"
        )


def check_choice(name: str, value: object, choices: tuple[str, ...], why: str) -> None:
    if value not in choices:
        raise ValueError(f"Sparsifier: {name} must be {' or '.join(map(repr, choices))}, got {value!r}: {why}")


def check_group(group: object) -> None:
    if group is not None and not (
        torch.distributed.is_available() and isinstance(group, torch.distributed.ProcessGroup)
    ):
        raise TypeError(
            f"Sparsifier: process_group must be a torch.distributed.ProcessGroup or None, got {type(group).__name__}"
        )


def check_one(what: str, values: dict[str, object]) -> None:
    first = {value: name for name, value in reversed(values.items())}
    if len(first) > 1:
        found = ", ".join(f"{value} ({name})" for value, name in first.items())
        raise ValueError(f"Sparsifier: competing weights must share one {what}, got {found}; exempt the others")
