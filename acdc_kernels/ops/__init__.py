"""The ops: each in its own room, with one specification (``reference``) that every backend is held to."""

from .. import _native
from ._registry import register_triton
from .magnitude_histogram import magnitude_histogram
from .mask_bits import apply_mask_, pack_mask, unpack_mask
from .masked_adamw import masked_adamw_
from .masked_sgd import masked_sgd_
from .sparse_linear import sparse_linear
from .topk_mask import topk_mask, topk_mask_with_nan_count
from .values import build_topology, compress, decompress

__all__ = [
    "apply_mask_",
    "build_topology",
    "compress",
    "decompress",
    "magnitude_histogram",
    "masked_adamw_",
    "masked_sgd_",
    "pack_mask",
    "sparse_linear",
    "topk_mask",
    "topk_mask_with_nan_count",
    "unpack_mask",
]

_native.load()
register_triton()
