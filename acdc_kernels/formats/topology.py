"""A topology: the index that the sparse products of a layer walk, whatever its format."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .blocks import BLOCKS
from .bundles import BLOCKS_4X1, UNSTRUCTURED
from .mask_bits import count_bits

__all__ = ["Topology"]


@dataclass(frozen=True, eq=False, repr=False)
class Topology:
    """The index that the products of one linear layer walk, built once from its mask and never changed.

    format: "bundles" or "bundles-4x1" (meta and index: see :mod:`acdc_kernels.formats.bundles`), or "blocks"
    (:mod:`acdc_kernels.formats.blocks`). A topology is a torch pytree whose leaves are the tensors of ``index``. It
    keeps the mask itself, not a copy: when the mask is changed in place, the topology has outlived it and every
    function that takes it raises. It pickles, but ``torch.load(weights_only=True)`` refuses it: kernels trust an index,
    and a file could forge one. Save weight and mask: ``compress`` makes the same topology, and the same order of
    values, of them again.
    """

    format: str
    meta: tuple[int, ...]
    index: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        if not torch.compiler.is_compiling():
            object.__setattr__(self, "_mask_version", _version(self.index[0]))

    @property
    def rows(self) -> int:
        """Outputs of the layer."""
        return self.meta[0]

    @property
    def cols(self) -> int:
        """Inputs of the layer."""
        return self.meta[1]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight: (rows, cols)."""
        return self.meta[0], self.meta[1]

    @property
    def kept(self) -> int:
        """How many weights are kept: the number of values."""
        return self.meta[2]

    @property
    def density(self) -> float:
        """The share of weights that are kept; 0 for a weight without elements."""
        return self.kept / (self.rows * self.cols) if self.rows * self.cols else 0.0

    @property
    def values_shape(self) -> tuple[int, ...]:
        """Of the values: (kept,), or with blocks of R x C (kept / RC, R, C)."""
        if self.format == UNSTRUCTURED:
            return (self.kept,)
        rows, cols = self.block
        return self.kept // (rows * cols), rows, cols

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns of the blocks that are kept together; (1, 1) without blocks."""
        if self.format == BLOCKS:
            return self.meta[3], self.meta[4]
        return (4, 1) if self.format == BLOCKS_4X1 else (1, 1)

    @property
    def kind(self) -> str:
        """The format, and which blocks: "bundles", "bundles-4x1", "blocks-64x64"."""
        return f"{self.format}-{self.block[0]}x{self.block[1]}" if self.format == BLOCKS else self.format

    @property
    def bits(self) -> Tensor:
        """The mask that this was built from."""
        return self.index[0]

    @property
    def nbytes(self) -> int:
        """Bytes of the index without the mask."""
        return sum(t.numel() * t.element_size() for t in self.index[1:])

    def outlived_mask(self) -> bool:
        """Whether the mask was changed in place since the topology was built.

        A mask made in inference mode counts no changes: of it the number of kept weights is compared, on a CPU; on a
        GPU that would wait for the device. A compiled graph doesn't ask. Where the mask keeps another number of
        weights, gathering and scattering then raise on a CPU and give NaN on a GPU; in format "blocks" they go by the
        index alone.
        """
        if torch.compiler.is_compiling():
            return False
        bits, known = self.bits, getattr(self, "_mask_version", None)
        if known != _version(bits):
            return True
        return known is None and _readable(bits) and count_bits(bits) != self.kept

    def __repr__(self) -> str:
        return f"Topology({self.kind!r}, {list(self.shape)}, kept={self.kept}, nbytes={self.nbytes})"

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (self.index, (self.format, self.meta, self.outlived_mask()))


def _version(bits: object) -> int | None:
    """How often ``bits`` was changed in place; None for what doesn't count that."""
    return bits._version if isinstance(bits, Tensor) and not bits.is_inference() else None


def _readable(bits: object) -> bool:
    """Whether it can be counted without waiting for a device."""
    return type(bits) is Tensor and bits.dtype == torch.uint8 and bits.device.type == "cpu"


def _rebuild(index: Iterable[Tensor], context: tuple[str, tuple[int, ...], bool]) -> Topology:
    topology = Topology(context[0], tuple(context[1]), tuple(index))
    if context[2]:
        object.__setattr__(topology, "_mask_version", -1)  # a copy of what outlived its mask has outlived it too
    return topology


def _flatten(topology: Topology) -> tuple[list[Tensor], tuple[str, tuple[int, ...], bool]]:
    return list(topology.index), (topology.format, topology.meta, topology.outlived_mask())


def _flatten_with_keys(topology: Topology) -> tuple[list[tuple[object, Tensor]], object]:
    leaves, context = _flatten(topology)
    return [(pytree.SequenceKey(i), leaf) for i, leaf in enumerate(leaves)], context


pytree.register_pytree_node(
    Topology,
    _flatten,
    _rebuild,
    serialized_type_name="acdc_kernels.formats.bundles.Topology",
    to_dumpable_context=list,
    from_dumpable_context=lambda context: (context[0], tuple(context[1]), context[2]),
    flatten_with_keys_fn=_flatten_with_keys,
)
