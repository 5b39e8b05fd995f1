"""Finding the weights of a model that could compete."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator
from dataclasses import replace

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
    modules = dict(model.named_modules(remove_duplicate=False))
    lookups: dict[int, list[tuple[str, nn.Module]]] = {}
    found: dict[Hashable, Weight] = {}
    refused: dict[int, Weight] = {}
    for position, (prefix, layer) in enumerate(modules.items()):
        row = coverage_of(layer, modules.get(prefix.rpartition(".")[0]) if prefix else None)
        for p in _others(layer, row):
            refused.setdefault(
                id(p), Weight(names[id(p)], tuple(p.shape), ((prefix, layer),), _why(row), "dense", last=position)
            )
        if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
            lookups.setdefault(id(layer.weight), []).append((prefix, layer))
        for attribute, p in _own_weights(layer, row):
            name = f"{prefix}.{attribute}".lstrip(".")
            key, shape, unfit = (id(layer), attribute), (), "computed, not a parameter"
            if isinstance(p, UninitializedParameter):
                raise ValueError(f"model must have run once before, got the uninitialized layer {prefix!r}")
            if p is not None:
                name, key, shape, unfit = names[id(p)], id(p), tuple(p.shape), _unfit(p, trained_ids)
            before = found.get(key)
            layers = (*before.layers, (prefix, layer)) if before else ((prefix, layer),)
            input_first = row.input_first or (before is not None and before.input_first)
            found[key] = Weight(name, shape, layers, unfit, row.treatment, attribute, input_first, position)
    for key, embeddings in lookups.items():
        if key in found:  # its products stay dense: the lookup reads it whole
            weight = found[key]
            found[key] = replace(weight, treatment="masked-dense", layers=(*weight.layers, *embeddings))
    return [*found.values(), *(weight for key, weight in refused.items() if key not in found)]


def _others(layer: nn.Module, row: Coverage) -> Iterator[Parameter]:
    """The parameters of two or more dimensions that stay dense, and are to be listed."""
    for name, p in layer._parameters.items():
        weight = row.treatment != "dense" and name in row.attributes
        if row.listed and not weight and p is not None and not isinstance(p, UninitializedParameter) and p.dim() >= 2:
            yield p


def _why(row: Coverage) -> str:
    return row.why if row.treatment == "dense" else "not the weight of a Linear or Conv layer"


def _own_weights(layer: nn.Module, row: Coverage) -> Iterator[tuple[str, Tensor | None]]:
    """(attribute, parameter) of each weight that the layer has; None for one that a parametrization computes."""
    for attribute in row.attributes if row.treatment != "dense" else ():
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
