"""What ``roofline_read`` and ``roofline_update_`` mean, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..mask_bits.reference import unpack_mask


def roofline_read(tensors: list[Tensor]) -> Tensor:
    zero = tensors[0].new_zeros((1,), dtype=torch.uint8)
    return torch.stack([torch.cat((zero, t.detach().reshape(-1).view(torch.uint8))).max() for t in tensors]).max()


def roofline_update_(params: list[Tensor], grads: list[Tensor], buffers: list[Tensor], masks: list[Tensor]) -> None:
    for i, (param, grad, buffer) in enumerate(zip(params, grads, buffers, strict=True)):
        buffer.add_(grad)
        param.sub_(buffer)
        if masks:
            masked = ~unpack_mask(masks[i], list(param.shape))
            buffer.masked_fill_(masked, 0.0)
            param.masked_fill_(masked, 0.0)
