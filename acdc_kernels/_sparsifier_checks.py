"""What the Sparsifier refuses, and in which words."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

import torch
from torch import nn
from torch.nn import Parameter

from .nn import is_wrapped, reshard
from .policy.patterns import Pattern
from .policy.schedules import Schedule

__all__ = [
    "check_bare",
    "check_choice",
    "check_group",
    "check_held",
    "check_one",
    "check_shards",
    "check_tie_rule",
    "check_types",
    "check_unmasked",
]


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


def check_tie_rule(tie_rule: str, pattern: Pattern) -> None:
    if tie_rule == "reference" and pattern.structured:
        raise ValueError(
            f"Sparsifier: pattern must be 'unstructured' for tie_rule 'reference', got {pattern.text!r}: the paper's "
            "code leaves ties to an unstable sort there"
        )


def check_bare(model: nn.Module) -> None:
    if any(is_wrapped(layer) for layer in model.modules()):
        raise ValueError(
            "Sparsifier: model must not have a sparsifier already; remove() that one first, or for a copy of its "
            "model call acdc_kernels.nn.unwrap(copy)"
        )


def check_unmasked(weights: Mapping[str, Parameter], optimizer: torch.optim.Optimizer) -> None:
    if masked := [name for name, p in weights.items() if p in optimizer.masks]:
        raise ValueError(
            f"Sparsifier: optimizer.masks must not hold weights that compete, got {', '.join(masked)}; exempt them "
            "or delete their masks (when resuming, load the optimizer's state after making the sparsifier)"
        )


def check_shards(group: object, tie_rule: str) -> None:
    if group is not None or tie_rule == "reference":
        raise ValueError(
            "Sparsifier: process_group must be None and tie_rule 'lowest_index' for a sharded model, got "
            f"{group!r} and {tie_rule!r}"
        )


def check_held(
    method: str, weights: Mapping[str, Parameter], model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Raises if model or optimizer has let go of a competing weight: what is done to the weights would not reach it."""
    reshard(model)
    here = dict(model.named_parameters(remove_duplicate=False))
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for where, gone in (
        ("model", [name for name, p in weights.items() if here.get(name) is not p]),
        ("optimizer", [name for name, p in weights.items() if id(p) not in trained]),
    ):
        if gone:
            raise ValueError(
                f"Sparsifier.{method}: {where} must hold the parameters that it had when the sparsifier was made, "
                f"got others for {', '.join(gone)}; shard, convert and assign parameters first"
            )
