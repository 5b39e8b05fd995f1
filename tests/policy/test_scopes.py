"""Scopes: who competes, why the others don't, and how many are kept."""

from __future__ import annotations

import pytest

from acdc_kernels.policy.patterns import parse_pattern
from acdc_kernels.policy.scopes import Weight, budget, competing

PATTERN = parse_pattern("unstructured")


def weight(layer, shape=(4, 4), unfit=None, kind="linear"):
    return Weight(f"{layer}.weight", shape, ((layer, kind),), unfit)


MODEL = [
    weight("stem", kind="conv"),
    weight("blocks.0.up"),
    weight("blocks.0.down"),
    weight("blocks.1.up", unfit="frozen"),
    weight("blocks.1.down", shape=(0, 4)),
    weight("head"),
]


def is_conv(name, layer):
    return layer == "conv"


ALL = ["stem", "blocks.0.up", "blocks.0.down", "head"]

CASES = {
    # scope, exempt: the layers that compete
    "global": ("global", (), ALL),
    "layer": ("layer", (), ["blocks.0.up", "blocks.0.down"]),
    "a layer": ("global", ("head",), ["stem", "blocks.0.up", "blocks.0.down"]),
    "a parameter": ("global", ("head.weight",), ["stem", "blocks.0.up", "blocks.0.down"]),
    "a string alone": ("global", "head", ["stem", "blocks.0.up", "blocks.0.down"]),
    "a glob": ("global", ["blocks.*"], ["stem", "head"]),
    "a glob within": ("global", ["*.up"], ["stem", "blocks.0.down", "head"]),
    "a glob of parameters": ("global", ["*.down.weight"], ["stem", "blocks.0.up", "head"]),
    "an unfit layer": ("global", ["blocks.1.up"], ALL),
    "a predicate": ("global", is_conv, ["blocks.0.up", "blocks.0.down", "head"]),
    "a predicate that chooses none": ("global", lambda name, layer: False, ALL),
    "a mixture": ("global", (is_conv, "head", "*.up"), ["blocks.0.down"]),
    "a generator": ("global", (name for name in ["stem", "head"]), ["blocks.0.up", "blocks.0.down"]),
    "the first, twice": ("layer", ["stem"], ["blocks.0.up", "blocks.0.down"]),
    "everything": ("global", "*", []),
}


@pytest.mark.parametrize("case", CASES)
def test_competing(case):
    scope, exempt, expected = CASES[case]
    chosen, reasons = competing(MODEL, scope, PATTERN, exempt)
    assert [w.layers[0][0] for w in chosen] == expected
    assert [w.name for w in MODEL if w.name in reasons or w in chosen] == [w.name for w in MODEL]
    assert len(chosen) + len(reasons) == len(MODEL)


def test_reasons():
    _, reasons = competing(MODEL, "layer", PATTERN, ("blocks.0.*", lambda name, layer: name == "head"))
    assert reasons == {
        "stem.weight": "exempt: the first layer, under scope 'layer'",
        "blocks.0.up.weight": "exempt: matches 'blocks.0.*'",
        "blocks.0.down.weight": "exempt: matches 'blocks.0.*'",
        "blocks.1.up.weight": "frozen",
        "blocks.1.down.weight": "it has no elements",
        "head.weight": "exempt: chosen by <lambda>",
    }


def test_shared_weight_is_exempt_by_any_of_its_names():
    shared = Weight("embed.weight", (4, 4), (("head", "a"), ("twin.head", "b")))
    for rule in ("embed.weight", "head", "head.weight", "twin.head", "twin.*", lambda name, layer: layer == "b"):
        assert competing([shared], "global", PATTERN, [rule])[0] == []


EMBEDDING = Weight("embed.weight", (9, 4), (("embed", "embedding"),), "a lookup", "dense")


def test_a_weight_that_never_competes_is_no_first_or_last_layer():
    chosen, reasons = competing([EMBEDDING, *MODEL, EMBEDDING], "layer", PATTERN)
    assert [w.layers[0][0] for w in chosen] == ["blocks.0.up", "blocks.0.down"]
    assert reasons["embed.weight"] == "a lookup"
    assert reasons["stem.weight"] == "exempt: the first layer, under scope 'layer'"


def test_a_weight_that_never_competes_may_be_exempt_and_no_predicate_sees_it():
    seen = []
    _, reasons = competing([EMBEDDING, *MODEL], "global", PATTERN, ["embed", lambda name, layer: seen.append(layer)])
    assert reasons["embed.weight"] == "exempt: matches 'embed'"
    assert "embedding" not in seen


@pytest.mark.parametrize(("pattern", "ok"), [("unstructured", True), ("2:4", False), ("block:2x2", False)])
def test_structured_patterns_need_the_output_axis_first(pattern, ok):
    up = Weight("up.weight", (4, 4, 1, 1), (("up", "transposed"),), input_first=True)
    chosen, reasons = competing([up], "global", parse_pattern(pattern))
    assert chosen == ([up] if ok else [])
    assert reasons == ({} if ok else {"up.weight": f"its weight is stored input axis first: no pattern {pattern!r}"})


def test_no_weights_at_all():
    assert competing([], "layer", PATTERN) == ([], {})


@pytest.mark.parametrize(
    ("scope", "exempt", "error", "message"),
    [
        ("uniform", (), ValueError, "scope must be 'global' or 'layer', got 'uniform'"),
        ("global", "haed", ValueError, "exempt: 'haed' matches no Linear or Conv layer; the model has: stem, bl"),
        ("global", ["head", "block.*"], ValueError, r"exempt: 'block.\*' matches no"),
        ("global", "", ValueError, "exempt: '' matches no"),
        ("global", [3], TypeError, "exempt must hold names, globs or predicates of .name, module., got 3"),
    ],
)
def test_rejects(scope, exempt, error, message):
    with pytest.raises(error, match=message):
        competing(MODEL, scope, PATTERN, exempt)


@pytest.mark.parametrize(
    ("scope", "sizes", "sparsity", "kept"),
    [
        ("global", [100, 28], 0.9, 13),  # 128 - round(115.2)
        ("layer", [100, 28], 0.9, [10, 3]),  # 28 - round(25.2)
        ("global", [100, 28], 0.0, 128),
        ("layer", [100, 28], 0.0, [100, 28]),
        ("global", [10], 0.25, 8),  # 10 - round(2.5): halves go to the even count of zeros
        ("global", [9], 0.5, 5),  # 9 - round(4.5)
        ("global", [10], 0.999, 0),
        ("layer", [1, 2, 3], 0.5, [1, 1, 1]),
        ("global", [3 * 10**9], 0.9, 3 * 10**8),
    ],
)
def test_budget(scope, sizes, sparsity, kept):
    assert budget(scope, sizes, sparsity, PATTERN) == kept


@pytest.mark.parametrize(
    ("pattern", "scope", "sizes", "kept"),
    [
        ("block:2x2", "global", [100, 28], 12),  # 32 blocks, 29 of them zero
        ("block:2x2", "layer", [100, 28], [12, 4]),
        ("2:4", "global", [100, 28], None),
        ("2:4-transposable", "layer", [16], None),
    ],
)
def test_budget_of_patterns(pattern, scope, sizes, kept):
    parsed = parse_pattern(pattern)
    assert budget(scope, sizes, parsed.resolve_sparsity(None), parsed) == kept


@pytest.mark.parametrize("sparsity", [1.0, -0.5, 2, float("nan")])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_budget_rejects_sparsity(scope, sparsity):
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\), got"):
        budget(scope, [10], sparsity, PATTERN)
