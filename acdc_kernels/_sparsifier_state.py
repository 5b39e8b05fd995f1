"""The Sparsifier's state: what it must hold to be of this run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .formats.mask_bits import check_bits
from .nn import named_tensors
from .ops import unpack_mask
from .policy.schedules import Phase, Schedule

__all__ = ["VERSION", "check_state", "kinds"]

VERSION = 3


def kinds(tensors: Mapping[str, Any]) -> dict[str, str]:
    """Dtype and shape of each tensor by name."""
    return {
        name: f"{t.dtype} {list(t.shape)}" if isinstance(t, Tensor) else f"no tensor ({type(t).__name__})"
        for name, t in tensors.items()
    }


def differences(what: str, here: Mapping[str, Any], saved: Mapping[str, Any]) -> list[str]:
    """A line for each key whose value isn't of the same type and the same on both sides."""
    lines = [f"{what} has no {key} here" for key in saved if key not in here]
    for key, value in here.items():
        if key not in saved:
            lines.append(f"{what} has no {key} in the state")
        elif type(value) is not type(saved[key]) or value != saved[key]:
            lines.append(f"{what}'s {key} is {value!r} here and {saved[key]!r} in the state")
    return lines


def check_state(
    where: str,
    state: Mapping[str, Any],
    schedule: Schedule,
    settings: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    model: nn.Module,
    keep: int | list[int] | None,
) -> Phase:
    """The phase of ``state``, or a ValueError with everything in it that doesn't fit.

    weights: the competing ones of this process. keep: how many its masks keep, in all or in each; None: not known.
    """
    version = state.get("version") if isinstance(state, Mapping) else None
    if type(version) is not int or version != VERSION:
        raise ValueError(f"{where}: state must be of version {VERSION}, got {version!r}")
    parts = ("schedule", "settings", "parameters", "masks", "dense_twin", "plan")
    if missing := [part for part in parts if not isinstance(state.get(part), Mapping)]:
        raise ValueError(f"{where}: state must hold the mappings {', '.join(parts)}; it lacks {', '.join(missing)}")
    lines = [
        *differences("schedule", schedule.to_dict(), state["schedule"]),
        *differences("settings", settings, state["settings"]),
        *differences("parameters", kinds(weights), state["parameters"]),
    ]
    step = state.get("step")
    if type(step) is not int or not 0 <= step < 2**63:
        lines.append(f"step must be an int of at least 0, got {step!r}")
    if lines:
        raise ValueError(f"{where}: state must be of this run, but {'; '.join(lines)}")
    phase = schedule.at(step)
    compressed = phase.kind == "compressed"
    twin = named_tensors(model, persistent=True) if compressed else {}
    lines = [
        *differences("masks", dict.fromkeys(weights if compressed else ()), dict.fromkeys(state["masks"])),
        *differences("dense_twin", kinds(twin), kinds(state["dense_twin"])),
    ]
    if lines:
        raise ValueError(f"{where}: state must be of this run in {phase}, but {'; '.join(lines)}")
    _check_masks(where, state["masks"], weights, keep)
    return phase


def _check_masks(
    where: str, masks: Mapping[str, Tensor], weights: Mapping[str, Tensor], keep: int | list[int] | None
) -> None:
    kept = []
    for name in weights if masks else ():
        check_bits(f"{where}: masks[{name!r}]", masks[name], weights[name].numel())
        kept.append(int(unpack_mask(masks[name], weights[name].shape).sum()))
    if kept and keep is not None and (sum(kept) if isinstance(keep, int) else kept) != keep:
        raise ValueError(f"{where}: masks must keep {keep} weights, got {kept}")
