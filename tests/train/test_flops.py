"""FLOPs against numbers worked out by hand."""

import pytest
import torch
from torch import nn

from acdc_kernels.train.flops import FlopRule
from acdc_kernels.train.models import build_model

from .conftest import images

# model, image shape, weights, FLOPs per image
BY_HAND = {
    # 2*6 + 3 bias
    "linear": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(2, 3)), (1, 1, 2), 6, 15),
    # 2*6, ReLU on 3
    "linear without bias, relu": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(2, 3, bias=False), nn.ReLU()),
        (1, 1, 2),
        6,
        15,
    ),
    # 5x5 image, 3x3 kernel, stride 2, padding 1: 3x3 positions. 2*(4*2*9)*9 + bias 4*9
    "strided conv": (lambda: nn.Conv2d(2, 4, 3, stride=2, padding=1), (2, 5, 5), 72, 1332),
    # 2 groups: weights 4*1*9, positions 9. 2*36*9 + bias 36
    "grouped conv": (lambda: nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), (2, 5, 5), 36, 684),
    # conv 1x1: 2*2*16, norm 2*32, relu 32, max pool 2x2 on 4x4: 4 * 2*2*2
    "norm and pool": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2)),
        (1, 4, 4),
        2,
        64 + 64 + 32 + 32,
    ),
    # windows of 2x2 from 4x4 to 2x2
    "adaptive pool": (lambda: nn.AdaptiveAvgPool2d(2), (3, 4, 4), 0, 4 * 3 * 2 * 2),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_dense_forward_by_hand(case):
    make, shape, weights, flops = BY_HAND[case]
    rule = FlopRule.of(make(), torch.zeros(1, *shape))
    assert (rule.weights, rule.dense_forward) == (weights, flops)


def test_only_nonzero_weights_count():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))  # 4x4 image: 2x2 positions
    rule = FlopRule.of(model, torch.zeros(1, 1, 4, 4))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].weight[1, 0, 1, 1] = 1.0
        model[2].weight.fill_(1.0)
        model[2].weight[:, 4:] = 0.0
    nonzeros = rule.nonzeros(model)
    assert nonzeros == {"0": 1, "2": 12}
    assert rule.forward(nonzeros) == 2 * 1 * 4 + 8 + 2 * 12 + 3


def test_the_presets_models():
    mlp = FlopRule.of(build_model("mlp-1024", images(1, 8, 8), 0), torch.zeros(1, 1, 8, 8))
    weights = 64 * 1024 + 1024 * 1024 + 1024 * 10
    assert mlp.weights == weights
    assert mlp.dense_forward == 2 * weights + (1024 + 1024 + 10) + 2 * 1024
    cnn = FlopRule.of(build_model("cnn", images(1, 28, 28), 0), torch.zeros(1, 1, 28, 28))
    convs = {
        14: (32, 9),
        7: (64, 32 * 9),
        4: (128, 64 * 9),
        2: (128, 128 * 9),
    }  # output width: channels, weights of one
    assert cnn.weights == sum(c * w for c, w in convs.values()) + 1280 == 241_184
    products = sum(2 * c * w * size**2 for size, (c, w) in convs.items()) + 2 * 1280
    norms_and_relus = sum(3 * c * size**2 for size, (c, _) in convs.items())
    assert cnn.dense_forward == products + norms_and_relus + 4 * 128 + 10  # mean over 2x2, bias


def test_an_unknown_layer_is_an_error_and_leaves_no_hook():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.GELU())
    with pytest.raises(TypeError, match="no rule for layer '2' of type GELU"):
        FlopRule.of(model, torch.zeros(1, 1, 2, 2))
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("training", [True, False])
def test_counting_leaves_the_model_as_it_was(training):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    FlopRule.of(model, torch.zeros(1, 1, 4, 4))
    assert model.training is training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
