"""Which product can stand in which kind of layer: a new kind of sparse layer adds a row."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ..formats.blocks import block_sides
from .block_linear import BlockProduct
from .product import Product
from .sparse_linear import LinearProduct

__all__ = ["product_type"]


def _large_blocks(pattern: str, device_type: str) -> bool:
    return block_sides(pattern) is not None


def _any(pattern: str, device_type: str) -> bool:
    return True


_TYPES: tuple[tuple[type[nn.Module], Callable[[str, str], bool], type[Product]], ...] = (
    (nn.Linear, _large_blocks, BlockProduct),
    (nn.Linear, _any, LinearProduct),
)


def product_type(layer: nn.Module, pattern: str = "unstructured", device_type: str = "cpu") -> type[Product] | None:
    """The kind of product for a wrapped layer and a pattern there; None if its products are always dense."""
    return next(
        (product for kind, takes, product in _TYPES if isinstance(layer, kind) and takes(pattern, device_type)), None
    )
