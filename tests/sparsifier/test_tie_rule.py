"""tie_rule="reference": the masks of the paper's published code on given weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import acdc_kernels as acdc
from acdc_kernels.ops.topk_mask.paper_code import paper_code_masks

COMPRESSED = acdc.schedules.acdc(total=2, warmup=0, compressed=1, dense=1, final_dense=0, final_compressed=2)


def published(weights: list[np.ndarray], sparsity: float) -> list[np.ndarray]:
    """By the published formula, one weight after another: score > the ceil(n (1 - p))-th largest score."""
    scores = [np.abs(w) + np.float32(1e-4) for w in weights]
    if sparsity == 0:
        return [np.ones(w.shape, dtype=bool) for w in weights]
    everything = np.sort(np.concatenate([s.ravel() for s in scores]))[::-1]
    return [s > everything[math.ceil(everything.size * (1 - sparsity)) - 1] for s in scores]


def unpacked(masks, weights):
    return [acdc.unpack_mask(m, w.shape).numpy() for m, w in zip(masks, weights, strict=True)]


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9, 0.98])
@pytest.mark.parametrize("values", ["normal", "ties", "tiny"])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_masks(scope, values, sparsity):
    g = torch.Generator().manual_seed(3)
    weights = [torch.randn(shape, generator=g) for shape in ((10, 10), (7, 3, 3, 3), (50,))]
    if values == "ties":
        weights = [(w * 3).round() for w in weights]
    if values == "tiny":  # 1e-4 swallows what tells them apart
        weights = [w * 1e-12 for w in weights]
    arrays = [w.numpy() for w in weights]
    want = (
        published(arrays, sparsity)
        if scope == "global"
        else [mask for array in arrays for mask in published([array], sparsity)]
    )
    got = unpacked(paper_code_masks(weights, sparsity, scope), weights)
    assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))


def test_one_fewer_than_asked_without_ties():
    weights = [torch.randn(40, 25, generator=torch.Generator().manual_seed(0))]
    assert sum(mask.sum() for mask in unpacked(paper_code_masks(weights, 0.5, "global"), weights)) == 499


def test_the_sparsifier_uses_them_and_its_state_loads():
    def make(tie_rule):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 10))
        before = [layer.weight.detach().clone() for layer in model]
        optimizer = acdc.MaskedSGD(model.parameters(), lr=0.1)
        return before, acdc.Sparsifier(model, optimizer, COMPRESSED, sparsity=0.9, tie_rule=tie_rule)

    before, sparsifier = make("reference")
    want = published([w.numpy() for w in before], 0.9)
    assert all(map(np.array_equal, unpacked(sparsifier.masks.values(), before), want))
    for layer, mask in zip(sparsifier.model, want, strict=True):
        assert np.array_equal((layer.weight != 0).numpy(), mask)
    state = sparsifier.state_dict()
    make("reference")[1].load_state_dict(state)
    with pytest.raises(ValueError, match="tie_rule is 'lowest_index' here and 'reference' in the state"):
        make("lowest_index")[1].load_state_dict(state)
