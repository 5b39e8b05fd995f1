"""The product of a wrapped ``nn.Linear`` with a 2:4 weight on a GPU: its forward by torch's semi-structured kernels.

The weight is compressed anew in every forward: it is read once more, and nothing of it is kept for the backward, whose
products are dense.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from ..formats.topology import Topology
from ..ops.mask_bits import unpack_mask
from ..ops.sparse_linear import BLOCK_DTYPES
from ..ops.values import count_bits
from .block_linear import BlockProduct
from .block_trial import BlockTrial
from .product import DENSE, FORWARD, INPUT_GRADIENT, SEMI, WEIGHT_GRADIENT, Observation, Work
from .semi_passes import DTYPES, SAMPLES, SIDES, compress_24, linear_24

__all__ = ["PATTERNS", "SemiStructuredProduct", "SemiStructuredTrial"]

PATTERNS = ("2:4", "2:4-transposable")


class SemiStructuredTrial(BlockTrial):
    """As the plan sees it: one sparse kernel, of the forward."""

    @property
    def layout(self) -> str:
        return "2:4"

    def kernels(self, product: str) -> tuple[str, ...]:
        return (DENSE, SEMI) if product == FORWARD else (DENSE,)

    def work(self, product: str, kernel: str) -> Work:
        dense = super().work(product, DENSE)
        if kernel == DENSE:
            return dense
        # Compressing reads the weight and writes what the product reads: half of it, and an eighth of that.
        compressing = self.rows * self.cols * 2 * 9 / 16 * self.dtype.itemsize
        return Work(f"2:4 {self.arithmetic}", dense.flops, dense.moved + compressing)

    def _sparse(self, product: str, kernel: str) -> Callable[[], object]:
        x, _ = self._data()
        weight, bias = self._weight, None if self._bias is None else self._bias.to(self.dtype)
        return lambda: linear_24(x, compress_24(weight, self.dtype), bias, self.rows)


class SemiStructuredProduct(BlockProduct):
    """Computes a wrapped linear layer with a 2:4 weight, in bfloat16 or float16, the forward sparse if so planned.

    It steps aside as ``BlockProduct`` does, and for numbers of samples that are no multiple of 8.
    """

    @staticmethod
    def refusal(layer: nn.Module, weight: Parameter, pattern: str) -> str | None:
        own = type(layer)._own
        if own.forward is not nn.Linear.forward:
            return f"{own.__name__} has a forward of its own"
        if pattern not in PATTERNS:
            return f"no sparse kernels for pattern {pattern!r}, only for {' and '.join(map(repr, PATTERNS))}"
        if weight.dtype not in BLOCK_DTYPES:
            return f"no 2:4 kernels for {weight.dtype}, only for {' and '.join(map(str, DTYPES))}, autocast's too"
        if weight.numel() == 0 or any(side % SIDES for side in weight.shape):
            return f"2:4 kernels take weights with a multiple of {SIDES} rows and columns, got {list(weight.shape)}"
        return None

    @staticmethod
    def missing(fp16: bool, pattern: str = "2:4", device_type: str = "cuda") -> str | None:
        if fp16:
            return f"no half-precision kernels for pattern {pattern!r}"
        if device_type != "cuda":
            return f"no sparse kernels on {device_type} for pattern {pattern!r}"
        if not torch.backends.cusparselt.is_available():
            return "this torch has no 2:4 kernels (cuSPARSELt)"
        if not torch.cuda.is_available():
            return "torch finds no CUDA device"
        major, minor = torch.cuda.get_device_capability()
        return None if major >= 8 else f"2:4 kernels need compute capability 8.0, got {major}.{minor}"

    def unknown(self, product: str, kernel: str, pattern: str) -> str | None:
        return None if (product, kernel) == (FORWARD, SEMI) else f"there is no kernel {kernel!r} here"

    def asked(self) -> Mapping[str, str]:
        return {FORWARD: SEMI, INPUT_GRADIENT: DENSE, WEIGHT_GRADIENT: DENSE}

    def build(self, bits: Tensor, pattern: str) -> Topology:
        """Nothing to walk: the mask, and how many weights it keeps."""
        return Topology("2:4", (*self.weight.shape, count_bits(bits)), (bits,))

    def trial(
        self,
        layer: nn.Module,
        pattern: str,
        bits: Tensor,
        seen: Observation,
        topology: Callable[[], Topology],
        fp16: bool,
    ) -> SemiStructuredTrial:
        meta = (*self.weight.shape, self.kept_of(bits), 1, 1)
        return SemiStructuredTrial(SemiStructuredProduct, self.weight, layer.bias, meta, seen, topology)

    def obstacle(self, x: Tensor, dtype: torch.dtype) -> str | None:
        if dtype not in DTYPES:
            return f"no 2:4 kernels for {dtype}, only for {' and '.join(map(str, DTYPES))}"
        samples = x.numel() // max(x.shape[-1], 1) if x.dim() else 0
        return f"2:4 kernels take a multiple of {SAMPLES} samples, got {samples}" if samples % SAMPLES else None

    def _gathered(self, weight: Tensor) -> Tensor:
        return weight.masked_fill(~unpack_mask(self.run.topology.bits, weight.shape), 0)
