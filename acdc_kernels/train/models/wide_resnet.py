"""Wide residual networks (Zagoruyko & Komodakis, BMVC 2016, arXiv 1605.07146)."""

from __future__ import annotations

from torch import Tensor, nn

from ..data import Dataset
from .names import BadName, whole_numbers
from .resnet import he_init


def from_name(rest: str, dataset: Dataset) -> nn.Module:
    """``wrn-DEPTH-WIDTH`` with DEPTH = 6n + 4: wrn-28-10, wrn-16-4."""
    rule = "DEPTH 6n + 4: 10, 16, 22, 28, 40; WIDTH a positive whole number"
    depth, width = whole_numbers(rest, 2, rule)
    if depth < 10 or (depth - 4) % 6:
        raise BadName(rule)
    return WideResNet(depth, width, dataset.example.shape[1], dataset.classes)


class WideResNet(nn.Module):
    """A 3x3 convolution and three stages of n pre-activation blocks with 16, 32 and 64 times `width` channels.

    `depth` = 6n + 4; the two 3x3 convolutions of a block have no dropout between them. Images [B, C, H, W] to logits
    [B, classes].
    """

    def __init__(self, depth: int, width: int, channels: int, classes: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.stages = nn.Sequential(
            *(
                WideBlock(c_in if i == 0 else c_out, c_out, stride if i == 0 else 1)
                for c_in, c_out, stride in (
                    (16, 16 * width, 1),
                    (16 * width, 32 * width, 2),
                    (32 * width, 64 * width, 2),
                )
                for i in range(blocks)
            )
        )
        self.norm = nn.BatchNorm2d(64 * width)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(64 * width, classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.stages(self.conv(x))))
        return self.fc(self.flatten(self.pool(x)))


class WideBlock(nn.Module):
    """Norm, ReLU, 3x3 convolution, twice; where the shape changes, the shortcut is a 1x1 convolution."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(c_in)
        self.relu = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.shortcut = None if c_in == c_out and stride == 1 else nn.Conv2d(c_in, c_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm1(x))
        across = x if self.shortcut is None else self.shortcut(y)
        return across + self.conv2(self.relu(self.norm2(self.conv1(y))))
