"""What else computes a sparse linear layer on a CPU: torch's CSR matrices (MKL) and the package `sparseprop`."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import layers

CSR = "torch CSR"
SPARSEPROP = "sparseprop"


def csr(weight: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that CSR is in beta
        return weight.to_sparse_csr()


def csr_forward(weight: Tensor, x: Tensor) -> Callable[[], Tensor]:
    """``W @ x.t()``: its output stays transposed, which is in its favour."""
    sparse = csr(weight)
    return lambda: sparse @ x.t()


def csr_training(weight: Tensor, x: Tensor, grad: Tensor) -> Callable[[], object]:
    """The three products, called one after another for want of a backward that is as fast; outputs stay transposed.

    The transposed weight is a second CSR matrix, made beforehand: a training loop would have to refresh its values.
    """
    sparse, transposed = csr(weight), csr(weight.t().contiguous())

    def call() -> object:
        y = sparse @ x.t()
        grad_x = transposed @ grad.t()
        return y, grad_x, torch.sparse.sampled_addmm(sparse, grad.t(), x, beta=0.0)

    return call


@functools.cache
def sparseprop_layer() -> tuple[Any, str]:
    """(sparseprop's SparseLinear, "") or (None, why it can't be imported)."""
    try:
        from sparseprop.modules import SparseLinear
    except ImportError as error:
        return None, str(error)
    return SparseLinear, ""


def sparseprop_forward(weight: Tensor, x: Tensor) -> Callable[[], Tensor]:
    layer = sparseprop_layer()[0](weight.clone())
    return lambda: layer(x)


def sparseprop_training(weight: Tensor, x: Tensor, grad: Tensor) -> Callable[[], Tensor]:
    """Through its autograd function; the gradient is of its own values, which need no gathering from a dense weight."""
    return layers.training(sparseprop_layer()[0](weight.clone()), x, grad)
