"""Residual networks for small images (He et al., CVPR 2016, arXiv 1512.03385, section 4.2)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ..data import Dataset
from .names import BadName, whole_numbers


def from_name(rest: str, dataset: Dataset) -> nn.Module:
    """``resnet-DEPTH`` with DEPTH = 6n + 2: 20, 32, 44, 56, 110."""
    rule = "DEPTH 6n + 2: 20, 32, 44, 56, 110"
    (depth,) = whole_numbers(rest, 1, rule)
    if depth < 8 or (depth - 2) % 6:
        raise BadName(rule)
    return CifarResNet(depth, dataset.example.shape[1], dataset.classes)


class CifarResNet(nn.Module):
    """A 3x3 convolution, three stages of n blocks with 16, 32 and 64 channels, the mean, and a linear layer.

    `depth` = 6n + 2. Shortcuts have no parameters ("option A"). Images [B, C, H, W] to logits [B, classes].
    """

    def __init__(self, depth: int, channels: int, classes: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.stages = nn.Sequential(
            *(
                BasicBlock(c_in if i == 0 else c_out, c_out, stride if i == 0 else 1)
                for c_in, c_out, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2))
                for i in range(blocks)
            )
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(64, classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.relu(self.norm(self.conv(x))))
        return self.fc(self.flatten(self.pool(x)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; the first convolution may stride."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(c_out)
        self.relu = nn.ReLU()
        self.shortcut = nn.Identity() if c_in == c_out else PaddedShortcut(c_out - c_in, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        return self.relu(y + self.shortcut(x))


class PaddedShortcut(nn.Module):
    """Option A: every `stride`-th pixel, and `extra` channels of zeros, half of them before and half after."""

    def __init__(self, extra: int, stride: int) -> None:
        super().__init__()
        self.extra, self.stride = extra, stride

    def forward(self, x: Tensor) -> Tensor:
        before = self.extra // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.extra - before))

    def fixed_flops(self, inputs: tuple[Any, ...], output: Tensor) -> int:
        """Moves numbers, computes none (see `flops.FlopRule`)."""
        return 0


def he_init(model: nn.Module) -> None:
    """Convolutions from a normal distribution of variance 2 / (outputs x kernel size) (He et al., 2015)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
