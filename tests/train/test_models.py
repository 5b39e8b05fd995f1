"""Model families: sizes that the papers print, shapes, seeds, and names that mean nothing."""

import pytest
import torch
from torch import nn

from acdc_kernels.train.errors import UserError
from acdc_kernels.train.models import build_model
from acdc_kernels.train.models.resnet import PaddedShortcut

from .conftest import characters, images

CIFAR10, CIFAR100 = images(3, 32, 32), images(3, 32, 32, classes=100)
IMAGENET = images(3, 224, 224, classes=1000)

# parameters in all; what the paper or its usual implementations print
PARAMETERS = {
    ("resnet-20", CIFAR10): 269_722,  # 0.27 M: He et al. 2016, table 6
    ("resnet-56", CIFAR10): 853_018,  # 0.85 M: the same
    ("resnet-110", CIFAR10): 1_727_962,  # 1.7 M: the same
    ("wrn-28-10", CIFAR10): 36_479_194,  # 36.5 M: Zagoruyko & Komodakis 2016, table 4
    ("wrn-28-10", CIFAR100): 36_479_194 + 90 * 641,
    ("wrn-40-4", CIFAR10): 8_949_210,  # 8.9 M: the same
    ("mobilenet", IMAGENET): 4_231_976,  # 4.2 M: Howard et al. 2017, table 6
    ("mobilenet-0.75", IMAGENET): 2_585_560,  # 2.6 M: the same
    ("mobilenet-0.5", IMAGENET): 1_331_592,  # 1.3 M: the same
    ("mobilenet-0.25", IMAGENET): 470_072,  # 0.5 M: the same
    ("mobilenet-cifar", CIFAR10): 4_231_976 - 990 * 1025,
    # 97 + 128 embeddings; a block: 4 norm vectors, 3 + 1 + 4 + 4 matrices of 128x128, 3 + 1 + 4 + 1 vectors of bias; norm; head
    ("transformer-2-128", characters(128)): 225 * 128 + 2 * (12 * 128**2 + 13 * 128) + 2 * 128 + 97 * 128,
}


@pytest.mark.parametrize(("name", "dataset"), PARAMETERS, ids=lambda part: part if isinstance(part, str) else "")
def test_number_of_parameters(name, dataset):
    with torch.device("meta"):
        model = build_model(name, dataset, 0)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name, dataset]


SHAPES = {
    "mlp-16": (images(1, 8, 8), (2, 10)),
    "mlp-16-96": (images(1, 8, 8), (2, 10)),
    "cnn": (images(1, 28, 28), (2, 10)),
    "resnet-8": (images(3, 16, 16, classes=7), (2, 7)),
    "wrn-10-1": (images(3, 16, 16, classes=7), (2, 7)),
    "mobilenet-0.25": (images(3, 64, 64, classes=7), (2, 7)),
    "mobilenet-cifar-0.25": (images(1, 32, 32), (2, 10)),
    "transformer-2-32": (characters(12), (2, 12, 97)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_family_computes_and_its_seed_decides_it(name):
    dataset, shape = SHAPES[name]
    models = [build_model(name, dataset, seed) for seed in (1, 1, 2)]
    example = torch.cat([dataset.example, dataset.example])
    if dataset.unit == "images":
        example += torch.randn(example.shape, generator=torch.Generator().manual_seed(0))
    one, same, other = (model(example) for model in models)
    assert one.shape == shape
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    one.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in models[0].parameters())


def test_shortcut_strides_and_pads_channels():
    x = torch.arange(32.0).view(1, 2, 4, 4)
    y = PaddedShortcut(2, 2)(x)
    assert y.shape == (1, 4, 2, 2)
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])
    assert not y[:, 0].any()
    assert not y[:, 3].any()


def test_the_transformer_sees_no_later_character():
    model = build_model("transformer-2-32", characters(10), 0).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # 0.02 is small: make differences large
            parameter.mul_(5)
    one = torch.randint(97, (1, 10), generator=torch.Generator().manual_seed(0))
    other = one.clone()
    other[0, 6] = (one[0, 6] + 1) % 97
    a, b = model(one), model(other)
    assert torch.equal(a[:, :6], b[:, :6])
    assert (a[:, 6:] != b[:, 6:]).any(-1).all()
    assert model(one[:, :4]).shape == (1, 4, 97)


def test_every_product_of_the_transformer_is_a_linear_layer():
    model = build_model("transformer-2-32", characters(10), 0)
    matrices = {name for name, p in model.named_parameters() if p.ndim == 2}
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert matrices - linear == {"characters.weight", "positions.weight"}
    assert len(linear) == 2 * 4 + 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vgg", "model: must be one of mlp-WIDTH.-INPUTS., cnn, .*, or package.module:callable, got 'vgg'"),
        ("mlp", "model: must be mlp-WIDTH.-INPUTS. .WIDTH a positive whole number, and INPUTS one .*, got 'mlp'"),
        ("mlp-0", "got 'mlp-0'"),
        ("mlp-16-63", "INPUTS one that is at least the data's, [0-9]+., got 'mlp-16-63'"),
        ("mlp-16-64-64", "got 'mlp-16-64-64'"),
        ("mlp--3", "got 'mlp--3'"),
        ("mlp-ten", "got 'mlp-ten'"),
        ("mlp-99999999999999", "model: 'mlp-99999999999999' cannot be built .*can't allocate memory"),
        ("mlp-" + "9" * 18, "model: 'mlp-9+' cannot be built"),
        ("mlp-" + "9" * 5000, "WIDTH a positive whole number"),
        ("cnn-2", "model: must be cnn .nothing after it., got 'cnn-2'"),
        ("resnet-18", "model: must be resnet-DEPTH .DEPTH 6n . 2: 20, 32, 44, 56, 110., got 'resnet-18'"),
        ("resnet-2", "got 'resnet-2'"),
        ("wrn-28", "model: must be wrn-DEPTH-WIDTH .*, got 'wrn-28'"),
        ("wrn-27-10", "DEPTH 6n . 4: 10, 16, 22, 28, 40; WIDTH a positive whole number., got 'wrn-27-10'"),
        ("mobilenet-0", "WIDTH a number from 0.125 to 4., got 'mobilenet-0'"),
        ("mobilenet-nan", "got 'mobilenet-nan'"),
        ("mobilenet-1-1", "got 'mobilenet-1-1'"),
        ("mobilenet-cifar-wide", "got 'mobilenet-cifar-wide'"),
        ("transformer-2-64", "transformer-LAYERS-WIDTH takes characters, but images holds images"),
    ],
)
def test_bad_names(name, message):
    with pytest.raises(UserError, match=message):
        build_model(name, images(3, 32, 32), 0)


def test_bad_names_for_text():
    with pytest.raises(UserError, match="cnn takes images, but characters holds characters"):
        build_model("cnn", characters(8), 0)
    with pytest.raises(UserError, match=r"WIDTH a multiple of 32., got 'transformer-2-48'"):
        build_model("transformer-2-48", characters(8), 0)


def test_arguments_are_for_import_paths():
    with pytest.raises(UserError, match=r"model-args: only for models by import path, got \{\"a\": 1\} for 'cnn'"):
        build_model("cnn", images(1, 28, 28), 0, '{"a": 1}')
