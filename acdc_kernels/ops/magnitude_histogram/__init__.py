"""Histograms of weight magnitudes, for selections that no single process can make."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..dtypes import FLOAT_DTYPES
from . import contract


@torch.no_grad()
def magnitude_histogram(weights: Sequence[Tensor], base: Tensor, width: int, shift: int) -> Tensor:
    r"""How many keys lie in each bin of an interval of keys, and how many above it.

    The key of a weight is its bit pattern without the sign as an integer, so that keys are ordered as magnitudes are;
    every NaN has the key just above Inf's. Of the keys in :math:`base_r + [0, 2^{width})`, bin :math:`j` counts those
    with

    .. math:: \lfloor (key - base_r) / 2^{shift} \rfloor = j

    and the last column counts the keys above the interval. Width 0 tells how many equal ``base`` and how many are
    greater.

    Args:
        weights: float32, float64, bfloat16 or float16 tensors, all of one dtype and on one device; any strides.
        base: int64 on the weights' device: ``[1]``, one row for all weights together, or ``[len(weights)]``, a row
            each; values in [0, 2^bits), bits being the dtype's without the sign. They are not read on the host.
        width: bits of the interval, in [0, bits].
        shift: bits that a bin doesn't tell apart, in [width - 12, width] and at least 0.

    Returns:
        int64 ``[len(base), 2^(width - shift) + 1]`` on the weights' device.

    Raises:
        TypeError, ValueError: an empty list, another dtype, mixed dtypes or devices, a base, width or shift that is
            none of these.
    """
    weights = list(weights)
    if not weights:
        raise ValueError("magnitude_histogram: weights must have at least one tensor, got an empty list")
    first = weights[0]
    for i, w in enumerate(weights):
        if not isinstance(w, Tensor) or w.dtype not in FLOAT_DTYPES or w.layout != torch.strided:
            got = f"{w.dtype} ({w.layout})" if isinstance(w, Tensor) else type(w).__name__
            raise TypeError(
                f"magnitude_histogram: weights[{i}] must be a float32, float64, bfloat16 or float16 tensor, got {got}"
            )
        if w.dtype != first.dtype or w.device != first.device:
            raise ValueError(
                f"magnitude_histogram: weights[{i}] must be {first.dtype} on {first.device} as weights[0], "
                f"got {w.dtype} on {w.device}"
            )
    if not isinstance(base, Tensor) or base.dtype != torch.int64 or base.device != first.device:
        got = f"{base.dtype} on {base.device}" if isinstance(base, Tensor) else type(base).__name__
        raise TypeError(f"magnitude_histogram: base must be an int64 tensor on {first.device}, got {got}")
    if base.dim() != 1 or len(base) not in (1, len(weights)):
        raise ValueError(f"magnitude_histogram: base must have shape [1] or [{len(weights)}], got {list(base.shape)}")
    bits = first.dtype.itemsize * 8 - 1
    if not 0 <= width <= bits:
        raise ValueError(f"magnitude_histogram: width must be in [0, {bits}], got {width}")
    least = max(0, width - contract.MOST_BITS)
    if not least <= shift <= width:
        raise ValueError(f"magnitude_histogram: shift must be in [{least}, {width}] with width {width}, got {shift}")
    return contract.magnitude_histogram_op(weights, base.contiguous(), width, shift)
