"""Kept weights and their topology: out of a dense weight and its mask once a phase, and of the weight each step."""

from __future__ import annotations

import operator

import torch
from torch import Tensor

from ...formats.blocks import BLOCKS, SIDES, block_sides, build_index, torn_block
from ...formats.bundles import BLOCKS_4X1, FORMATS, LARGEST_KEPT, choose_meta
from ...formats.mask_bits import check_bits, count_bits
from ...formats.topology import Topology
from .._topology import check_backward_alone, check_tensor, check_topology, check_values
from ..dtypes import FLOAT_DTYPES
from ..mask_bits import unpack_mask
from . import contract


def _size(name: str, value: object) -> int:
    try:
        size = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"build_topology: {name} must be an int, got {type(value).__name__}") from None
    if size < 0:
        raise ValueError(f"build_topology: {name} must be at least 0, got {size}")
    return size


def _check_blocks(op: str, bits: Tensor, rows: int, cols: int) -> None:
    if rows % 4:
        raise ValueError(f"{op}: rows must be a multiple of 4 with pattern 'block:4x1', got {rows}")
    whole = cols % 8 == 0  # then the bits of a row are bytes of its own
    groups = bits.view(rows // 4, 4, cols // 8) if whole else unpack_mask(bits, (rows // 4, 4, cols))
    if not bool((groups[:, 1:] == groups[:, :1]).all()):
        group = int((groups[:, 1:] != groups[:, :1]).flatten(1).any(1).nonzero()[0])
        raise ValueError(
            f"{op}: bits must keep whole blocks of 4 rows and 1 column with pattern 'block:4x1',"
            f" got rows {4 * group} to {4 * group + 3} that differ"
        )


def _check_large_blocks(op: str, bits: Tensor, rows: int, cols: int, pattern: str, r: int, c: int) -> None:
    for name, size, side in (("rows", rows, r), ("cols", cols, c)):
        if size % side:
            raise ValueError(f"{op}: {name} must be a multiple of {side} with pattern {pattern!r}, got {size}")
    if (torn := torn_block(bits, rows, cols, r, c)) is not None:
        raise ValueError(
            f"{op}: bits must keep whole blocks of {r} rows and {c} columns with pattern {pattern!r}, got a part of the"
            f" block at row {torn[0] * r} and column {torn[1] * c}"
        )


def _format(op: str, pattern: object) -> str:
    if not isinstance(pattern, str):
        raise TypeError(f"{op}: pattern must be a str, got {type(pattern).__name__}")
    if pattern in FORMATS:
        return FORMATS[pattern]
    if block_sides(pattern) is None:
        sides = ", ".join(map(str, SIDES[:-1]))
        raise ValueError(
            f"{op}: pattern must be {', '.join(map(repr, FORMATS))} or 'block:RxC' with R and C of {sides} or"
            f" {SIDES[-1]}, got {pattern!r}"
        )
    return BLOCKS


def build_topology(bits: Tensor, rows: int, cols: int, pattern: str = "unstructured") -> Topology:
    """The topology of the weight of a linear layer, ``[rows, cols]``, under a mask.

    Counts the kept weights on the host, so that no shape depends on data later; on a GPU that is what waits for the
    device, while the index is built there. Where the index lies, in which order and why:
    :mod:`acdc_kernels.formats.bundles`, and :mod:`acdc_kernels.formats.blocks` for large blocks.

    Args:
        bits: the mask, uint8 ``[(rows * cols + 7) // 8]``. The topology keeps it, not a copy.
        rows, cols: of the weight: outputs and inputs of the layer.
        pattern: ``"unstructured"``; or, if the mask keeps whole blocks, ``"block:4x1"`` or ``"block:RxC"`` with R and C
            of 32, 64 or 128.

    Returns:
        The topology; its index is on the device of ``bits``.

    Raises:
        TypeError, ValueError: a mask of another length or dtype, one without data (meta), 2**31 kept weights or more,
            another pattern, blocks that the mask doesn't keep or prune as a whole, or that don't divide the weight.
    """
    return _build("build_topology", bits, _size("rows", rows), _size("cols", cols), pattern)


@torch.no_grad()
def _build(op: str, bits: Tensor, rows: int, cols: int, pattern: str) -> Topology:
    if torch.compiler.is_compiling():
        torch._dynamo.graph_break(msg="a topology is built on the host; in a full graph, pass compress a topology")
    format = _format(op, pattern)
    check_bits(f"{op}: bits", bits, rows * cols, wait=True)
    if bits.is_meta:
        raise ValueError(f"{op}: bits must hold a mask, got a tensor on meta")
    if format == BLOCKS_4X1:
        _check_blocks(op, bits, rows, cols)
    if format == BLOCKS:
        sides = block_sides(pattern)
        _check_large_blocks(op, bits, rows, cols, pattern, *sides)
    kept = count_bits(bits)
    if kept > LARGEST_KEPT:
        raise ValueError(f"{op}: bits must keep at most {LARGEST_KEPT} weights, got {kept}")
    if format == BLOCKS:
        return Topology(format, (rows, cols, kept, *sides), (bits, *build_index(bits, rows, cols, *sides)))
    meta = choose_meta(rows, cols, kept)
    return Topology(format, meta, (bits, *contract.build_bundles_op(bits, meta, format)))


def compress(weight: Tensor, bits: Tensor | Topology, pattern: str = "unstructured") -> tuple[Tensor, Topology]:
    r"""The kept weights of a linear layer, and where they belong.

    .. math:: \text{values}_i = W_{r_i, c_i}

    with :math:`(r_i, c_i)` the i-th kept position in the topology's order. Differentiable in ``weight``: its gradient
    is dense, with +0.0 where nothing is kept.

    On a GPU a mask is counted and checked on the host, which waits for the device; with a topology nothing waits, and
    a CUDA graph can capture it. What no check on the host sees then (a mask that a compiled or captured graph, or
    inference mode, finds changed) gives NaN for every run of 4096 weights of which another number is kept; large blocks
    go by the index alone.

    Args:
        weight: ``[outputs, inputs]``, float32, float64, bfloat16 or float16, any strides.
        bits: the mask, uint8 ``[(n + 7) // 8]``, which the topology keeps without copying; or a topology that
            ``compress`` returned for a weight of this shape. Then only values are gathered, which
            ``torch.compile(fullgraph=True)`` can trace: counting a mask needs the host.
        pattern: ``"unstructured"``, ``"block:4x1"``, or ``"block:RxC"`` with R and C of 32, 64 or 128: how the mask was
            made; a topology knows its own.

    Returns:
        values: ``[kept]`` (with blocks ``[kept / RC, R, C]``), contiguous, of the weight's dtype.
        topology: the same object if one was given.

    Raises:
        TypeError, ValueError: another number of dimensions or dtype, a mask of another length, mixed devices, another
            pattern, blocks that are not whole, 2**31 kept weights or more; a topology of another shape, or one whose
            mask was changed in place since.
        RuntimeError: under a transform of ``torch.func``, or with a tangent of forward mode.
    """
    if not isinstance(weight, Tensor):
        raise TypeError(f"compress: weight must be a tensor, got {type(weight).__name__}")
    check_backward_alone("compress", weight)
    check_tensor("compress", "weight", weight, FLOAT_DTYPES, weight.device)
    if weight.dim() != 2:
        raise ValueError(f"compress: weight must have 2 dimensions (of a linear layer), got shape {list(weight.shape)}")
    if isinstance(bits, Topology):
        topology = bits
        check_topology("compress", topology)
        if pattern != "unstructured":
            format = _format("compress", pattern)
            if format != topology.format or (format == BLOCKS and block_sides(pattern) != topology.block):
                raise ValueError(f"compress: pattern must be the topology's ({topology.kind}), got {pattern!r}")
        if tuple(weight.shape) != topology.shape:
            raise ValueError(
                f"compress: weight must have shape {list(topology.shape)} as the topology, got {list(weight.shape)}"
            )
        check_tensor("compress", "weight", weight, FLOAT_DTYPES, topology.bits.device)
    else:
        check_bits("compress: bits", bits, weight.numel(), weight.device)
        topology = _build("compress", bits, weight.shape[0], weight.shape[1], pattern)
    if topology.format == BLOCKS:
        return contract.gather_blocks_op(weight, topology.index, topology.meta, weight.dtype), topology
    values = contract.gather_values_op(weight, topology.index, topology.meta, topology.format)
    return values.view(topology.values_shape), topology


def decompress(values: Tensor, topology: Topology) -> Tensor:
    r"""The dense weight of a linear layer; the inverse of :func:`compress`.

    .. math:: W_{r_i, c_i} = \text{values}_i, \quad \text{+0.0 elsewhere}

    Differentiable in ``values``: their gradient is the weight's, gathered. On a GPU nothing waits for the device, as in
    :func:`compress` with a topology: kept weights of a run of 4096 whose number has changed are NaN.

    Args:
        values: as :func:`compress` returns them, or flat; float32, float64, bfloat16 or float16, any strides.
        topology: the one that these values were made with: those of another are in another order.

    Returns:
        ``[outputs, inputs]``, contiguous, of the values' dtype.

    Raises:
        TypeError, ValueError: values of another shape, dtype or device; a topology whose mask was changed in place.
        RuntimeError: under a transform of ``torch.func``, or with a tangent of forward mode.
    """
    check_topology("decompress", topology)
    check_backward_alone("decompress", values)
    check_values("decompress", values, topology, FLOAT_DTYPES)
    flat = values.reshape(-1).contiguous()
    if topology.format == BLOCKS:
        return contract.scatter_blocks_op(flat, topology.index, topology.meta)
    return contract.scatter_values_op(flat, topology.index, topology.meta, topology.format)
