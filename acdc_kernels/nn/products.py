"""Which product can stand in which kind of layer: a new kind of sparse layer adds a row."""

from __future__ import annotations

from torch import nn

from .product import Product
from .sparse_linear import LinearProduct

__all__ = ["product_type"]

_TYPES: tuple[tuple[type[nn.Module], type[Product]], ...] = ((nn.Linear, LinearProduct),)


def product_type(layer: nn.Module) -> type[Product] | None:
    """The kind of product for a wrapped layer; None if its products are always dense."""
    return next((product for kind, product in _TYPES if isinstance(layer, kind)), None)
