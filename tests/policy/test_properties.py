"""Properties that hold for every schedule, budget and mask."""

from __future__ import annotations

import itertools
import math

import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from acdc_kernels import pack_mask, topk_mask, unpack_mask
from acdc_kernels.policy import schedules
from acdc_kernels.policy.patterns import parse_pattern
from acdc_kernels.policy.scopes import Weight, budget, competing

LENGTH = st.integers(0, 12)
CYCLE = st.integers(1, 6)
SPARSITY = st.floats(0, 1, exclude_max=True)
PATTERNS = st.sampled_from(["unstructured", "1:2", "2:4", "3:8", "2:4-transposable", "block:4x1", "block:2x3"])


@st.composite
def schedule(draw):
    lengths = {name: draw(LENGTH) for name in ("warmup", "final_dense", "final_compressed")}
    extra = draw(st.integers(0 if any(lengths.values()) else 1, 40))
    return schedules.acdc(
        total=sum(lengths.values()) + extra,
        compressed=draw(CYCLE),
        dense=draw(CYCLE),
        steps_per_unit=draw(st.integers(1, 5)),
        **lengths,
    ), lengths


@given(schedule())
def test_phases_tile_the_steps_and_alternate(made):
    s, lengths = made
    phases = [s.at(step) for step in range(s.total_steps)]
    edges = list(dict.fromkeys(phases))
    assert edges[0].first_step == 0
    assert edges[-1].last_step == s.total_steps - 1
    for i, phase in enumerate(edges):
        assert phase.index == i
        assert phase.last_step >= phase.first_step
        assert all(p == phase for p in phases[phase.first_step : phase.last_step + 1])
    for one, other in itertools.pairwise(edges):
        assert other.first_step == one.last_step + 1
        assert {one.kind, other.kind} == {"dense", "compressed"}
    assert edges == list(s.phases())
    if lengths["final_compressed"]:
        assert edges[-1].kind == "compressed"
    if lengths["warmup"]:
        assert edges[0].kind == "dense"


@given(schedule(), st.integers(0, 10**15))
def test_at_is_total(made, step):
    s, _ = made
    phase = s.at(step)
    assert phase == s.at(min(step, s.total_steps - 1))
    assert phase.kind in ("dense", "compressed")


@given(schedule())
def test_a_schedule_is_its_dict(made):
    s, _ = made
    again = schedules.from_dict(s.to_dict())
    assert again == s
    assert [again.at(step) for step in range(s.total_steps)] == [s.at(step) for step in range(s.total_steps)]


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=5), SPARSITY)
def test_budgets(sizes, sparsity):
    pattern = parse_pattern("unstructured")
    total, each = budget("global", sizes, sparsity, pattern), budget("layer", sizes, sparsity, pattern)
    assert 0 <= total <= sum(sizes)
    assert abs(total - (1 - sparsity) * sum(sizes)) <= 0.5 + 1e-3 * (sum(sizes) > 10**9) * sum(sizes)
    assert all(0 <= k <= n for k, n in zip(each, sizes, strict=True))
    assert abs(sum(each) - total) <= len(sizes)


@given(PATTERNS, st.integers(0, 40), st.integers(0, 40), SPARSITY)
def test_what_a_pattern_covers_it_can_keep(text, rows, columns, sparsity):
    pattern = parse_pattern(text)
    assert parse_pattern(pattern.text) == pattern
    assume(pattern.covers((rows, columns)) is None)
    kept = pattern.kept(rows * columns, pattern.resolve_sparsity(None if pattern.fixed else sparsity))
    assert 0 <= kept <= rows * columns
    assert kept % pattern.unit == 0
    weights = [torch.randn(rows, columns)]
    masks = topk_mask(weights, None if pattern.fixed else kept, text)
    assert int(unpack_mask(masks[0], (rows, columns)).sum()) == kept


@given(
    PATTERNS,
    st.sampled_from(["global", "layer"]),
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=6),
)
def test_every_weight_competes_or_has_a_reason(text, scope, shapes):
    weights = [Weight(f"{i}.weight", shape, ((str(i), None),)) for i, shape in enumerate(shapes)]
    chosen, reasons = competing(weights, scope, parse_pattern(text))
    assert {w.name for w in chosen} | reasons.keys() == {w.name for w in weights}
    assert not {w.name for w in chosen} & reasons.keys()
    assert all(reasons.values())


MASKS = st.lists(st.booleans(), max_size=70)


@given(MASKS)
def test_packing_loses_nothing(kept):
    mask = torch.tensor(kept, dtype=torch.bool)
    bits = pack_mask(mask)
    assert bits.numel() == math.ceil(len(kept) / 8)
    assert torch.equal(unpack_mask(bits, mask.shape), mask)
    assert sum(map(int.bit_count, bits.tolist())) == sum(kept)


FLOATS = st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=50)


@given(FLOATS, st.data())
def test_what_is_kept_is_no_smaller_than_what_is_pruned(values, data):
    w = torch.tensor(values, dtype=torch.float32)
    keep = data.draw(st.integers(0, len(values)))
    kept = unpack_mask(topk_mask([w], keep)[0], w.shape)
    assert int(kept.sum()) == keep
    if 0 < keep < len(values):
        assert w[kept].abs().min() >= w[~kept].abs().max()
    if keep < len(values):  # a larger budget only adds
        assert bool((unpack_mask(topk_mask([w], keep + 1)[0], w.shape) | ~kept).all())


@given(FLOATS, st.data())
def test_signs_and_splitting_change_nothing(values, data):
    w = torch.tensor(values, dtype=torch.float32)
    keep, cut = data.draw(st.integers(0, len(values))), data.draw(st.integers(0, len(values)))
    whole = unpack_mask(topk_mask([w], keep)[0], w.shape)
    assert torch.equal(unpack_mask(topk_mask([-w], keep)[0], w.shape), whole)
    parts = [w[:cut], w[cut:]]
    split = [unpack_mask(bits, part.shape) for bits, part in zip(topk_mask(parts, keep), parts, strict=True)]
    assert torch.equal(torch.cat(split), whole)
