"""The weights that the benchmarks run on: shapes of whole networks, filled as a fresh network would be."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from acdc_kernels.policy.patterns import parse_pattern

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Model:
    """The prunable weights of one network."""

    name: str
    shapes: tuple[Shape, ...]

    @property
    def numel(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes)

    def weights(self, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> list[Tensor]:
        """Kaiming-scaled normal weights (He et al. 2015), contiguous: std = sqrt(2 / fan_in)."""
        generator = torch.Generator(device).manual_seed(seed)
        return [
            torch.empty(shape, dtype=dtype, device=device).normal_(
                0.0, math.sqrt(2 / math.prod(shape[1:])), generator=generator
            )
            for shape in self.shapes
        ]


def _resnet50() -> tuple[Shape, ...]:
    shapes: list[Shape] = [(64, 3, 7, 7)]
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += [(width, channels, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            if block == 0:
                shapes.append((4 * width, channels, 1, 1))
            channels = 4 * width
    shapes.append((1000, 2048))
    return tuple(shapes)


def _transformer(layers: int, width: int) -> tuple[Shape, ...]:
    layer: list[Shape] = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)]
    return tuple(layer * layers)


MODELS = {
    model.name: model
    for model in (
        Model("tiny", ((7, 5, 3, 3), (33, 19), (10, 33))),
        Model("mlp", ((1024, 64), (1024, 1024), (10, 1024))),
        Model("resnet50", _resnet50()),
        Model("transformer", _transformer(layers=12, width=768)),
    )
}
TINY, SMALL, RESNET50, LARGE = MODELS.values()
# Well beyond the L2 cache of a GPU, in few launches' worth of tensors: 2.0e8 and 1.0e9 weights.
BEYOND_L2 = Model("transformer-200m", _transformer(layers=16, width=1024))
BILLION = Model("transformer-1b", _transformer(layers=20, width=2048))


@dataclass(frozen=True)
class Case:
    """One model at one sparsity; `scope` says whether the budget is shared by all weights or given to each layer."""

    model: Model
    sparsity: float
    scope: str = "global"
    pattern: str = "unstructured"
    dtype: torch.dtype = torch.float32  # another one on GPUs alone

    @property
    def name(self) -> str:
        return f"{self.model.name}/{self.scope}"

    def keep(self) -> int | list[int] | None:
        """Weights that stay: n - round(sparsity * n), of all weights or of each layer; None if the pattern decides."""
        pattern = parse_pattern(self.pattern)
        if pattern.fixed:
            return None
        if self.scope == "global":
            return pattern.kept(self.model.numel, self.sparsity)
        return [pattern.kept(math.prod(shape), self.sparsity) for shape in self.model.shapes]


TOPK = (
    Case(RESNET50, 0.90),
    Case(RESNET50, 0.95),
    Case(RESNET50, 0.98),
    Case(RESNET50, 0.90, "layer"),
    Case(SMALL, 0.90),
    Case(LARGE, 0.90),
)
TOPK_QUICK = (Case(RESNET50, 0.90),)

# Sparsity 0 is the dense phase: no masks at all.
UPDATE = (Case(RESNET50, 0.90), Case(RESNET50, 0.0), Case(SMALL, 0.90), Case(SMALL, 0.0), Case(LARGE, 0.90))
UPDATE_QUICK = (Case(RESNET50, 0.90), Case(RESNET50, 0.0))
