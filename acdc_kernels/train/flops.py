"""FLOPs of one image by the paper's rule (Peste et al., NeurIPS 2021, appendix), counted from actual nonzeros.

| layer              | forward FLOPs per image                                       |
|--------------------|---------------------------------------------------------------|
| convolution, linear| 2 x nonzero weights x output positions, + 1 per output if bias |
| normalisation      | 2 per input element                                           |
| ReLU               | 1 per input element                                           |
| pooling            | window size per output element                                |

The backward pass counts as twice the forward pass, so a training step costs three forward passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import nn

TRAINING_PASSES = 3  # forward, input gradient, weight gradient

_PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm)
_POOLS = (nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d)
_FREE = (nn.Flatten, nn.Identity, nn.Dropout)


@dataclass(frozen=True)
class LayerCost:
    """One product layer: how many weights it has and at how many output positions each of them is used."""

    name: str
    weights: int
    positions: int


@dataclass(frozen=True)
class FlopRule:
    """The cost of a model's forward pass on one image, as a function of its nonzero weights."""

    layers: tuple[LayerCost, ...]
    fixed: int  # bias, normalisation, ReLU and pooling: the same for dense and sparse models

    @classmethod
    def of(cls, model: nn.Module, example: torch.Tensor) -> FlopRule:
        """Runs `model` once on `example` (an input batch of size 1) and notes every layer's shapes.

        Raises TypeError for a layer that the rule does not know, so that nothing is left out silently.
        """
        layers: list[LayerCost] = []
        fixed: list[int] = []
        hooks = []
        for name, module in model.named_modules():
            if not any(True for _ in module.children()):
                hooks.append(module.register_forward_hook(_watch(name, layers, fixed)))
        training = model.training
        try:
            with torch.no_grad():
                model.eval()(example)
        finally:
            model.train(training)
            for hook in hooks:
                hook.remove()
        return cls(tuple(layers), sum(fixed))

    @property
    def weights(self) -> int:
        return sum(layer.weights for layer in self.layers)

    @property
    def dense_forward(self) -> int:
        """FLOPs of one image through the model with every weight nonzero."""
        return self.forward({layer.name: layer.weights for layer in self.layers})

    def forward(self, nonzeros: dict[str, int]) -> int:
        """FLOPs of one image through the model that keeps `nonzeros[layer]` weights in each layer."""
        return self.fixed + sum(2 * nonzeros[layer.name] * layer.positions for layer in self.layers)

    def nonzeros(self, model: nn.Module) -> dict[str, int]:
        """Nonzero weights in each product layer of `model`."""
        modules = dict(model.named_modules())
        return {layer.name: int(torch.count_nonzero(modules[layer.name].weight)) for layer in self.layers}


def _watch(name: str, layers: list[LayerCost], fixed: list[int]):
    def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if isinstance(module, _PRODUCTS):
            outputs = output[0].numel()
            channels = module.out_features if isinstance(module, nn.Linear) else module.out_channels
            layers.append(LayerCost(name, module.weight.numel(), outputs // channels))
            fixed.append(outputs if module.bias is not None else 0)
        elif isinstance(module, _NORMS):
            fixed.append(2 * inputs[0][0].numel())
        elif isinstance(module, nn.ReLU):
            fixed.append(inputs[0][0].numel())
        elif isinstance(module, _POOLS):
            fixed.append(_window(module, inputs[0], output) * output[0].numel())
        elif not isinstance(module, _FREE):
            raise TypeError(f"FlopRule: no rule for layer {name!r} of type {type(module).__name__}")

    return hook


def _window(module: nn.Module, image: torch.Tensor, output: torch.Tensor) -> int:
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return prod(-(-i // o) for i, o in zip(image.shape[-2:], output.shape[-2:], strict=True))
    size = module.kernel_size
    return size * size if isinstance(size, int) else prod(size)
