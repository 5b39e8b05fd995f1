"""Finding the weights of a model that could compete."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn
from torch.nn.parameter import Parameter, UninitializedParameter

from ..ops.dtypes import FLOAT_DTYPES
from ..policy.scopes import Weight

__all__ = ["find_weights"]

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def find_weights(model: nn.Module, trained: Collection[Parameter]) -> list[Weight]:
    """The weights of Linear and Conv layers in model order, each once, named as in ``named_parameters``.

    One that can't compete (it is frozen, not among ``trained``, computed by a parametrization, of a dtype without
    masks) says so in ``unfit``. Raises ValueError for a lazy layer that hasn't run yet.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    trained_ids = {id(p) for p in trained}
    found: dict[int, Weight] = {}
    for prefix, layer in model.named_modules(remove_duplicate=False):
        if not isinstance(layer, _LAYERS):
            continue
        p = layer._parameters.get("weight")
        if p is None:  # not read as an attribute: a parametrization would compute, and may change, something
            name, key, shape, unfit = f"{prefix}.weight".lstrip("."), id(layer), (), "computed, not a parameter"
        elif isinstance(p, UninitializedParameter):
            raise ValueError(f"model must have run once before, got the uninitialized layer {prefix!r}")
        else:
            name, key, shape, unfit = names[id(p)], id(p), tuple(p.shape), _unfit(p, trained_ids)
        layers = found[key].layers if key in found else ()
        found[key] = Weight(name, shape, (*layers, (prefix, layer)), unfit)
    return list(found.values())


def _unfit(p: Parameter, trained_ids: set[int]) -> str | None:
    if not p.requires_grad:
        return "frozen"
    if id(p) not in trained_ids:
        return "not in the optimizer"
    if p.dtype not in FLOAT_DTYPES or p.layout != torch.strided:
        return f"no masks for {p.dtype} ({p.layout})"
    return None
