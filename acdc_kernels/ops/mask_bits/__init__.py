"""Mask bits from booleans and back, and masks applied to tensors.

``pack_mask`` and ``unpack_mask`` convert between a boolean tensor and the bits of ``formats.mask_bits``;
``apply_mask_`` writes +0.0 to every masked position of a list of tensors in one call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...formats.mask_bits import check_bits
from ..dtypes import FLOAT_DTYPES
from . import contract


def pack_mask(mask: Tensor) -> Tensor:
    """Bits of a boolean tensor.

    Bit ``i & 7`` of byte ``i >> 3`` is element ``i`` in logical row-major order, as
    ``numpy.packbits(bitorder="little")``.

    Args:
        mask: bool, any shape, any strides; ``n`` elements.

    Returns:
        uint8 ``[(n + 7) // 8]`` on the same device; unused bits of the last byte are 0.

    Raises:
        TypeError: ``mask`` is not a boolean tensor.
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"pack_mask: mask must be a tensor of dtype torch.bool, got {got}")
    return contract.pack_mask_op(mask)


def unpack_mask(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """The boolean tensor of shape ``shape`` whose bits are ``bits``; the inverse of :func:`pack_mask`.

    Args:
        bits: uint8 ``[(n + 7) // 8]`` with ``n`` the product of ``shape``.
        shape: of the result.

    Returns:
        bool, contiguous, on the device of ``bits``; True where the bit is 1.

    Raises:
        TypeError, ValueError: ``bits`` has another dtype or length, or ``shape`` a negative entry.
    """
    if isinstance(shape, int):
        raise TypeError(f"unpack_mask: shape must be a sequence of ints, got the int {shape}")
    shape = list(shape)
    if any(s < 0 for s in shape):
        raise ValueError(f"unpack_mask: shape must have no negative entry, got {shape}")
    check_bits("unpack_mask: bits", bits, math.prod(shape))
    return contract.unpack_mask_op(bits, shape)


@torch.no_grad()
def apply_mask_(tensors: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
    """Write +0.0 to every masked position: ``t[i] = t[i] if bit i of its mask else +0.0``, whatever stood there.

    Args:
        tensors: float32, float64, bfloat16 or float16, any shape and strides; on one device.
        masks: for each tensor its bits, uint8 ``[(n + 7) // 8]``.

    Raises:
        TypeError, ValueError: lists of different lengths, other dtypes, a mask of the wrong length, mixed devices.
            Nothing was changed then.
    """
    tensors, masks = list(tensors), list(masks)
    if len(tensors) != len(masks):
        raise ValueError(f"apply_mask_: masks must have one entry a tensor ({len(tensors)}), got {len(masks)}")
    for i, (tensor, bits) in enumerate(zip(tensors, masks, strict=True)):
        if not isinstance(tensor, Tensor) or tensor.dtype not in FLOAT_DTYPES:
            got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"apply_mask_: tensors[{i}] must be float32, float64, bfloat16 or float16, got {got}")
        if tensor.device != tensors[0].device:
            raise ValueError(
                f"apply_mask_: tensors[{i}] must be on {tensors[0].device} as tensors[0], got {tensor.device}"
            )
        check_bits(f"apply_mask_: masks[{i}]", bits, tensor.numel(), tensor.device)
    if tensors:
        contract.apply_mask_op(tensors, masks)
