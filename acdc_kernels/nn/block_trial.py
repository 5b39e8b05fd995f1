"""What the plan times of a linear layer under large blocks."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.functional import linear

from ..formats.topology import Topology
from ..ops._gradients import below_autograd
from ..ops.block_linear import configs
from ..ops.block_linear.contract import block_linear_backward_op, block_linear_op
from .block_passes import blocks_for
from .product import (
    DENSE,
    FORWARD,
    INPUT_GRADIENT,
    PRODUCTS,
    SPARSE,
    WEIGHT_GRADIENT,
    Observation,
    Product,
    Work,
    config_of,
    named,
)
from .running import Run

__all__ = ["BlockTrial"]


class BlockTrial:
    """A linear layer with ``samples`` rows of input, whose kept weights are blocks, as the plan sees it.

    product: makes the one that ``step`` runs. meta: of the topology: (rows, cols, kept, R, C). ``topology()`` is asked
    for when a kernel is to be run. It computes in the dtype that was seen (``seen.dtype``), which under autocast is not
    the weight's: casting what a product reads is then part of its time.
    """

    def __init__(
        self,
        product: Callable[[Parameter], Product],
        weight: Tensor,
        bias: Tensor | None,
        meta: Sequence[int],
        seen: Observation,
        topology: Callable[[], Topology],
    ) -> None:
        self._weight, self._bias = weight.detach(), None if bias is None else bias.detach()
        self._product, self._topology = product, topology
        self.meta, self.samples = tuple(meta), seen.samples
        self.rows, self.cols, self.kept = self.meta[:3]
        self.dtype: torch.dtype = getattr(torch, seen.dtype) if seen.dtype else weight.dtype
        self.computed = PRODUCTS if seen.input_gradient else (FORWARD, WEIGHT_GRADIENT)
        self._tensors: tuple[Tensor, Tensor] | None = None

    @property
    def arithmetic(self) -> str:
        """The dtype's name; "tf32" for float32 where matrix units compute it."""
        tf32 = self._weight.is_cuda and torch.backends.cuda.matmul.fp32_precision == "tf32"
        return "tf32" if self.dtype is torch.float32 and tf32 else _name(self.dtype)

    @property
    def key(self) -> str:
        r, c = self.meta[3:]
        blocks = self.kept / (r * c)
        # an eighth of an octave: 9% of the density
        density = round(8 * math.log2(self.kept / (self.rows * self.cols))) if self.kept else "none"
        given = "+bias" * (self._bias is not None) + "+input gradient" * (INPUT_GRADIENT in self.computed)
        strides = "" if self._weight.is_contiguous() else f" strides {self._weight.stride()}"
        of = self.arithmetic + (f" of {_name(self._weight.dtype)}" if self._cast else "")
        few = f" blocks={blocks:g}" if blocks < 64 else ""
        return (
            f"linear {self.rows}x{self.cols}{given}{strides} n={self.samples} {of} blocks-{r}x{c}"
            f" density={density}/8{few}"
        )

    @property
    def _cast(self) -> bool:
        return self.dtype is not self._weight.dtype

    def kernels(self, product: str) -> tuple[str, ...]:
        if not self._weight.is_cuda:
            return DENSE, SPARSE
        properties = torch.cuda.get_device_properties(self._weight.device)
        where = properties.multi_processor_count, (properties.major, properties.minor)
        _, *others = configs.candidates(product, self.arithmetic, self.meta, self.samples, *where)  # the first: default
        return DENSE, SPARSE, *(named(str(config)) for config in others)

    def work(self, product: str, kernel: str) -> Work:
        n, weights, size = self.samples, self.rows * self.cols, self.dtype.itemsize
        moved = size * n * (self.rows + self.cols)
        cast = self._cast * (self._weight.itemsize + size)  # bytes a weight: read in one dtype, written in the other
        if kernel == DENSE:
            moved += weights * (size if product == FORWARD or not self._cast else size + cast)
            return Work(f"dense {self.arithmetic}", 2 * n * weights, moved + weights * cast * (product == FORWARD))
        side, wide = configs.sides(product, self.meta)[0], 128
        if product == WEIGHT_GRADIENT:
            wide = max(self.meta[4], 64)
            moved += self._weight.itemsize * (weights + self.kept)
        else:
            moved += self.kept * (size + cast)
        if config_of(kernel):
            config = configs.parse(config_of(kernel))
            wide = config.depth if product == WEIGHT_GRADIENT else config.samples
        flops = 2 * n * self.kept
        return Work(f"blocks {self.arithmetic}", flops, moved, flops * size * (side + wide) / (2 * side * wide))

    def run(self, product: str, kernel: str, forward: str) -> Callable[[], object]:
        compute = self._dense(product, forward) if kernel == DENSE else self._sparse(product, kernel)

        def run() -> object:
            with below_autograd():
                return compute()

        return run

    def _dense(self, product: str, forward: str) -> Callable[[], object]:
        x, grad = self._data()
        weight, bias = self._weight, self._bias
        bias = None if bias is None else bias.to(self.dtype)
        low = weight.to(self.dtype) if forward == DENSE else weight  # a dense forward has left its cast
        return {
            FORWARD: lambda: linear(x, weight.to(x.dtype), bias),
            INPUT_GRADIENT: lambda: grad @ low.to(grad.dtype),
            WEIGHT_GRADIENT: lambda: (grad.t() @ x).to(weight.dtype),
        }[product]

    def _sparse(self, product: str, kernel: str) -> Callable[[], object]:
        x, grad = self._data()
        weight, bias, config = self._weight, self._bias, config_of(kernel)
        bias = None if bias is None else bias.to(self.dtype)
        run = Run.of(self._topology(), dict.fromkeys(PRODUCTS, SPARSE))
        where = run.where[:2]
        if product == FORWARD:
            return lambda: block_linear_op(x, blocks_for(run, weight, x.dtype), *where, bias, config)
        none, dtype = x.new_empty(0), weight.dtype
        if product == INPUT_GRADIENT:
            values = blocks_for(run, weight, x.dtype)  # the forward's
            return lambda: block_linear_backward_op(grad, none, values, *where, True, False, True, dtype, config, "")[0]
        return lambda: block_linear_backward_op(grad, x, none, *where, False, True, True, dtype, "", config)[1]

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
            with self._autocast():
                y = compute(layer, x)
            return torch.autograd.grad(y, wanted, grad)

        return step

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if not self._cast:
            return contextlib.nullcontext()
        return torch.autocast(self._weight.device.type, dtype=self.dtype)

    def _data(self) -> tuple[Tensor, Tensor]:
        """Input and gradient of the output, of no use but to take time over; not from the global generator."""
        if self._tensors is None:
            device = self._weight.device
            kind = {"generator": torch.Generator(device).manual_seed(0), "dtype": self.dtype, "device": device}
            self._tensors = tuple(torch.rand((self.samples, width), **kind) for width in (self.cols, self.rows))
        return self._tensors


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
