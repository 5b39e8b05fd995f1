"""The two model families of the presets."""

from __future__ import annotations

import torch
from torch import nn

from .data import Dataset
from .errors import UserError


def build_model(name: str, dataset: Dataset, seed: int) -> nn.Module:
    """A freshly initialised model: ``mlp-WIDTH`` or ``cnn``, for `dataset`'s images; the seed decides its weights."""
    torch.manual_seed(seed)
    if name.startswith("mlp-"):
        return _mlp(dataset.example.numel(), int(name.removeprefix("mlp-")), dataset.classes)
    if name == "cnn":
        return _cnn(dataset.example.shape[1], dataset.classes)
    raise UserError(f"model: must be 'mlp-WIDTH' or 'cnn', got {name!r}")


def _mlp(inputs: int, width: int, classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(inputs, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, classes),
    )


def _cnn(channels: int, classes: int) -> nn.Module:
    """Four 3x3 convolutions that halve the image each (28 -> 14 -> 7 -> 4 -> 2), then the mean and a linear layer."""

    def conv(c_in: int, c_out: int) -> list[nn.Module]:
        return [nn.Conv2d(c_in, c_out, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]

    return nn.Sequential(
        *conv(channels, 32),
        *conv(32, 64),
        *conv(64, 128),
        *conv(128, 128),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, classes),
    )


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Weights of two or more dimensions decay; biases and normalisation parameters do not."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
