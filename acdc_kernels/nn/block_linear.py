"""The product of a wrapped ``nn.Linear`` under ``block:RxC`` with large blocks: each of its three products as planned.

The parameter stays whole, and sparse kernels read its kept blocks in their places; under autocast a forward gathers
them in the dtype to compute in. A weight gradient that was computed sparse is dense, +0.0 outside of the mask, in the
parameter's dtype. Nothing waits for a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from ..formats.blocks import block_sides
from ..formats.bundles import LARGEST_KEPT
from ..formats.topology import Topology
from ..ops._gradients import asked_for, below_autograd, once
from ..ops._machine import arithmetic, machine
from ..ops._registry import has_kernel, why_no_triton
from ..ops.block_linear import configs
from ..ops.block_linear.contract import block_linear_op
from ..ops.sparse_linear import BLOCK_DTYPES
from ..ops.values import build_topology, count_bits
from ..ops.values.contract import gather_blocks_op
from .block_passes import block_backward, block_forward, blocks_for
from .block_trial import BlockTrial
from .linear_passes import NO_DOUBLE_BACKWARD, bias_gradient
from .obstacles import dtype_for, dtype_in_graph, without_autocast
from .planned_block_linear import planned_block_linear_op
from .product import SPARSE, Observation, config_of
from .running import Run, RunningProduct

__all__ = ["BlockProduct", "BlockTrial"]


class _BlockLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, run: Run, dtype: torch.dtype) -> Tensor:
        need_input, need_weight, _, _, _ = ctx.needs_input_grad
        keep = need_input and run.sparse_input
        with below_autograd(), without_autocast(x.device.type):
            given, x = x.dtype, x.to(dtype)
            values = blocks_for(run, weight, dtype) if run.sparse_forward or keep else None
            y, matrix = block_forward(run, x, weight, bias, values)
        ctx.run, ctx.dtypes = run, (given, weight.dtype, None if bias is None else bias.dtype)
        ctx.save_for_backward(
            x if need_weight else None,
            values if keep else None,
            (weight if matrix is None else matrix) if need_input and not keep else None,
        )
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, values, weight = ctx.saved_tensors
        need_input, need_weight, need_bias = asked_for(ctx)
        of_input, of_weight, of_bias = ctx.dtypes
        with below_autograd(), without_autocast(grad.device.type):
            grads = *block_backward(ctx.run, grad, x, values, weight, of_weight, need_input, need_weight), None
            if grads[0] is not None:
                grads = grads[0].to(of_input), *grads[1:]
            if need_bias:
                grads = *grads[:2], bias_gradient(grad).to(of_bias)
        if torch.is_grad_enabled():
            grads = once(grads, NO_DOUBLE_BACKWARD)
        return *grads, None, None


class BlockProduct(RunningProduct):
    """Computes a wrapped linear layer, ``y = x W^T + b``, as the plan says, in the dtype that the layer itself would.

    It steps aside as ``LinearProduct`` does. On a GPU, where looking at a weight would wait for the device, a weight
    that somebody has written to makes the layer dense until ``weight_is_masked`` is called.
    """

    dtypes = BLOCK_DTYPES

    @staticmethod
    def refusal(layer: nn.Module, weight: Parameter, pattern: str) -> str | None:
        own = type(layer)._own
        if own.forward is not nn.Linear.forward:
            return f"{own.__name__} has a forward of its own"
        if block_sides(pattern) is None:
            return f"no sparse kernels for pattern {pattern!r}, only for blocks of 32, 64 or 128 rows and columns"
        if weight.device.type not in ("cpu", "cuda"):
            return f"no sparse kernels on {weight.device.type}"
        if weight.dtype not in BLOCK_DTYPES:
            return f"no sparse kernels for {weight.dtype}, only for {', '.join(map(str, BLOCK_DTYPES))}"
        if weight.numel() == 0:
            return "the weight has no elements"
        if weight.numel() > LARGEST_KEPT:
            return f"sparse kernels take at most {LARGEST_KEPT:,} weights"
        return None

    @staticmethod
    def missing(fp16: bool, pattern: str = "block:32x32", device_type: str = "cuda") -> str | None:
        if fp16:
            return f"no half-precision kernels for pattern {pattern!r}"
        if not has_kernel(block_linear_op, device_type):
            if device_type == "cuda":
                return f"no Triton kernels: {why_no_triton() or 'they were not registered'}"
            return f"no sparse kernels on {device_type} for pattern {pattern!r}"
        if device_type == "cuda" and torch.cuda.is_available():
            major, minor = torch.cuda.get_device_capability()
            return None if major >= 8 else f"Triton kernels need compute capability 8.0, got {major}.{minor}"
        return None

    def unknown(self, product: str, kernel: str, pattern: str) -> str | None:
        if kernel == SPARSE:
            return None
        _, capability = machine(self.weight.device)
        meta, seen = (*self.weight.shape, 0, *block_sides(pattern)), self.calls.observed()
        dtype = arithmetic(getattr(torch, seen.dtype) if seen is not None and seen.dtype else self.weight.dtype)
        try:
            config = configs.parse(config_of(kernel))
            configs.check(config, product, meta, capability)
        except ValueError as error:
            return f"there is no kernel {kernel!r} here: {error}"
        needed, limit = configs.shared_bytes(config, product, dtype, meta), configs.shared_limit(capability)
        if needed > limit:
            return f"kernel {kernel!r} may take {needed:,} bytes of shared memory, of which this GPU has {limit:,}"
        return None

    def build(self, bits: Tensor, pattern: str) -> Topology:
        rows, cols = self.weight.shape
        return build_topology(bits, rows, cols, pattern)

    def trial(
        self,
        layer: nn.Module,
        pattern: str,
        bits: Tensor,
        seen: Observation,
        topology: Callable[[], Topology],
        fp16: bool,
    ) -> BlockTrial:
        meta = (*self.weight.shape, self.kept_of(bits), *block_sides(pattern))
        return BlockTrial(BlockProduct, self.weight, layer.bias, meta, seen, topology)

    def kept_of(self, bits: Tensor) -> int:
        """How many weights a mask keeps; without waiting for a GPU if it is the one that the layer runs by."""
        topology = self.topology
        return topology.kept if topology is not None and topology.bits is bits else count_bits(bits)

    def __call__(self, layer: nn.Module, input: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            weight, bias, grads = layer.weight, layer.bias, torch.is_grad_enabled()
            dtype = dtype_in_graph(input, weight, bias)
            if dtype is None:
                return nn.Linear.forward(layer, input)
            save, input_gradient = grads and weight.requires_grad, grads and input.requires_grad
            x = input.to(dtype)
            return planned_block_linear_op(x, weight, bias, self.handle, save, input_gradient)[0]
        parameters = layer._parameters
        weight = parameters.get("weight")
        if weight is not self.weight:
            return nn.Linear.forward(layer, input)
        if self.observing:
            if weight.requires_grad and torch.is_grad_enabled():
                self.note_input(input, input.requires_grad)
            return nn.Linear.forward(layer, input)
        # A parametrization's bias is no parameter. As the default of a get, layer.bias would be read in every call.
        bias = parameters["bias"] if "bias" in parameters else layer.bias  # noqa: SIM401
        dtype = dtype_for(input, weight)
        run = dtype if type(dtype) is str else self.run_in(dtype, input, bias)
        if weight.requires_grad and torch.is_grad_enabled():
            self.aside = run if type(run) is str else ""
        if type(run) is not Run:
            return nn.Linear.forward(layer, input)
        if torch.is_grad_enabled():
            return _BlockLinear.apply(input, weight, bias, run, dtype)
        with below_autograd(), without_autocast(input.device.type):
            values = blocks_for(run, weight, dtype) if run.sparse_forward else None
            return block_forward(run, input.to(dtype), weight, bias, values)[0]

    def obstacle(self, x: Tensor, dtype: torch.dtype) -> str | None:
        """Why sparse kernels don't take x to compute in this dtype, beside what ``dtype_for`` tells."""
        return None

    def run_in(self, dtype: torch.dtype, x: Tensor, bias: Tensor | None) -> Run | str | None:
        """``run_for`` in a dtype."""
        return (self.obstacle(x, dtype) if self.run is not None else None) or self.run_for(x, bias)

    def note_input(self, x: Tensor, input_gradient: bool) -> None:
        if x.dim() and (samples := math.prod(x.shape[:-1])):
            # In a compiled model the graph has cast x already, and autocast is off.
            dtype = x.dtype if self._in_graph(x) else dtype_for(x, self.weight)
            obstacle = dtype if type(dtype) is str else self.obstacle(x, dtype)
            name = "" if obstacle or dtype is self.weight.dtype else str(dtype).removeprefix("torch.")
            self.note(samples, input_gradient, obstacle or "", name)

    def _in_graph(self, x: Tensor) -> bool:
        return self.compiled and x.dtype is not self.weight.dtype and not torch.is_autocast_enabled(x.device.type)

    def _gathered(self, weight: Tensor) -> Tensor:
        return gather_blocks_op(weight, *self.run.where[:2], weight.dtype)

    def _samples(self, x: Tensor, bias: Tensor | None) -> int | None:
        rows, cols = self.run.topology.shape
        if x.dim() == 0 or x.shape[-1] != cols:
            return None
        if bias is not None and (bias.dtype is not self.weight.dtype or bias.shape != (rows,)):
            return None
        return x.numel() // cols
