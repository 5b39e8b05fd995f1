"""Finding weights: which layers have one, under which name, and what keeps it from competing."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from acdc_kernels.nn import find_weights


def found(model, trained=None):
    return {w.name: w.unfit for w in find_weights(model, list(model.parameters()) if trained is None else trained)}


def test_linear_and_conv_in_model_order():
    model = nn.Sequential(
        *(nn.Conv1d(1, 1, 1), nn.Conv2d(1, 1, 1), nn.Conv3d(1, 1, 1), nn.Linear(1, 1), nn.ConvTranspose2d(1, 1, 1)),
        *(nn.BatchNorm1d(1), nn.LayerNorm(1), nn.Embedding(2, 2), nn.Bilinear(1, 1, 1), nn.PReLU()),
    )
    assert found(model) == {
        **{f"{i}.weight": None for i in range(5)},
        "7.weight": "a lookup, not a product",
        "8.weight": "a product of two inputs",
    }


def test_the_model_itself_may_be_the_layer():
    (weight,) = find_weights(nn.Linear(3, 2), [])
    assert (weight.name, weight.shape, weight.layers[0][0]) == ("weight", (2, 3), "")


def test_reasons():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2, dtype=torch.complex64))
    model[1].weight.requires_grad_(False)
    trained = [p for i in (0, 1, 3) for p in model[i].parameters()]
    assert found(model, trained) == {
        "0.weight": None,
        "1.weight": "frozen",
        "2.weight": "not in the optimizer",
        "3.weight": "no masks for torch.complex64 (torch.strided)",
    }


def test_a_parametrized_weight_is_not_computed():
    model = nn.Sequential(nn.Linear(2, 2), parametrizations.spectral_norm(nn.Linear(2, 2)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert found(model) == {"0.weight": None, "1.weight": "computed, not a parameter"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_shared_weights_count_once():
    model = nn.ModuleDict({"embed": nn.Embedding(4, 3), "a": nn.Linear(3, 4), "b": nn.Linear(3, 4)})
    model["a"].weight = model["b"].weight = model["embed"].weight
    model["c"] = model["a"]
    (weight,) = find_weights(model, list(model.parameters()))
    assert weight.name == "embed.weight"
    assert [name for name, _ in weight.layers] == ["a", "b", "c"]
    assert weight.unfit is None


def test_a_lazy_layer_must_have_run():
    with pytest.raises(ValueError, match="must have run once before, got the uninitialized layer '1'"):
        found(nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3)))
