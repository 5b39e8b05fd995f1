"""From a weight and its mask to values and a topology, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from ...formats.bundles import BLOCKS_4X1, FORMATS, LARGEST_KEPT, Topology, choose_meta
from ...formats.mask_bits import check_bits
from ...policy.patterns import parse_pattern
from ..dtypes import FLOAT_DTYPES
from ..mask_bits import contract as mask_bits
from . import contract


def count_bits(bits: Tensor) -> int:
    """How many bits are 1, on the host."""
    pairs = bits - ((bits >> 1) & 0x55)
    nibbles = (pairs & 0x33) + ((pairs >> 2) & 0x33)
    return int(((nibbles + (nibbles >> 4)) & 0x0F).sum(dtype=torch.int64))


def build_topology(bits: Tensor, rows: int, cols: int, pattern: str = "unstructured") -> Topology:
    """The topology of a linear layer's weight ``[rows, cols]`` under a mask."""
    op = "build_topology"
    format = FORMATS[pattern]
    check_bits(f"{op}: bits", bits, rows * cols)
    kept = count_bits(bits)
    meta = choose_meta(rows, cols, kept)
    return Topology(format, meta, (bits, *contract.build_bundles_op(bits, meta, format)))


def compress(weight: Tensor, bits: Tensor, pattern: str = "unstructured") -> tuple[Tensor, Topology]:
    """Kept weights and topology."""
    topology = build_topology(bits, weight.shape[0], weight.shape[1], pattern)
    return contract.gather_values_op(weight, topology.index, topology.meta, topology.format), topology


def decompress(values: Tensor, topology: Topology) -> Tensor:
    """The dense weight."""
    return contract.scatter_values_op(values, topology.index, topology.meta, topology.format)
