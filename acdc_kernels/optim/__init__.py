"""Drop-in optimizers that keep masked weights and their state at exactly +0.0."""

from .masked_adamw import MaskedAdamW
from .masked_sgd import MaskedSGD

__all__ = ["MaskedAdamW", "MaskedSGD"]
