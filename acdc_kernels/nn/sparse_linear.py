"""The product of a wrapped ``nn.Linear`` in a compressed phase: each of its three products dense or sparse, as planned.

The parameter stays whole. A forward gathers the kept weights into *values*; a weight gradient that was computed sparse
is scattered into a fresh dense tensor, +0.0 outside of the mask. In eager mode an autograd function calls the ops below
autograd; in a compiled model there is one opaque op (``planned_linear``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from .. import _native
from ..formats.bundles import FORMATS, LARGEST_KEPT
from ..formats.topology import Topology
from ..ops._gradients import asked_for, below_autograd, once
from ..ops._registry import has_kernel
from ..ops.sparse_linear.contract import sparse_linear_op
from ..ops.values import build_topology, count_bits
from .linear_passes import NO_DOUBLE_BACKWARD, bias_gradient, linear_backward, linear_forward
from .linear_trial import LinearTrial
from .obstacles import obstacle, obstacle_in_graph
from .planned_linear import planned_linear_op
from .product import Observation
from .running import Run, RunningProduct

__all__ = ["LinearProduct", "LinearTrial"]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, run: Run) -> Tensor:
        need_input, need_weight, _, _ = ctx.needs_input_grad
        packed = need_weight and run.sparse_forward and run.sparse_weight
        keep = need_input and run.sparse_input
        with below_autograd():
            y, tiles, values = linear_forward(run, x, weight, bias, packed, keep)
        ctx.run, ctx.packed = run, packed
        ctx.save_for_backward(
            (tiles if packed else x) if need_weight else None,
            values if keep else None,
            weight if need_input and not keep else None,
        )
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, values, weight = ctx.saved_tensors
        need_input, need_weight, need_bias = asked_for(ctx)
        with below_autograd():
            grads = *linear_backward(ctx.run, grad, x, ctx.packed, values, weight, need_input, need_weight), None
            if need_bias:
                grads = *grads[:2], bias_gradient(grad)
        if torch.is_grad_enabled():
            grads = once(grads, NO_DOUBLE_BACKWARD)
        return *grads, None


class LinearProduct(RunningProduct):
    """Computes a wrapped linear layer, ``y = x W^T + b``, as the plan says.

    It steps aside, and the layer's own forward runs, for what sparse kernels don't take: inputs that aren't plain
    float32 CPU tensors, autocast, transforms of ``torch.func``, forward-mode differentiation, tracing and exporting;
    where the mask was changed in place; where the layer holds another weight than the one that is masked
    (``functional_call``); where somebody has written weights outside of the mask; and for a number of samples beyond a
    factor of two of the plan's, unless ``favours`` says otherwise. Double backward, and a backward whose mask was
    changed in place since the forward, raise RuntimeError.
    """

    @staticmethod
    def refusal(layer: nn.Module, weight: Parameter, pattern: str) -> str | None:
        own = type(layer)._own
        if own.forward is not nn.Linear.forward:
            return f"{own.__name__} has a forward of its own"
        if weight.is_cuda:
            return f"no sparse kernels on cuda for pattern {pattern!r}: dense on masked weights"
        if pattern not in FORMATS:
            return f"no sparse kernels for pattern {pattern!r}, only for {' and '.join(map(repr, FORMATS))}"
        if weight.device.type != "cpu":
            return f"no sparse kernels on {weight.device.type}"
        if weight.dtype != torch.float32:
            return f"no sparse kernels for {weight.dtype}, only for torch.float32"
        if weight.numel() == 0:
            return "the weight has no elements"
        if weight.numel() > LARGEST_KEPT:
            return f"sparse kernels take at most {LARGEST_KEPT:,} weights"
        return None

    @staticmethod
    def missing(fp16: bool, pattern: str = "unstructured", device_type: str = "cpu") -> str | None:
        if not has_kernel(sparse_linear_op, "cpu"):
            return f"no compiled kernels: {_native.why_not() or 'this build has no sparse_linear'}"
        if fp16 and _native.cpu_fp16() == "none":
            return _native.why_no_fp16()
        if fp16 and pattern != "unstructured":
            return f"no half-precision kernels for pattern {pattern!r}"
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
    ) -> LinearTrial:
        kept = count_bits(bits)
        return LinearTrial(LinearProduct, self.weight, layer.bias, kept, FORMATS[pattern], seen, topology, fp16)

    def __call__(self, layer: nn.Module, input: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            if obstacle_in_graph(input):
                return nn.Linear.forward(layer, input)
            weight, bias, grads = layer.weight, layer.bias, torch.is_grad_enabled()
            save, input_gradient = grads and weight.requires_grad, grads and input.requires_grad
            return planned_linear_op(input, weight, bias, self.handle, save, input_gradient)[0]
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
        run = obstacle(input) or self.run_for(input, bias)
        if weight.requires_grad and torch.is_grad_enabled():
            self.aside = run if type(run) is str else ""
        if type(run) is not Run:
            return nn.Linear.forward(layer, input)
        if torch.is_grad_enabled():
            return _Linear.apply(input, weight, bias, run)
        with below_autograd():
            return linear_forward(run, input, weight, bias, False, False)[0]

    def note_input(self, x: Tensor, input_gradient: bool) -> None:
        if x.dim() and (samples := math.prod(x.shape[:-1])):
            self.note(samples, input_gradient, obstacle(x) or "")

    def _samples(self, x: Tensor, bias: Tensor | None) -> int | None:
        rows, cols = self.run.topology.shape
        if x.dim() == 0 or x.shape[-1] != cols:
            return None
        if bias is not None and (bias.dtype is not torch.float32 or bias.shape != (rows,)):
            return None
        return x.numel() // cols
