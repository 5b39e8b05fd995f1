"""AC/DC sparse training with native kernels: top-k masks, masked optimizers, and the conductor that runs the phases."""

from ._version import __version__
from .checkpoint import load_checkpoint, save_checkpoint
from .formats.topology import Topology
from .ops import compress, decompress, pack_mask, sparse_linear, topk_mask, unpack_mask
from .optim import MaskedAdamW, MaskedSGD
from .policy import schedules
from .sparsifier import Sparsifier

__all__ = [
    "MaskedAdamW",
    "MaskedSGD",
    "Sparsifier",
    "Topology",
    "__version__",
    "compress",
    "decompress",
    "load_checkpoint",
    "pack_mask",
    "save_checkpoint",
    "schedules",
    "sparse_linear",
    "topk_mask",
    "unpack_mask",
]
