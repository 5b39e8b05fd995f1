"""Scopes: which weights compete for the budget, and how many of them are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from .patterns import Pattern

__all__ = ["SCOPES", "Exempt", "Treatment", "Weight", "budget", "check_scope", "competing"]

SCOPES = ("global", "layer")

Treatment = Literal["sparse", "masked-dense", "dense"]

Exempt = str | Callable[[str, Any], bool] | Iterable[str | Callable[[str, Any], bool]]


@dataclass(frozen=True)
class Weight:
    """A weight that could compete, described without tensors.

    name: the parameter's name. shape: its shape.
    layers: the name of the layer that owns it and the layer itself; more than one pair where layers share the weight.
    unfit: why it can't compete whatever the scope and pattern are (frozen, say); None if it can.
    treatment: "sparse": its products may be sparse ones; "masked-dense": they stay dense; "dense": it never competes.
    attribute: the layer's attribute that holds it.
    input_first: it is stored [C_in, C_out, ...], not [C_out, C_in, ...].
    last: where in the model the last layer that uses it stands; of equal ones the later weight comes later.
    """

    name: str
    shape: tuple[int, ...]
    layers: tuple[tuple[str, Any], ...] = field(repr=False)
    unfit: str | None = None
    treatment: Treatment = "sparse"
    attribute: str = "weight"
    input_first: bool = False
    last: int = 0

    def matches(self, rule: str | Callable[[str, Any], bool]) -> bool:
        """Whether the rule (name or glob of a layer or parameter, or predicate of name and layer) means this one.

        Predicates are asked about layers that could compete only.
        """
        if callable(rule):
            return self.treatment != "dense" and any(rule(name, layer) for name, layer in self.layers)
        names = {self.name, *(alias for name, _ in self.layers for alias in (name, f"{name}.{self.attribute}"))}
        return rule in names or any(fnmatchcase(name, rule) for name in names)

    def misfit(self, pattern: Pattern) -> str | None:
        """Why it can't take the pattern; None if it can."""
        if self.input_first and pattern.structured:
            return f"its weight is stored input axis first: no pattern {pattern.text!r}"
        return pattern.covers(self.shape)


def check_scope(scope: str) -> str:
    """``scope`` if it is one of ``SCOPES``, else a ValueError."""
    if scope not in SCOPES:
        raise ValueError(f"scope must be {' or '.join(map(repr, SCOPES))}, got {scope!r}")
    return scope


def competing(
    weights: Sequence[Weight], scope: str, pattern: Pattern, exempt: Exempt = ()
) -> tuple[list[Weight], dict[str, str]]:
    """Splits a model's weights, in model order, into those that compete and {name: reason} for those that don't.

    "global" lets every weight compete, first and last layer included; "layer" exempts the model's first and last, as
    the uniform runs of arXiv 2106.12379 do. Raises ValueError for an exempt name or glob that matches no weight.
    """
    check_scope(scope)
    rules = _rules(exempt)
    for rule in rules:
        if not callable(rule) and not any(weight.matches(rule) for weight in weights):
            known = ", ".join(name for weight in weights for name, _ in weight.layers if weight.treatment != "dense")
            raise ValueError(f"exempt: {rule!r} matches no Linear or Conv layer; the model has: {known or 'none'}")
    products = [weight for weight in weights if weight.treatment != "dense"]
    ends: dict[str, str] = {}
    if products and scope == "layer":
        last = max(enumerate(products), key=lambda item: (item[1].last, item[0]))[1]
        ends = {products[0].name: "first", last.name: "last"}
    chosen: list[Weight] = []
    reasons: dict[str, str] = {}
    for weight in weights:
        reason = next((f"exempt: {_describe(rule)}" for rule in rules if weight.matches(rule)), None)
        if reason is None and weight.name in ends:
            reason = f"exempt: the {ends[weight.name]} layer, under scope 'layer'"
        reason = reason or weight.unfit or weight.misfit(pattern)
        if reason is None:
            chosen.append(weight)
        else:
            reasons[weight.name] = reason
    return chosen, reasons


def budget(scope: str, sizes: Sequence[int], sparsity: float, pattern: Pattern) -> int | list[int] | None:
    """How many weights are kept: over all of them for "global", of each for "layer"; None where the pattern decides.

    n - round(sparsity * n) weights, or so many whole blocks (see ``Pattern.kept``).
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must be in [0, 1), got {sparsity}")
    check_scope(scope)
    if pattern.fixed:
        return None
    if scope == "global":
        return pattern.kept(sum(sizes), sparsity)
    return [pattern.kept(size, sparsity) for size in sizes]


def _rules(exempt: Exempt) -> list[str | Callable[[str, Any], bool]]:
    rules = [exempt] if isinstance(exempt, str) or callable(exempt) else list(exempt)
    for rule in rules:
        if not isinstance(rule, str) and not callable(rule):
            raise TypeError(f"exempt must hold names, globs or predicates of (name, module), got {rule!r}")
    return rules


def _describe(rule: str | Callable[[str, Any], bool]) -> str:
    return f"matches {rule!r}" if isinstance(rule, str) else f"chosen by {getattr(rule, '__name__', 'the predicate')}"
