"""Every pattern, through every phase of a training: the zeros have its shape, and the state resumes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import acdc_kernels as acdc

SCHEDULE = acdc.schedules.acdc(total=8, warmup=1, compressed=1, dense=1, final_dense=1, final_compressed=2)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.ReLU()),
        *(nn.ConvTranspose2d(8, 8, 1), nn.Conv2d(8, 16, 3, groups=8), nn.Flatten()),
        *(nn.Linear(16 * 4, 32), nn.ReLU(), nn.Linear(32, 8), nn.Linear(8, 5)),
    )


def groups(kept: Tensor, size: int, dim: int) -> Tensor:
    """How many are kept in each group of ``size`` along ``dim``."""
    return kept.transpose(0, dim).reshape(-1, size, *kept.transpose(0, dim).shape[1:]).sum(1)


def two_of_four(kept: Tensor) -> bool:
    return bool((groups(kept, 4, 1) == 2).all())


def both_ways(kept: Tensor) -> bool:
    return two_of_four(kept) and bool((groups(kept, 4, 0) == 2).all())


def one_of_eight(kept: Tensor) -> bool:
    return bool((groups(kept, 8, 1) == 1).all())


def blocks(rows: int, columns: int):
    def check(kept: Tensor) -> bool:
        o, i = kept.shape[:2]
        tiles = kept.reshape(o // rows, rows, i // columns, columns, -1).sum((1, 3))
        return bool(((tiles == 0) | (tiles == rows * columns)).all())

    return check


EVERYWHERE = {"2.weight", "7.weight", "9.weight"}
CASES = {
    # pattern: (settings, what the zeros must look like, covered weights, sparsity or None)
    "2:4": ({}, two_of_four, {*EVERYWHERE, "10.weight"}, 0.5),
    "1:8": ({"sparsity": 7 / 8}, one_of_eight, {*EVERYWHERE, "10.weight"}, 7 / 8),
    "2:4-transposable": ({}, both_ways, EVERYWHERE, 0.5),
    "block:4x1": ({"sparsity": 0.75}, blocks(4, 1), {*EVERYWHERE, "0.weight", "5.weight"}, 0.75),
    "block:2x8": ({}, blocks(2, 8), EVERYWHERE, None),
    "block:8x8": ({"scope": "layer", "sparsity": 0.5}, blocks(8, 8), EVERYWHERE, None),
    "unstructured": ({}, lambda kept: True, {*EVERYWHERE, "0.weight", "4.weight", "5.weight", "10.weight"}, 0.9),
}


@pytest.mark.parametrize("make", [acdc.MaskedSGD, acdc.MaskedAdamW], ids=lambda make: make.__name__)
@pytest.mark.parametrize("pattern", CASES)
def test_training(pattern, make):
    settings, check, covered, sparsity = CASES[pattern]
    model = net()
    optimizer = make(model.parameters(), lr=0.01)
    sparsifier = acdc.Sparsifier(model, optimizer, SCHEDULE, pattern=pattern, **settings)
    saved = None
    for step in range(SCHEDULE.total_steps):
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(4, 3, 4, 4, generator=generator)).square().mean().backward()
        optimizer.step()
        if sparsifier.phase.kind == "compressed":
            assert set(sparsifier.masks) == covered
            for name, bits in sparsifier.masks.items():
                p = model.get_parameter(name)
                kept = acdc.unpack_mask(bits, p.shape)
                assert check(kept.int())
                assert not p[~kept].count_nonzero()
            saved = copy.deepcopy(sparsifier.state_dict())
        sparsifier.step()
    if sparsity is not None:
        assert sparsifier.achieved_sparsity() == pytest.approx(sparsity, abs=0.01)
    assert set(sparsifier.uncovered()) == {n for n, p in model.named_parameters() if p.dim() > 1} - covered
    model = net()
    again = acdc.Sparsifier(model, make(model.parameters(), lr=0.01), SCHEDULE, pattern=pattern, **settings)
    again.load_state_dict(saved)
    assert all(torch.equal(bits, saved["masks"][name]) for name, bits in again.masks.items())
    broken = copy.deepcopy(saved)
    next(iter(broken["masks"].values()))[0] ^= 1
    with pytest.raises(ValueError, match="masks must keep"):
        again.load_state_dict(broken)


def test_reasons_of_what_a_pattern_cannot_take():
    model = net()
    sparsifier = acdc.Sparsifier(model, acdc.MaskedSGD(model.parameters()), SCHEDULE, pattern="2:4-transposable")
    assert sparsifier.uncovered() == {
        "0.weight": "its input axis (3) is not a multiple of 4",
        "4.weight": "its weight is stored input axis first: no pattern '2:4-transposable'",
        "5.weight": "its input axis (1) is not a multiple of 4",
        "10.weight": "its output axis (5) is not a multiple of 4",
    }
