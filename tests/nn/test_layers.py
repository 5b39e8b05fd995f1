"""Finding weights: which layers have one, under which name, and what keeps it from competing."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from acdc_kernels.nn import find_weights
from acdc_kernels.policy.patterns import parse_pattern
from acdc_kernels.policy.scopes import competing


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
    assert [name for name, _ in weight.layers] == ["a", "b", "c", "embed"]
    assert weight.matches("embed")
    assert weight.unfit is None


def test_the_last_layer_is_the_last_that_uses_a_weight():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model[3].weight = model[0].weight
    chosen, reasons = competing(find_weights(model, list(model.parameters())), "layer", parse_pattern("unstructured"))
    assert [w.name for w in chosen] == ["1.weight", "2.weight"]
    assert list(reasons) == ["0.weight"]


def test_other_parameters_of_a_covered_layer_are_listed():
    class Adapted(nn.Linear):
        def __init__(self):
            super().__init__(4, 4)
            self.lora_a = nn.Parameter(torch.zeros(4, 2))
            self.scale = nn.Parameter(torch.zeros(4))

    why = "not the weight of a Linear or Conv layer"
    assert found(Adapted()) == {"weight": None, "lora_a": why}
    assert found(nn.MultiheadAttention(4, 2, add_bias_kv=True)) == {
        "in_proj_weight": None,
        "out_proj.weight": None,
        "bias_k": why,
        "bias_v": why,
    }


def test_a_lazy_layer_must_have_run():
    with pytest.raises(ValueError, match="must have run once before, got the uninitialized layer '1'"):
        found(nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3)))
