"""Patterns: what is known, what is not, which sparsity comes of it, which shapes they cover, how many weights stay."""

from __future__ import annotations

import re

import pytest

from acdc_kernels.policy.patterns import Pattern, parse_pattern


def test_unstructured():
    assert parse_pattern("unstructured") == Pattern("unstructured", default_sparsity=0.9)


@pytest.mark.parametrize(
    ("text", "sparsity", "unit", "fixed", "structured"),
    [
        ("unstructured", 0.9, 1, False, False),
        ("2:4", 0.5, 1, True, True),
        ("1:4", 0.75, 1, True, True),
        ("16:1024", 1 - 16 / 1024, 1, True, True),
        ("2:4-transposable", 0.5, 1, True, True),
        ("block:4x1", 0.9, 4, False, True),
        ("block:32x16", 0.9, 512, False, True),
        ("block:1x1", 0.9, 1, False, True),
    ],
)
def test_fields(text, sparsity, unit, fixed, structured):
    pattern = parse_pattern(text)
    assert pattern.text == text
    assert pattern.default_sparsity == sparsity
    assert (pattern.unit, pattern.fixed, pattern.structured) == (unit, fixed, structured)
    assert pattern == parse_pattern(text)
    assert hash(pattern) == hash(parse_pattern(text))


KNOWN = "pattern must be 'unstructured', 'n:m', '2:4-transposable' or 'block:RxC', got"
N_M = "pattern 'n:m' must be two numbers with 1 <= n < m, such as '2:4', got"
LARGE = "pattern must have numbers of at most 134217728, got"
BLOCK = "pattern 'block:RxC' must have R and C of at least 1, such as 'block:4x1', got"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *(
            (text, KNOWN)
            for text in ("Unstructured", "", None, 3, "2:4 ", "-2:4", "2:4:8", "1:4-transposable", "²:4", "2:4\n")
        ),
        *((text, KNOWN) for text in ("block", "block:4", "block:4x", "block:4x4x4", "block:-4x4", "Block:4x4")),
        *((text, N_M) for text in ("4:2", "4:4", "0:4", "0:0", "02:4", "2:04", "0" * 5000 + "2:4")),
        *((text, LARGE) for text in ("1:134217729", "2000000000:2000000001", "1:1" + "0" * 5000)),
        *((text, LARGE) for text in ("block:134217729x1", "block:1x134217729", "block:1x1" + "0" * 5000)),
        *((text, BLOCK) for text in ("block:0x4", "block:4x0", "block:04x4", "block:4x04")),
    ],
)
def test_unknown_pattern_names_the_known(text, message):
    with pytest.raises(ValueError, match=re.escape(f"{message} {text!r}") + r"\Z"):
        parse_pattern(text)


@pytest.mark.parametrize(
    ("pattern", "asked", "used"),
    [
        *(("unstructured", s, u) for s, u in [(None, 0.9), (0, 0.0), (0.0, 0.0), (0.5, 0.5), (0.999999, 0.999999)]),
        *(("block:4x1", s, u) for s, u in [(None, 0.9), (0, 0.0), (0.95, 0.95)]),
        *(("2:4", s, 0.5) for s in (None, 0.5)),
        *(("2:4-transposable", s, 0.5) for s in (None, 0.5)),
        *(("1:3", s, 1 - 1 / 3) for s in (None, 2 / 3, 0.6666667)),
    ],
)
def test_sparsity(pattern, asked, used):
    assert parse_pattern(pattern).resolve_sparsity(asked) == used


@pytest.mark.parametrize("pattern", ["unstructured", "block:4x1"])
@pytest.mark.parametrize("sparsity", [1, 1.0, -0.1, 90, float("nan"), float("inf")])
def test_sparsity_out_of_range(pattern, sparsity):
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\), got"):
        parse_pattern(pattern).resolve_sparsity(sparsity)


@pytest.mark.parametrize(
    ("pattern", "sparsity", "own"),
    [
        *(("2:4", s, "0.5") for s in (0.9, 0, 1, float("nan"), -0.5)),
        ("1:4", 0.5, "0.75"),
        ("1:3", 0.666, "0.666667"),
        ("2:4-transposable", 0.9, "0.5"),
    ],
)
def test_a_sparsity_that_contradicts_the_pattern(pattern, sparsity, own):
    with pytest.raises(ValueError, match=re.escape(f"must be {own} or None with pattern '{pattern}', got {sparsity}")):
        parse_pattern(pattern).resolve_sparsity(sparsity)


EMPTY, NONE, ONE = "it has no elements", "it has no dimensions", "it has 1 dimension"
AXES = ": the pattern needs an output and an input axis"


@pytest.mark.parametrize(
    ("pattern", "shape", "reason"),
    [
        *(("unstructured", s, r) for s, r in [((3, 4), None), ((8, 3, 3, 3), None), ((0, 4), EMPTY), ((4, 0), EMPTY)]),
        *(("unstructured", s, None) for s in [(), (7,)]),
        *(("2:4", s, None) for s in [(1, 4), (5, 8), (3, 4, 3, 3), (1, 12, 1)]),
        ("2:4", (8, 3, 3, 3), "its input axis (3) is not a multiple of 4"),
        ("2:4", (8, 2), "its input axis (2) is not a multiple of 4"),
        ("3:7", (7, 8), "its input axis (8) is not a multiple of 7"),
        ("2:4", (4,), ONE + AXES),
        ("2:4", (), NONE + AXES),
        ("2:4", (0, 4), EMPTY),
        ("2:4", (0, 3), EMPTY),
        *(("2:4-transposable", s, None) for s in [(4, 4), (8, 12, 5)]),
        ("2:4-transposable", (6, 4), "its output axis (6) is not a multiple of 4"),
        ("2:4-transposable", (6, 3), "its output axis (6) is not a multiple of 4"),
        ("2:4-transposable", (4, 3, 4, 4), "its input axis (3) is not a multiple of 4"),
        ("2:4-transposable", (16,), ONE + AXES),
        *(("block:4x1", s, None) for s in [(4, 1), (8, 3, 3, 3)]),
        ("block:4x1", (10, 8), "its output axis (10) is not a multiple of 4"),
        ("block:1x4", (10, 8), None),
        ("block:1x4", (8, 10), "its input axis (10) is not a multiple of 4"),
        ("block:32x32", (64, 16), "its input axis (16) is not a multiple of 32"),
        ("block:4x1", (4,), ONE + AXES),
        ("block:4x1", (4, 0), EMPTY),
    ],
)
def test_covers(pattern, shape, reason):
    assert parse_pattern(pattern).covers(shape) == reason


@pytest.mark.parametrize(
    ("pattern", "numel", "sparsity", "kept"),
    [
        ("unstructured", 1001, 0.9, 100),
        ("unstructured", 10, 0.0, 10),
        ("2:4", 24, 0.5, 12),
        ("1:4", 24, 0.75, 6),
        ("3:7", 21, 1 - 3 / 7, 9),
        ("2:4-transposable", 32, 0.5, 16),
        ("block:4x1", 400, 0.9, 40),
        ("block:4x4", 16 * 11, 0.9, 16),
        ("block:4x4", 16 * 11, 0.0, 16 * 11),
    ],
)
def test_kept(pattern, numel, sparsity, kept):
    assert parse_pattern(pattern).kept(numel, sparsity) == kept
