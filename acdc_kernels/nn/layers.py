"""Finding the weights of a model that could compete."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter, UninitializedParameter

from ..ops.dtypes import FLOAT_DTYPES
from ..policy.scopes import Weight
from .coverage import Coverage, coverage_of

__all__ = ["find_weights"]


def find_weights(model: nn.Module, trained: Collection[Parameter]) -> list[Weight]:
    """The weights of a model in model order, each once, named as in ``named_parameters``; ``COVERAGE`` says which.

    One that can't compete (its layer isn't covered, it is frozen, not among ``trained``, computed by a
    parametrization, of a dtype without masks) says so in ``unfit``. A weight that an Embedding shares stays
    masked-dense. Raises ValueError for a lazy layer that hasn't run yet.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    trained_ids = {id(p) for p in trained}
    looked_up = {id(m.weight) for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))}
    modules = dict(model.named_modules(remove_duplicate=False))
    found: dict[int, Weight] = {}
    refused: dict[int, Weight] = {}
    for prefix, layer in modules.items():
        row = coverage_of(layer, modules.get(prefix.rpartition(".")[0]) if prefix else None)
        if row.treatment == "dense":
            for p in layer.parameters(recurse=False) if row.listed else ():
                if not isinstance(p, UninitializedParameter) and p.dim() >= 2:
                    weight = Weight(names[id(p)], tuple(p.shape), ((prefix, layer),), row.why, "dense")
                    refused.setdefault(id(p), weight)
            continue
        for attribute, p in _own_weights(layer, row):
            name = f"{prefix}.{attribute}".lstrip(".")
            key, shape, unfit = (id(layer), attribute), (), "computed, not a parameter"
            treatment = row.treatment
            if isinstance(p, UninitializedParameter):
                raise ValueError(f"model must have run once before, got the uninitialized layer {prefix!r}")
            if p is not None:
                name, key, shape, unfit = names[id(p)], id(p), tuple(p.shape), _unfit(p, trained_ids)
                treatment = "masked-dense" if id(p) in looked_up else treatment
            before = found.get(key)
            layers = (*before.layers, (prefix, layer)) if before else ((prefix, layer),)
            input_first = row.input_first or (before is not None and before.input_first)
            found[key] = Weight(name, shape, layers, unfit, treatment, attribute, input_first)
    return [*found.values(), *(weight for key, weight in refused.items() if key not in found)]


def _own_weights(layer: nn.Module, row: Coverage) -> Iterator[tuple[str, Tensor | None]]:
    """(attribute, parameter) of each weight that the layer has; None for one that a parametrization computes."""
    for attribute in row.attributes:
        # Not read as an attribute: a parametrization would compute, and may change, something.
        p = layer._parameters.get(attribute)
        if p is not None or attribute not in layer._parameters or len(row.attributes) == 1:
            yield attribute, p


def _unfit(p: Parameter, trained_ids: set[int]) -> str | None:
    if not p.requires_grad:
        return "frozen"
    if id(p) not in trained_ids:
        return "not in the optimizer"
    if p.dtype not in FLOAT_DTYPES or p.layout != torch.strided:
        return f"no masks for {p.dtype} ({p.layout})"
    return None
