"""Cases of ``masked_adamw_``: every option of torch.optim.AdamW; shapes, layouts and masks as for ``masked_sgd_``."""

from __future__ import annotations

from ..masked_sgd.cases import LAYOUTS, MASKS, SHAPES

__all__ = ["LAYOUTS", "MASKS", "OPTIONS", "SHAPES"]

OPTIONS: dict[str, dict[str, float | bool]] = {
    "default": {"lr": 0.01},
    "no_decay": {"lr": 0.01, "weight_decay": 0.0},
    "strong_decay": {"lr": 0.1, "weight_decay": 0.5},
    "amsgrad": {"lr": 0.01, "amsgrad": True},
    "maximize": {"lr": 0.01, "maximize": True},
    "short_memory": {"lr": 0.01, "beta1": 0.3, "beta2": 0.4},  # the interpolation starts from its other end
    "no_memory": {"lr": 0.01, "beta1": 0.0, "beta2": 0.0},
    "large_eps": {"lr": 0.01, "eps": 1.0},
    "no_learning": {"lr": 0.0, "amsgrad": True},
    "all": {"lr": 0.1, "beta1": 0.8, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.1, "amsgrad": True, "maximize": True},
}
