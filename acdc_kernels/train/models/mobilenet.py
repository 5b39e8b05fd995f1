"""MobileNetV1 (Howard et al., 2017, arXiv 1704.04861, table 1)."""

from __future__ import annotations

from torch import nn

from ..data import Dataset
from .names import BadName
from .resnet import he_init

# channels and stride of each depthwise separable convolution
LAYERS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))


def from_name(rest: str, dataset: Dataset) -> nn.Module:
    """``mobilenet``, ``mobilenet-0.5`` (width multiplier), ``mobilenet-cifar``, ``mobilenet-cifar-0.5``."""
    parts = rest.split("-") if rest else []
    small_images = parts[:1] == ["cifar"]
    try:
        (width,) = (float(part) for part in parts[small_images:]) if parts[small_images:] else (1.0,)
    except ValueError:
        width = 0.0
    if not 0.125 <= width <= 4:
        raise BadName("WIDTH a number from 0.125 to 4")
    return mobilenet(width, dataset.example.shape[1], dataset.classes, stem_stride=1 if small_images else 2)


def mobilenet(width: float, channels: int, classes: int, stem_stride: int = 2) -> nn.Sequential:
    """A 3x3 convolution, 13 depthwise separable ones, the mean, and a linear layer.

    Every layer has `width` times the paper's channels, rounded. `stem_stride` 1 is the variant for 32x32 images, whose
    last stage then has 2x2 pixels. Images [B, C, H, W] to logits [B, classes].
    """

    def conv(c_in: int, c_out: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
        product = nn.Conv2d(c_in, c_out, size, stride, padding=size // 2, groups=groups, bias=False)
        return [product, nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)]

    c_in = round(32 * width)
    layers = conv(channels, c_in, 3, stem_stride)
    for c_paper, stride in LAYERS:
        c_out = round(c_paper * width)
        layers += conv(c_in, c_in, 3, stride, groups=c_in) + conv(c_in, c_out, 1)
        c_in = c_out
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c_in, classes))
    he_init(model)
    return model
