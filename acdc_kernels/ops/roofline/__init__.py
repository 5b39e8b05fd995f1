"""The machine's own limits: loops that move the same bytes as the real kernels and do next to nothing else.

``roofline_read`` is the floor of anything that must look at every weight once (top-k); ``roofline_update_`` moves what
a momentum update moves. They exist for ``acdc-kernels bench``; no training code calls them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...formats.mask_bits import check_bits
from . import contract


def _check(name: str, tensors: Sequence[Tensor], like: Sequence[Tensor]) -> None:
    if len(tensors) != len(like):
        raise ValueError(f"{name} must have one entry a tensor ({len(like)}), got {len(tensors)}")
    for i, (tensor, first) in enumerate(zip(tensors, like, strict=True)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}[{i}] must be a tensor, got {type(tensor).__name__}")
        if not tensor.is_contiguous():
            raise ValueError(
                f"{name}[{i}] must be contiguous, got shape {list(tensor.shape)}, strides {tensor.stride()}"
            )
        if tensor.shape != first.shape or tensor.dtype != first.dtype or tensor.device != like[0].device:
            raise ValueError(
                f"{name}[{i}] must be {first.dtype} {list(first.shape)} on {like[0].device},"
                f" got {tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            )


def roofline_read(tensors: Sequence[Tensor]) -> Tensor:
    """The largest byte of the tensors' memory: reads every byte once and writes nothing.

    Args:
        tensors: any dtype, contiguous, on one device; empty tensors count as 0.

    Returns:
        uint8, no dimensions.

    Raises:
        TypeError, ValueError: an empty list, a tensor that is not contiguous, mixed devices.
    """
    tensors = list(tensors)
    if not tensors:
        raise ValueError("roofline_read: tensors must have at least one tensor, got an empty list")
    _check("roofline_read: tensors", tensors, tensors)
    return contract.roofline_read_op(tensors)


@torch.no_grad()
def roofline_update_(
    params: Sequence[Tensor], grads: Sequence[Tensor], buffers: Sequence[Tensor], masks: Sequence[Tensor] = ()
) -> None:
    r"""The traffic of a momentum update (three reads, two writes, mask bits) with the least arithmetic that needs it.

    .. math:: b \leftarrow m \odot (b + g) \qquad p \leftarrow m \odot (p - b)

    Args:
        params, buffers: float32, contiguous, on one device; written to.
        grads: float32, of the same shapes; only read.
        masks: for each tensor its bits, uint8 ``[(n + 7) // 8]``; or empty: nothing is masked and no bits are read.

    Raises:
        TypeError, ValueError: lists of different lengths, other dtypes, shapes or devices, a mask of the wrong length.
            Nothing was changed then.
    """
    params, grads, buffers, masks = list(params), list(grads), list(buffers), list(masks)
    if not params:
        raise ValueError("roofline_update_: params must have at least one tensor, got an empty list")
    _check("roofline_update_: params", params, params)
    for i, param in enumerate(params):
        if param.dtype != torch.float32:
            raise TypeError(f"roofline_update_: params[{i}] must be float32, got {param.dtype}")
    _check("roofline_update_: grads", grads, params)
    _check("roofline_update_: buffers", buffers, params)
    if masks and len(masks) != len(params):
        raise ValueError(
            f"roofline_update_: masks must be empty or have one entry a tensor ({len(params)}), got {len(masks)}"
        )
    for i, bits in enumerate(masks):
        check_bits(f"roofline_update_: masks[{i}]", bits, params[i].numel(), params[i].device)
    contract.roofline_update_op(params, grads, buffers, masks)
