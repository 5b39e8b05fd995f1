"""Running statistics measured anew: the averages over the batches, and nothing else changed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from acdc_kernels.nn import recalibrate


def net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4, momentum=0.3), nn.Flatten(), nn.BatchNorm1d(16))
    return model(torch.randn(5, 2, 2, 2)) is not None and model


def batches(n=3):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(6, 2, 2, 2, generator=generator) for _ in range(n)]


@pytest.mark.parametrize("wrapped", [lambda x: x, lambda x: (x, 0), lambda x: [x]], ids=["tensor", "tuple", "list"])
def test_statistics_are_the_averages_over_the_batches(wrapped):
    model = net().eval()
    assert recalibrate(model, map(wrapped, batches())) == 2
    outputs = [model[0](x) for x in batches()]
    assert torch.allclose(model[1].running_mean, sum(y.mean((0, 2, 3)) for y in outputs) / 3, atol=1e-6)
    assert torch.allclose(
        model[1].running_var, sum(y.transpose(0, 1).reshape(4, -1).var(1) for y in outputs) / 3, atol=1e-6
    )
    assert int(model[1].num_batches_tracked) == 3


def test_modes_momentum_and_weights_stay():
    model = net().eval()
    model[1].train()
    weights = [p.detach().clone() for p in model.parameters()]
    recalibrate(model, batches())
    assert [m.training for m in model.modules()] == [False, False, True, False, False]
    assert (model[1].momentum, model[3].momentum) == (0.3, 0.1)
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), weights, strict=True))


@pytest.mark.parametrize(
    ("loader", "error"),
    [
        ([], ValueError),
        ([torch.zeros(6, 3, 2, 2)], RuntimeError),
        ([*batches(1), torch.zeros(6, 3, 2, 2)], RuntimeError),
    ],
    ids=["empty", "broken", "broken later"],
)
def test_a_failure_changes_nothing(loader, error):
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(error):
        recalibrate(model, loader)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model[1].momentum == 0.3
    assert model.training


def test_a_layer_that_does_not_run_keeps_what_it_has():
    model = net()
    model.unused = nn.BatchNorm1d(2)
    model.unused.running_mean.fill_(7)
    model.forward = lambda x: model[3](model[2](model[1](model[0](x))))
    assert recalibrate(model, batches()) == 2
    assert model.unused.running_mean.tolist() == [7, 7]


def test_without_batch_normalisation_the_loader_is_not_read():
    def never():
        raise AssertionError
        yield

    assert recalibrate(nn.Linear(2, 2), never()) == 0


def test_layers_that_none_of_the_batches_reaches():
    model = net()
    model.forward = lambda x: model[0](x)
    before = model[1].running_mean.clone()
    assert recalibrate(model, batches()) == 0
    assert torch.equal(model[1].running_mean, before)
