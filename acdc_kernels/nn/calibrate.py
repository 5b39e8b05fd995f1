"""Batch normalisation's running statistics, measured anew."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

__all__ = ["recalibrate"]


def recalibrate(model: nn.Module, loader: Iterable[Any]) -> int:
    """Replaces the running mean and variance of every batch normalisation by their averages over ``loader``.

    The average gives each batch the same weight, as ``torch.optim.swa_utils.update_bn``, which does the work. Batches
    are inputs, or tuples and lists that begin with them; they are moved to the model's device. The model runs in
    training mode without gradients, and returns to the mode it had.

    Returns how many were measured; one that the model doesn't run keeps what it has, and without any the loader isn't
    read. Raises ValueError for an empty loader; then, and when the model raises, all statistics are what they were.
    """
    everyone = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    layers = [layer for layer in everyone if layer.track_running_stats]
    if not layers:
        return 0
    modes = {m: m.training for m in model.modules()}
    momenta = [layer.momentum for layer in everyone]
    before = [[buffer.clone() for buffer in layer.buffers()] for layer in layers]
    device = next((p.device for p in model.parameters()), None)
    measured: list[bool] = [False] * len(layers)
    batches = 0

    def counted() -> Iterator[Any]:
        nonlocal batches
        for batch in loader:
            batches += 1
            yield batch

    try:
        update_bn(counted(), model, device)
        measured = [int(layer.num_batches_tracked) > 0 for layer in layers]
    finally:
        for layer, momentum in zip(everyone, momenta, strict=True):
            layer.momentum = momentum
        for layer, buffers, new in zip(layers, before, measured, strict=True):
            for buffer, old in zip(layer.buffers(), buffers, strict=True) if not new else ():
                buffer.copy_(old)
        for module, training in modes.items():
            module.training = training
    if batches == 0:
        raise ValueError("recalibrate: loader must have at least one batch, got none")
    return sum(measured)
