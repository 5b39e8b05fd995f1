"""A model's layers as the Sparsifier sees them: finding their weights, wrapping them, remembering a dense phase."""

from .calibrate import recalibrate
from .coverage import COVERAGE
from .layers import find_weights
from .products import product_type
from .shards import reshard
from .snapshot import Snapshot, named_tensors
from .wrap import is_wrapped, unwrap, wrap

__all__ = [
    "COVERAGE",
    "Snapshot",
    "find_weights",
    "is_wrapped",
    "named_tensors",
    "product_type",
    "recalibrate",
    "reshard",
    "unwrap",
    "wrap",
]
