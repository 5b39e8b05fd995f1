"""The optimizer that a configuration names."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from ..optim import MaskedAdamW, MaskedSGD
from .models import parameter_groups
from .presets import RunConfig


def build_optimizer(config: RunConfig, model: nn.Module) -> Optimizer:
    """``MaskedSGD`` with Nesterov momentum, or ``MaskedAdamW`` with torch's betas, over `model`'s parameters."""
    groups = parameter_groups(model, config.weight_decay)
    if config.optimizer == "sgd":
        return MaskedSGD(groups, lr=config.lr, momentum=config.momentum, nesterov=True)
    return MaskedAdamW(groups, lr=config.lr)
