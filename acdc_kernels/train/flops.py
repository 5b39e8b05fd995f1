"""FLOPs of one sample by the paper's rule (Peste et al., NeurIPS 2021, appendix), counted from actual nonzeros.

| layer                                 | forward FLOPs per sample                                       |
|---------------------------------------|----------------------------------------------------------------|
| convolution, linear                   | 2 x nonzero weights x output positions, + 1 per output if bias |
| transposed convolution                | 2 x nonzero weights x input positions, + 1 per output if bias  |
| normalisation                         | 2 per input element                                            |
| ReLU, GELU and other activations      | 1 per input element                                            |
| pooling                               | window size per output element                                 |
| embedding, dropout, reshaping         | 0                                                              |
| a module with a method `fixed_flops`  | what `fixed_flops(inputs, output)` says                        |

Sums of branches are not counted, as in the paper. The backward pass counts as twice the forward pass, so a training
step costs three forward passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

TRAINING_PASSES = 3  # forward, input gradient, weight gradient
PAPER_RULE = "the paper's rule"

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)
_ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus),
    *(nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.Softmax, nn.LogSoftmax),
)
_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_ADAPTIVE = (
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
_FREE = (
    *(nn.Flatten, nn.Unflatten, nn.Identity, nn.ZeroPad1d, nn.ZeroPad2d, nn.PixelShuffle, nn.Embedding),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout),
)


@dataclass(frozen=True)
class LayerCost:
    """One product layer: how many weights it has and at how many positions each of them is used."""

    name: str
    weights: int
    positions: int
    shared: bool = False  # its weight is that of a layer before it


@dataclass(frozen=True)
class FlopRule:
    """The cost of a model's forward pass on one sample (an image, a sequence), as a function of its nonzero weights.

    `rule` says in words how it was counted.
    """

    layers: tuple[LayerCost, ...]
    fixed: int  # bias, normalisation, activations, pooling, attention: the same for dense and sparse models
    rule: str = PAPER_RULE

    @classmethod
    def of(cls, model: nn.Module, example: Tensor, strict: bool = True) -> FlopRule:
        """Runs `model` once on `example` (an input batch of size 1) and notes every layer's shapes.

        `strict` raises TypeError for a module that the rule does not know, so that nothing is left out silently. Not
        strict is for models of strangers: products outside of known layers, attention's among them, are counted by
        torch's FlopCounterMode and stay the same however sparse the model is; other work of unknown modules is left
        out, and `rule` names them.
        """
        watch = _Watch(model)
        fastpath = torch.backends.mha.get_fastpath_enabled()
        training = model.training
        try:
            torch.backends.mha.set_fastpath_enabled(False)  # it would hide layers from hooks and counter
            # the math backend computes attention by products that the counter sees, on every device
            with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                model.eval()(example)
        finally:
            torch.backends.mha.set_fastpath_enabled(fastpath)
            model.train(training)
            watch.remove()
        unknown = watch.unknown()
        if strict and unknown:
            name, module = next(iter(unknown.items()))
            raise TypeError(f"FlopRule: no rule for layer {name!r} of type {type(module).__name__}")
        counted = cls(tuple(watch.layers.values()), watch.fixed)
        if strict:
            return counted
        products = sum(2 * layer.weights * layer.positions for layer in counted.layers)
        others = max(0, counter.get_total_flops() - products - watch.known_products)
        rule = f"{PAPER_RULE}, and torch's FlopCounterMode for products outside of its layers"
        if kinds := sorted({type(module).__name__ for module in unknown.values()}):
            rule += f"; other work of {', '.join(kinds)} is left out"
        return replace(counted, fixed=counted.fixed + others, rule=rule)

    @property
    def weights(self) -> int:
        """Weights of all layers; one that layers share counts once."""
        return self.kept({layer.name: layer.weights for layer in self.layers})

    def kept(self, nonzeros: dict[str, int]) -> int:
        """How many of `weights` are nonzero, where each layer has `nonzeros[layer]` of them."""
        return sum(nonzeros[layer.name] for layer in self.layers if not layer.shared)

    def sparsity(self, nonzeros: dict[str, int]) -> float:
        """The fraction of `weights` that is zero, where each layer keeps `nonzeros[layer]` of them."""
        return 1 - self.kept(nonzeros) / self.weights

    @property
    def dense_forward(self) -> int:
        """FLOPs of one sample through the model with every weight nonzero."""
        return self.forward({layer.name: layer.weights for layer in self.layers})

    def forward(self, nonzeros: dict[str, int]) -> int:
        """FLOPs of one sample through the model that keeps `nonzeros[layer]` weights in each layer."""
        return self.fixed + sum(2 * nonzeros[layer.name] * layer.positions for layer in self.layers)

    def nonzeros(self, model: nn.Module) -> dict[str, int]:
        """Nonzero weights in each product layer of `model`."""
        modules = dict(model.named_modules())
        return {layer.name: int(torch.count_nonzero(modules[layer.name].weight)) for layer in self.layers}


class _Watch:
    """Hooks that note what each module computes while the model runs once."""

    def __init__(self, model: nn.Module) -> None:
        self.layers: dict[str, LayerCost] = {}
        self.fixed = 0
        self.known_products = 0  # FLOPs inside `fixed` that a counter of products sees as well
        self._unknown: dict[str, nn.Module] = {}
        self._owners: dict[Tensor, str] = {}  # the first layer of each weight
        self._handles = []
        for name, module in model.named_modules():
            leaf = not any(True for _ in module.children())
            if leaf or hasattr(module, "fixed_flops"):
                # first of all, so that what other hooks make of the output isn't seen here
                self._handles.append(module.register_forward_hook(self._hook(name), prepend=True, with_kwargs=True))
            elif next(module.parameters(recurse=False), None) is not None:
                self._unknown[name] = module  # computes with parameters of its own, as MultiheadAttention does

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def unknown(self) -> dict[str, nn.Module]:
        """The modules that no rule covers, by name."""
        return self._unknown

    def _hook(self, name: str):
        # the example is a batch of one, so all elements are this sample's, whichever dimension the batch is
        def hook(module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            inputs = (*args, *keywords.values())
            first = keywords.get("input", inputs[0] if inputs else None)
            if hasattr(module, "fixed_flops"):
                flops = module.fixed_flops(inputs, output)
                self.fixed += flops
                self.known_products += flops
            elif (channels := _output_channels(module)) is not None:
                transposed = isinstance(module, _TRANSPOSED)
                positions = first.numel() // module.in_channels if transposed else output.numel() // channels
                before = self.layers.get(name)  # a layer may be used more than once
                positions += before.positions if before else 0
                shared = self._owners.setdefault(module.weight, name) != name
                self.layers[name] = LayerCost(name, module.weight.numel(), positions, shared)
                self.fixed += output.numel() if module.bias is not None else 0
            elif isinstance(module, _NORMS):
                self.fixed += 2 * first.numel()
            elif isinstance(module, _ACTIVATIONS):
                self.fixed += first.numel()
            elif isinstance(module, (*_POOLS, *_ADAPTIVE)):
                values = output[0] if isinstance(output, tuple) else output
                self.fixed += _window(module, first, values) * values.numel()
            elif not isinstance(module, _FREE):
                self._unknown[name] = module

        return hook


def _output_channels(module: nn.Module) -> int | None:
    """Outputs per position of a layer that is a product with its `weight`; None if it is none."""
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, (*_CONVS, *_TRANSPOSED)):
        return module.out_channels
    if type(module).__name__ == "Conv1D" and isinstance(getattr(module, "nf", None), int):
        return module.nf  # transformers' Linear with a transposed weight
    return None


def _window(module: nn.Module, inputs: Tensor, output: Tensor) -> int:
    if isinstance(module, _ADAPTIVE):
        return prod(-(-i // o) for i, o in zip(inputs.shape, output.shape, strict=True))
    spatial = next(i % 3 + 1 for i, kind in enumerate(_POOLS) if isinstance(module, kind))
    size: int | Sequence[int] = module.kernel_size
    if isinstance(size, Sequence) and len(size) == spatial:
        return prod(size)
    return (size if isinstance(size, int) else size[0]) ** spatial
