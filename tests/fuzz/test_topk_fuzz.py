"""topk_mask against its reference on random cases: sizes, dtypes, values, layouts, budgets, patterns; to the bit.

A case is decided by its number, which a failure prints: ``check(number)`` repeats it.
"""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from acdc_kernels import _native
from acdc_kernels.ops import topk_mask_with_nan_count
from acdc_kernels.ops.dtypes import FLOAT_DTYPES
from acdc_kernels.ops.topk_mask import cases, reference

POOL = 1 << 15  # values of each kind that cases take theirs from
PATTERNS = {
    # pattern: (multiple of the output axis, of the input axis, unit)
    "unstructured": (1, 1, 1),
    "1:2": (1, 2, None),
    "2:4": (1, 4, None),
    "1:4": (1, 4, None),
    "3:5": (1, 5, None),
    "4:8": (1, 8, None),
    "2:4-transposable": (4, 4, None),
    "block:4x1": (4, 1, 4),
    "block:1x4": (1, 4, 4),
    "block:3x2": (3, 2, 6),
    "block:8x8": (8, 8, 64),
}


@pytest.fixture(scope="module")
def pools() -> dict[tuple[str, torch.dtype], Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = {kind: make((POOL,), generator) for kind, make in cases.VALUES.items()}
    return {(kind, dtype): values.to(dtype) for kind, values in made.items() for dtype in FLOAT_DTYPES}


def size(r: random.Random) -> int:
    """Mostly small, often around a vector, a byte or a chunk."""
    return r.choice((0, 1, 7, 8, 9, 31, 32, 33, r.randrange(70), r.randrange(70), r.randrange(600), r.randrange(3000)))


def shape(r: random.Random, pattern: str) -> tuple[int, ...]:
    out, into, unit = PATTERNS[pattern]
    if unit == 1:
        n = size(r)
        return r.choice(((n,), (n // 3, 3), (1, n), (n,), (n // 12, 3, 2, 2)))
    return (out * r.randrange(1, 5), into * r.randrange(5), *r.choice(((), (), (3,), (3, 3), (1, 1))))


def weight(r: random.Random, pool: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Of this shape, at a random place of the pool, in a random layout; unaligned more often than not."""
    n = int(torch.Size(dims).numel())
    step = r.choice((1, 1, 1, 2)) if 2 * n < POOL else 1
    start = r.randrange(POOL - step * n)
    w = pool[start : start + step * n : step]
    if len(dims) > 1 and r.random() < 0.3:
        return w.reshape(dims[::-1]).permute(*range(len(dims))[::-1])
    w = w.reshape(dims) if step > 1 else w.view(dims)
    if r.random() < 0.1 and dims and dims[0]:
        return w[:1].expand(dims)
    return w


def case(number: int, pools: dict[tuple[str, torch.dtype], Tensor]) -> tuple[list[Tensor], int | list[int] | None, str]:
    r = random.Random(number)
    pattern = r.choice(("unstructured", "unstructured", *PATTERNS))
    dtype, kind = r.choice(FLOAT_DTYPES), r.choice(list(cases.VALUES))
    weights = [weight(r, pools[kind, dtype], shape(r, pattern)) for _ in range(r.choice((1, 1, 2, 3, 5)))]
    unit = PATTERNS[pattern][2]
    if unit is None:
        return weights, None, pattern

    def budget(n: int) -> int:
        return unit * r.choice((0, n // unit, n // unit // 2, n // unit // 10, r.randint(0, n // unit)))

    if r.random() < 0.2:
        return weights, [budget(w.numel()) for w in weights], pattern
    return weights, budget(sum(w.numel() for w in weights)), pattern


def check(number: int, pools: dict[tuple[str, torch.dtype], Tensor]) -> None:
    weights, keep, pattern = case(number, pools)
    masks, nan_count = topk_mask_with_nan_count(weights, keep, pattern)
    budgets = [] if keep is None else keep if isinstance(keep, list) else [keep]
    want, want_nan = reference.topk_mask(weights, budgets, pattern)
    if not (all(map(torch.equal, masks, want)) and torch.equal(nan_count, want_nan)):
        shapes = [(tuple(w.shape), w.stride()) for w in weights]
        pytest.fail(f"case {number}: {pattern}, {weights[0].dtype}, keep {keep}, {shapes}")


def test_needs_kernels():
    assert _native.available(), _native.why_not()  # else the reference would be compared with itself


@pytest.mark.parametrize("part", range(4))
def test_some_cases(part, pools):
    for number in range(part * 500, part * 500 + 500):
        check(number, pools)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(100))
def test_a_hundred_thousand_cases(part, pools):
    for number in range(10_000 + part * 1000, 10_000 + part * 1000 + 1000):
        check(number, pools)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_large_cases(part, threads_of_two):
    """Sizes at which a sampled bracket is tried, on two threads."""
    for number in range(part * 20, part * 20 + 20):
        r = random.Random(-1 - number)
        generator = torch.Generator().manual_seed(number)
        dtype = r.choice((torch.float32, torch.float32, torch.float64, torch.bfloat16))
        pattern, (out, into, unit) = r.choice([item for item in PATTERNS.items() if item[1][2] is not None])
        rows, columns = 60 * out * r.randint(1, 3), 30 * into * r.randint(20, 90)
        weights = [
            cases.VALUES[r.choice(list(cases.VALUES))]((rows, columns // into * into), generator).to(dtype)
            for _ in range(r.randint(2, 5))
        ]
        total = sum(w.numel() for w in weights) // unit
        keep = unit * r.choice((1, total // 1000, total // 50, total // 10, total // 2, total - 1))
        masks, nan_count = topk_mask_with_nan_count(weights, keep, pattern)
        want, want_nan = reference.topk_mask(weights, [keep], pattern)
        assert all(map(torch.equal, masks, want)), (number, pattern, dtype, keep)
        assert torch.equal(nan_count, want_nan)


@pytest.fixture
def threads_of_two():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
