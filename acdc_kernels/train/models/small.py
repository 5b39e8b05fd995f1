"""The small models of the first presets: a perceptron and a plain convolutional network."""

from __future__ import annotations

from torch import nn

from ..data import Dataset
from .names import BadName, whole_numbers


def mlp(rest: str, dataset: Dataset) -> nn.Module:
    """Two hidden layers of WIDTH units; with INPUTS, zeros follow each input up to that many, so that blocks fit."""
    rule = "WIDTH a positive whole number, and INPUTS one that is at least the data's"
    width, *padded = whole_numbers(rest, 1 + min(rest.count("-"), 1), rule)
    own = dataset.example.numel()
    (inputs,) = padded or (own,)
    if inputs < own:
        raise BadName(f"{rule}, {own}")
    return nn.Sequential(
        nn.Flatten(),
        *([nn.ZeroPad1d((0, inputs - own))] if padded else ()),
        nn.Linear(inputs, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, dataset.classes),
    )


def cnn(rest: str, dataset: Dataset) -> nn.Module:
    """Four 3x3 convolutions that halve the image each (28 -> 14 -> 7 -> 4 -> 2), then the mean and a linear layer."""
    if rest:
        raise BadName("nothing after it")

    def conv(c_in: int, c_out: int) -> list[nn.Module]:
        return [nn.Conv2d(c_in, c_out, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]

    return nn.Sequential(
        *conv(dataset.example.shape[1], 32),
        *conv(32, 64),
        *conv(64, 128),
        *conv(128, 128),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, dataset.classes),
    )
