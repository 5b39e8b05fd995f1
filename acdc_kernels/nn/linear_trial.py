"""What the plan times of a linear layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.functional import linear

from ..formats.bundles import BLOCKS_4X1
from ..formats.topology import Topology
from ..ops._gradients import below_autograd
from ..ops.sparse_linear.contract import sparse_linear_backward_op, sparse_linear_op
from ..ops.sparse_linear.reference import padded
from ..ops.values.contract import gather_values_op, scatter_values_op
from .linear_passes import linear_forward
from .product import (
    DENSE,
    FORWARD,
    FP16,
    INPUT_GRADIENT,
    PRODUCTS,
    SPARSE,
    WEIGHT_GRADIENT,
    Observation,
    Product,
    Work,
)
from .running import Run

__all__ = ["LinearTrial"]


class LinearTrial:
    """A linear layer under its mask with ``samples`` rows of input, as the plan sees it (``product.Trial``).

    product: makes the one that ``step`` runs. weight [rows, cols], of which ``kept`` may differ from zero.
    ``topology()`` is asked for when a kernel is to be run.
    """

    def __init__(
        self,
        product: Callable[[Parameter], Product],
        weight: Tensor,
        bias: Tensor | None,
        kept: int,
        format: str,
        seen: Observation,
        topology: Callable[[], Topology],
        fp16: bool = False,
    ) -> None:
        self._weight, self._bias = weight.detach(), None if bias is None else bias.detach()
        self._product, self._topology = product, topology
        self.rows, self.cols = weight.shape
        self.kept, self.format, self.samples, self.fp16 = kept, format, seen.samples, fp16
        self.computed = PRODUCTS if seen.input_gradient else (FORWARD, WEIGHT_GRADIENT)
        self._tensors: tuple[Tensor, Tensor] | None = None

    @property
    def key(self) -> str:
        numel = self.rows * self.cols
        # an eighth of an octave: 9% of the density
        density = round(8 * math.log2(self.kept / numel)) if self.kept else "none"
        given = "+bias" * (self._bias is not None) + "+input gradient" * (INPUT_GRADIENT in self.computed)
        strides = "" if self._weight.is_contiguous() else f" strides {self._weight.stride()}"
        return f"linear {self.rows}x{self.cols}{given}{strides} n={self.samples} {self.format} density={density}/8"

    def kernels(self, product: str) -> tuple[str, ...]:
        return (DENSE, SPARSE, FP16) if product == FORWARD and self.fp16 else (DENSE, SPARSE)

    def work(self, product: str, kernel: str) -> Work:
        n, weights = self.samples, self.rows * self.cols
        moved = 4 * n * (self.rows + self.cols)
        if kernel == DENSE:
            return Work("dense", 2 * n * weights, moved + 4 * weights)
        flops = 2 * padded(n) * self.kept
        # Packing and unpacking; values and offsets; then what gathering and scattering read and write.
        moved = 2 * moved + 6 * self.kept
        moved += {FORWARD: 12 * self.kept, INPUT_GRADIENT: 0, WEIGHT_GRADIENT: 4 * weights + 8 * self.kept}[product]
        kind = "sparse blocks" if self.format == BLOCKS_4X1 else "sparse"
        return Work(f"{kind} fp16" if kernel == FP16 else kind, flops, moved)

    def run(self, product: str, kernel: str, forward: str) -> Callable[[], object]:
        compute = self._dense(product) if kernel == DENSE else self._sparse(product, kernel, forward)

        def run() -> object:
            with below_autograd():
                return compute()

        return run

    def _dense(self, product: str) -> Callable[[], object]:
        x, grad = self._data()
        weight, bias = self._weight, self._bias
        return {
            FORWARD: lambda: linear(x, weight, bias),
            INPUT_GRADIENT: lambda: grad @ weight,
            WEIGHT_GRADIENT: lambda: grad.t() @ x,
        }[product]

    def _sparse(self, product: str, kernel: str, forward: str) -> Callable[[], object]:
        x, grad = self._data()
        weight, bias = self._weight, self._bias
        run = Run.of(self._topology(), {**dict.fromkeys(PRODUCTS, SPARSE), FORWARD: kernel})
        where = run.where
        if product == FORWARD:
            return lambda: linear_forward(run, x, weight, bias, True, True)
        values = gather_values_op(weight, *where)
        if product == INPUT_GRADIENT and forward == DENSE:  # it has the values gathered for itself
            return lambda: sparse_linear_backward_op(
                grad, grad, False, gather_values_op(weight, *where), *where, True, False
            )
        if product == INPUT_GRADIENT:
            return lambda: sparse_linear_backward_op(grad, grad, False, values, *where, True, False)
        packed = forward != DENSE
        source = sparse_linear_op(x, values, *where, None, True, False)[1] if packed else x
        return lambda: scatter_values_op(
            sparse_linear_backward_op(grad, source, packed, values, *where, False, True)[1], *where
        )

    def step(self, chosen: Mapping[str, str]) -> Callable[[], object]:
        x, grad = self._data()
        x = x.clone().requires_grad_(INPUT_GRADIENT in self.computed)
        layer = nn.Linear(self.cols, self.rows, bias=False, device="meta")
        layer.weight = weight = Parameter(self._weight)
        layer.bias = bias = None if self._bias is None else Parameter(self._bias)
        wanted = [t for t in (x, weight, bias) if t is not None and t.requires_grad]
        compute: Callable[..., Tensor] = nn.Linear.forward
        if any(kernel != DENSE for kernel in chosen.values()):
            compute = product = self._product(weight)
            product.start(self._topology(), {**dict.fromkeys(PRODUCTS, DENSE), **chosen}, 0, None)
            product.weight_is_masked()  # whatever it holds, this is about time

        def step() -> object:
            return torch.autograd.grad(compute(layer, x), wanted, grad)

        return step

    def _data(self) -> tuple[Tensor, Tensor]:
        """Input and gradient of the output, of no use but to take time over; not from the global generator."""
        if self._tensors is None:
            kind = {"generator": torch.Generator("cpu").manual_seed(0), "dtype": torch.float32, "device": "cpu"}
            self._tensors = tuple(torch.rand((self.samples, width), **kind) for width in (self.cols, self.rows))
        return self._tensors
