"""The forward of a linear layer with a 2:4 weight, by torch's cuSPARSELt kernels. They wait for nothing."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["DTYPES", "SAMPLES", "SIDES", "compress_24", "linear_24"]

DTYPES = (torch.bfloat16, torch.float16)
SAMPLES, SIDES = 8, 16  # what numbers of samples, and of rows and columns of the weight, are multiples of


def compress_24(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight as the kernels take it: kept weights and where they are; of every four at most two are not zero."""
    return torch._cslt_compress(weight.to(dtype).contiguous())


def linear_24(x: Tensor, compressed: Tensor, bias: Tensor | None, rows: int) -> Tensor:
    samples = x.reshape(-1, x.shape[-1]).contiguous()
    y = torch._cslt_sparse_mm(compressed, samples.t(), bias=bias, transpose_result=True)
    return y.view(*x.shape[:-1], rows)
