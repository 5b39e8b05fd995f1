"""Patterns: what is known, what is not, and which sparsity comes of it."""

from __future__ import annotations

import pytest

from acdc_kernels.policy.patterns import Pattern, parse_pattern


def test_unstructured():
    assert parse_pattern("unstructured") == Pattern("unstructured", default_sparsity=0.9)


@pytest.mark.parametrize("text", ["2:4", "block:4x4", "Unstructured", "", None, 3])
def test_unknown_pattern_names_the_known(text):
    with pytest.raises(ValueError, match=f"pattern must be 'unstructured', got {text!r}"):
        parse_pattern(text)


@pytest.mark.parametrize(("asked", "used"), [(None, 0.9), (0, 0.0), (0.0, 0.0), (0.5, 0.5), (0.999999, 0.999999)])
def test_sparsity(asked, used):
    assert parse_pattern("unstructured").resolve_sparsity(asked) == used


@pytest.mark.parametrize("sparsity", [1, 1.0, -0.1, 90, float("nan"), float("inf")])
def test_sparsity_out_of_range(sparsity):
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\), got"):
        parse_pattern("unstructured").resolve_sparsity(sparsity)


@pytest.mark.parametrize(
    ("shape", "reason"),
    [((3, 4), None), ((8, 3, 3, 3), None), ((0, 4), "it has no elements"), ((4, 0), "it has no elements")],
)
def test_covers(shape, reason):
    assert parse_pattern("unstructured").covers(shape) == reason
