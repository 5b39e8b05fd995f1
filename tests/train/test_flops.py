"""FLOPs against numbers worked out by hand."""

import pytest
import torch
from torch import nn

from acdc_kernels.train.flops import FlopRule
from acdc_kernels.train.models import build_model

from .conftest import characters, images

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
    # 3x3 input positions: 2*(2*4*4)*9, bias 4*6*6
    "transposed conv": (lambda: nn.ConvTranspose2d(2, 4, 2, stride=2), (2, 3, 3), 32, 576 + 144),
    # 3 positions: 2*(8*5)*3, bias 5*3, activation 1 each
    "linear at positions, gelu": (lambda: nn.Sequential(nn.Linear(8, 5), nn.GELU()), (3, 8), 40, 240 + 15 + 15),
    "layer norm, dropout": (lambda: nn.Sequential(nn.LayerNorm(8), nn.Dropout(0.5)), (3, 8), 0, 2 * 24),
    "silu and softmax": (lambda: nn.Sequential(nn.SiLU(), nn.Softmax(-1)), (3, 8), 0, 24 + 24),
    # the same layer twice: 2*16 + bias 4, twice
    "a layer used twice": (lambda: nn.Sequential(*[nn.Linear(4, 4)] * 2), (4,), 16, 2 * 36),
    # windows of 3 from 6 to 2
    "pools in one dimension": (
        lambda: nn.Sequential(nn.MaxPool1d(3), nn.AdaptiveAvgPool1d(1)),
        (2, 6),
        0,
        3 * 4 + 2 * 2,
    ),
    # windows of 2x2 from 4x4 to 2x2
    "adaptive pool": (lambda: nn.AdaptiveAvgPool2d(2), (3, 4, 4), 0, 4 * 3 * 2 * 2),
}


class Text(nn.Module):
    """Embedding, linear, ReLU, linear over [B, T], whose layers see tokens as [B, T, C], [T, B, C] or [B * T, C]."""

    def __init__(self, layout):
        super().__init__()
        self.layout = layout
        self.embed, self.norm = nn.Embedding(5, 4), nn.LayerNorm(4)
        self.up, self.act, self.head = nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 5)

    def forward(self, x):
        h = self.embed(x)
        h = {"batch first": h, "sequence first": h.transpose(0, 1), "flattened": h.flatten(0, 1)}[self.layout]
        return self.head(self.act(self.up(self.norm(h))))


@pytest.mark.parametrize("layout", ["batch first", "sequence first", "flattened"])
def test_where_the_batch_lies_does_not_matter(layout):
    rule = FlopRule.of(Text(layout), torch.zeros(1, 6, dtype=torch.int64))
    products, bias, norm, relu = 2 * (4 * 8 + 8 * 5), 8 + 5, 2 * 4, 8
    assert rule.dense_forward == 6 * (products + bias + norm + relu)
    assert {layer.positions for layer in rule.layers} == {6}


class Unbatched(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return self.body(x[0])


POOLED = {
    "max": nn.MaxPool2d(2),
    "with indices": nn.MaxPool2d(2, return_indices=True),
    "adaptive": nn.AdaptiveAvgPool2d(2),
}


@pytest.mark.parametrize("pool", POOLED)
def test_pools_without_a_batch_dimension(pool):
    assert FlopRule.of(Unbatched(POOLED[pool]), torch.zeros(1, 3, 4, 4)).fixed == 4 * 3 * 2 * 2


class ByKeyword(nn.Module):
    def __init__(self, layers, **more):
        super().__init__()
        self.layers, self.more = nn.ModuleList(layers), more

    def forward(self, x):
        for layer in self.layers:
            x = layer(**self.more, input=x)
        return x


class Stated(nn.Module):
    def forward(self, input):
        return input

    def fixed_flops(self, inputs, output):
        return inputs[0].numel()


CALLED_BY_KEYWORD = {
    "linear, norm, relu": ([nn.Linear(4, 3), nn.LayerNorm(3), nn.ReLU()], {}, (4,), 2 * 12 + 3 + 2 * 3 + 3),
    "pool": ([nn.MaxPool1d(2)], {}, (1, 4), 2 * 2),
    "transposed, input last": (
        [nn.ConvTranspose2d(1, 2, 2, bias=False)],
        {"output_size": None},
        (1, 3, 3),
        2 * 8 * 9,
    ),
    "a cost of its own": ([Stated()], {}, (7,), 7),
}


@pytest.mark.parametrize("case", CALLED_BY_KEYWORD)
def test_modules_called_by_keyword(case):
    layers, more, shape, flops = CALLED_BY_KEYWORD[case]
    assert FlopRule.of(ByKeyword(layers, **more), torch.zeros(1, *shape)).dense_forward == flops


def test_a_weight_that_layers_share_counts_once_and_computes_twice():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    model[1].weight = model[0].weight
    rule = FlopRule.of(model, torch.zeros(1, 4))
    assert rule.weights == 16 + 8
    assert rule.dense_forward == 2 * (16 + 16 + 8) + 4 + 4 + 2
    with torch.no_grad():
        model[0].weight[0] = 0.0
        model[0].weight[1:] = 1.0
        model[2].weight.fill_(1.0)
    nonzeros = rule.nonzeros(model)
    assert nonzeros == {"0": 12, "1": 12, "2": 8}
    assert (rule.kept(nonzeros), rule.sparsity(nonzeros)) == (20, 1 - 20 / 24)
    assert rule.forward(nonzeros) == 2 * (12 + 12 + 8) + 10


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
    padded = FlopRule.of(build_model("mlp-1024-96", images(1, 8, 8), 0), torch.zeros(1, 1, 8, 8))
    assert padded.dense_forward == mlp.dense_forward + 2 * 32 * 1024
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


class Doubled(nn.Module):
    def forward(self, x):
        return x @ torch.ones(4, 4)


def test_an_unknown_layer_is_an_error_and_leaves_no_hook():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), Doubled())
    with pytest.raises(TypeError, match="no rule for layer '2' of type Doubled"):
        FlopRule.of(model, torch.zeros(1, 1, 2, 2))
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("training", [True, False])
def test_counting_leaves_the_model_as_it_was(training):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    FlopRule.of(model, torch.zeros(1, 1, 4, 4))
    assert model.training is training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_transformer_by_hand():
    layers, d, block, vocabulary = 2, 32, 6, 97
    rule = FlopRule.of(build_model("transformer-2-32", characters(block), 0), characters(block).example)
    products = layers * 12 * d * d + d * vocabulary
    attention = layers * 2 * 2 * block**2 * d
    norms = (2 * layers + 1) * 2 * block * d
    bias_and_gelu = layers * block * (9 * d + 4 * d)
    assert rule.weights == products
    assert rule.dense_forward == 2 * products * block + attention + norms + bias_and_gelu
    assert rule.rule == "the paper's rule"


def wide(c_in, c_out, pixels):
    """Multiply-adds of a stage of four wide blocks: a 3x3 and a 1x1 convolution of the input, seven more 3x3."""
    return (9 * c_in * c_out + c_in * c_out + 7 * 9 * c_out**2) * pixels


# data, multiply-adds, how near
MULTIPLY_ADDS = {
    "resnet-20": (
        images(3, 32, 32),
        (27 * 16 + 6 * 9 * 16**2) * 1024 + 9 * (16 * 32 + 5 * 32**2) * 256 + 9 * (32 * 64 + 5 * 64**2) * 64 + 640,
        0,
    ),
    "wrn-28-10": (
        images(3, 32, 32),
        27 * 16 * 1024 + wide(16, 160, 1024) + wide(160, 320, 256) + wide(320, 640, 64) + 6400,
        0,
    ),
    "mobilenet": (images(3, 224, 224, classes=1000), 569e6, 0.001),  # as Howard et al. 2017, table 4, prints it
}


@pytest.mark.parametrize("name", MULTIPLY_ADDS)
def test_products_of_each_family_and_torchs_counter(name):
    dataset, products, near = MULTIPLY_ADDS[name]
    with torch.device("meta"):
        model, example = build_model(name, dataset, 0), dataset.example.to("meta")
        strict, loose = (FlopRule.of(model, example, strict=strict) for strict in (True, False))
    assert (strict.dense_forward - strict.fixed) / 2 == pytest.approx(products, rel=near)
    assert (strict.layers, strict.fixed) == (loose.layers, loose.fixed)


def test_products_outside_of_known_layers_are_counted_by_torch():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), Doubled())
    rule = FlopRule.of(model, torch.zeros(1, 2, 2), strict=False)
    assert (rule.weights, rule.fixed) == (16, 4 + 2 * 16)
    assert rule.rule.endswith("for products outside of its layers; other work of Doubled is left out")


def test_attention_of_torch_is_refused_or_counted():
    d, positions = 32, 8
    layer = nn.TransformerEncoderLayer(d, 4, 64, batch_first=True)
    example = torch.zeros(1, positions, d)
    with pytest.raises(TypeError, match="no rule for layer 'self_attn' of type MultiheadAttention"):
        FlopRule.of(layer, example)
    rule = FlopRule.of(layer, example, strict=False)
    attention = 2 * 4 * d * d * positions + 2 * 2 * positions**2 * d
    assert {cost.name for cost in rule.layers} == {"linear1", "linear2"}
    assert rule.fixed == attention + 2 * 2 * d * positions + (64 + d) * positions
    assert torch.backends.mha.get_fastpath_enabled()
