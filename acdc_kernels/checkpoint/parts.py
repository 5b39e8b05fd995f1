"""What the parts of a checkpoint may hold, and how a saved state differs from the object that is to take it."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

Differing = Callable[[str, Any, Any, Mapping[str, Any]], list[str]]

_PLAIN = (type(None), bool, int, float, str, bytes, torch.Size, torch.dtype, torch.device)
_HOLDERS = (Tensor, nn.Parameter, nn.Buffer, dict, OrderedDict, Counter, list, tuple)
_LAYOUTS = (torch.strided, torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
_INT_BITS = 2039  # without the sign: torch's reader takes 255 bytes
_DEPTH = 100
# what an object's own load_state_dict raises for a state that isn't its own
_REFUSALS = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


def has_state(part: object) -> bool:
    """Whether `part` has a state of its own; else it is plain data."""
    return callable(getattr(part, "state_dict", None))


def describe(part: object) -> dict[str, Any]:
    """What a check needs to know beyond the state itself."""
    if not has_state(part):
        return {"kind": "data"}
    kind = "state"
    if isinstance(part, nn.Module):
        kind = "module"
    elif isinstance(part, torch.optim.Optimizer):
        kind = "optimizer"
    about: dict[str, Any] = {"kind": kind, "class": f"{type(part).__module__}.{type(part).__qualname__}"}
    if isinstance(part, torch.optim.Optimizer):
        about["shapes"] = _group_shapes(part)
        about["state_dtype"] = getattr(part, "state_dtype", None)
    return about


def _group_shapes(optimizer: torch.optim.Optimizer) -> list[list[Any]]:
    return [
        ["uninitialized" if is_lazy(p) else list(p.shape) for p in group["params"]] for group in optimizer.param_groups
    ]


def check_plain(where: str, value: Any, holders: tuple[int, ...] = ()) -> None:
    """Raises TypeError, naming the place, if `value` holds what reading without executing anything can't give back.

    `holders` are the ids of what `value` is in.
    """
    if type(value) not in _HOLDERS:
        _check_atom(
            where,
            value,
            "plain data (None, bool, int, float, str, bytes, tensors, and lists, tuples and dicts of these)",
        )
        return
    if id(value) in holders:
        raise TypeError(f"save_checkpoint: {where} must be plain data, and must not hold itself")
    if len(holders) == _DEPTH:
        raise TypeError(f"save_checkpoint: {where} must be nested at most {_DEPTH} deep")
    holders = (*holders, id(value))
    if isinstance(value, Tensor):
        if value.layout not in _LAYOUTS or value._is_zerotensor():
            got = "one without memory" if value.layout in _LAYOUTS else value.layout
            raise TypeError(f"save_checkpoint: {where} must be a strided or sparse tensor, got {got}")
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_atom(f"a key of {where}", key, "plain data")
            check_plain(f"{where}[{key!r}]", item, holders)
    else:
        for i, item in enumerate(value):
            check_plain(f"{where}[{i}]", item, holders)
    for name, item in getattr(value, "__dict__", {}).items():
        check_plain(f"{where}.{name}", item, holders)


def _check_atom(where: str, value: Any, what: str) -> None:
    if type(value) not in _PLAIN:
        raise TypeError(f"save_checkpoint: {where} must be {what}, got {_kind(value)}")
    if type(value) is int and value.bit_length() > _INT_BITS:
        raise TypeError(
            f"save_checkpoint: {where} must be an int of at most {_INT_BITS} bits, got {value.bit_length()}"
        )


def _kind(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def checker(part: object) -> Differing | None:
    """What names the differences of a state from `part`; None if only `part` itself can tell."""
    kinds: tuple[tuple[Any, Differing], ...] = (
        (nn.Module, _module_differences),
        (torch.optim.Optimizer, _optimizer_differences),
        ((torch.optim.lr_scheduler.LRScheduler, torch.amp.GradScaler), _entry_differences),
    )
    checks = [differing for kind, differing in kinds if isinstance(part, kind)]
    if callable(getattr(part, "check_state_dict", None)):
        checks.append(_own_differences)
    if not checks:
        return None
    # its own check is asked last, about a state that is otherwise of its kind
    return lambda *facts: next((lines for check in checks if (lines := check(*facts))), [])


def _own_differences(name: str, part: Any, state: Any, about: Mapping[str, Any]) -> list[str]:
    try:
        part.check_state_dict(state)
    except (TypeError, ValueError) as error:
        return [f"{name}: {error}"]
    return []


def _module_differences(name: str, part: nn.Module, state: Any, about: Mapping[str, Any]) -> list[str]:
    if about["kind"] != "module" or not isinstance(state, Mapping):
        return [f"{name} is a module here and {_saved_as(about)} there"]
    here = part.state_dict()
    return _only(name, here, state) + [
        f"{name}'s {key} is {mine} here and {theirs} there"
        for key in here
        if key in state and (mine := _tensor_kind(here[key])) != (theirs := _tensor_kind(state[key]))
    ]


def _only(name: str, here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    sides = (("here", here, there), ("there", there, here))
    return [
        f"{name} has {', '.join(map(str, keys))} only {side}"
        for side, one, other in sides
        if (keys := [key for key in one if key not in other])
    ]


def _tensor_kind(value: object) -> str:
    if is_lazy(value):
        return "uninitialized"
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else "no tensor"


def _optimizer_differences(name: str, part: torch.optim.Optimizer, state: Any, about: Mapping[str, Any]) -> list[str]:
    groups = state.get("param_groups") if isinstance(state, Mapping) else None
    if about["kind"] != "optimizer" or not isinstance(groups, list) or not isinstance(about.get("shapes"), list):
        return [f"{name} is an optimizer here and {_saved_as(about)} there"]
    lines = []
    mine, theirs = _group_shapes(part), about["shapes"]
    if len(mine) != len(theirs):
        lines.append(f"{name} has {len(mine)} parameter groups here and {len(theirs)} there")
    for i, (here, there) in enumerate(zip(mine, theirs, strict=False)):
        if len(here) != len(there):
            lines.append(f"{name}'s group {i} has {len(here)} parameters here and {len(there)} there")
        lines += [
            f"{name}'s parameter {j} of group {i} has shape {a} here and {b} there"
            for j, (a, b) in enumerate(zip(here, there, strict=False))
            if a != b
        ]
    wanted = set(part.defaults)
    for i, group in enumerate(groups):
        # an LR schedule adds its own; those of another kind of optimizer are among the missing ones
        if missing := sorted(wanted - group.keys()):
            lines.append(f"{name} is {type(part).__name__} here, but group {i} there has no {', '.join(missing)}")
    mine, theirs = getattr(part, "state_dtype", None), about.get("state_dtype")
    if mine != theirs:
        lines.append(f"{name}'s state_dtype is {mine} here and {theirs} there")
    if state.get("masks") and not hasattr(part, "masks"):
        lines.append(f"{name} is {type(part).__name__} here, which takes no masks, but has masks there")
    return lines


def _entry_differences(name: str, part: Any, state: Any, about: Mapping[str, Any]) -> list[str]:
    if about["kind"] != "state" or not isinstance(state, Mapping):
        return [f"{name} is {type(part).__name__} here and {_saved_as(about)} there"]
    return _only(name, part.state_dict(), state)


def _saved_as(about: Mapping[str, Any]) -> str:
    return str(about.get("class", "plain data"))


def restore(where: str, part: Any, state: Any) -> None:
    """``part.load_state_dict`` with tensors that are the part's to keep; a refusal becomes a ValueError."""
    try:
        part.load_state_dict(own(state))
    except _REFUSALS as error:
        raise ValueError(f"{where} refused its state ({error})") from error


def own(value: Any) -> Any:
    """`value` with tensors of its own in place of the file's."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        for key, item in value.items():
            value[key] = own(item)
        return value  # in place: a module's state carries versions as an attribute
    if type(value) in (list, tuple):
        return type(value)(own(item) for item in value)
    return value
