"""Mask bits: the kept positions of one parameter, one bit a weight.

Bit ``i & 7`` of byte ``i >> 3`` belongs to logical row-major element ``i``, whatever the strides of the parameter, as
``numpy.packbits(bitorder="little")``. Unused bits of the last byte are 0.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mask_bytes(numel: int) -> int:
    """Bytes of the mask of a parameter with ``numel`` elements."""
    return (numel + 7) // 8


def count_bits(bits: Tensor) -> int:
    """How many weights a mask keeps."""
    ones = torch.tensor([byte.bit_count() for byte in range(256)], device="cpu")
    return int((torch.bincount(bits, minlength=256).cpu() * ones).sum())


def check_bits(where: str, bits: object, numel: int, device: torch.device | None = None, *, wait: bool = False) -> None:
    """Raise unless ``bits`` can be the mask of ``numel`` elements; ``where`` opens the message (``"op: bits"``).

    Reads the last byte on a CPU only: on a GPU that would wait for the device, which ``wait`` allows.
    """
    if not isinstance(bits, Tensor):
        raise TypeError(f"{where} must be a uint8 tensor, got {type(bits).__name__}")
    if bits.dtype != torch.uint8:
        raise TypeError(f"{where} must be of dtype torch.uint8, got {bits.dtype}")
    want = mask_bytes(numel)
    if bits.dim() != 1 or bits.numel() != want:
        raise ValueError(f"{where} must have shape [{want}] ({numel} elements, one bit each), got {list(bits.shape)}")
    if device is not None and bits.device != device:
        raise ValueError(f"{where} must be on {device}, got {bits.device}")
    if not bits.is_contiguous():
        raise ValueError(f"{where} must be contiguous, got stride {bits.stride(0)}")
    used = numel % 8
    readable = bits.device.type == "cpu" or (wait and not bits.is_meta)
    if used and readable and not torch.compiler.is_compiling() and int(bits[-1]) >> used:
        raise ValueError(f"{where} must have zeros in the unused bits of its last byte, got {int(bits[-1]):#010b}")
