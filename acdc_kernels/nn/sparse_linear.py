"""The product of a wrapped ``nn.Linear`` in a compressed phase: each of its three products dense or sparse, as planned.

The parameter stays whole. A forward gathers the kept weights into *values*; a weight gradient that was computed sparse
is scattered into a fresh dense tensor, +0.0 outside of the mask. In eager mode an autograd function calls the ops below
autograd. In a compiled model there is one opaque op, ``planned_linear``, that finds the product by its handle: neither
the choice of kernels nor the lengths of an index, which change at every phase, are part of the graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.nn.functional import linear
from torch.utils.flop_counter import flop_registry, register_flop_formula

from .. import _native
from ..formats.bundles import BLOCKS_4X1, FORMATS, LARGEST_KEPT, Topology
from ..ops._registry import has_kernel, register
from ..ops.sparse_linear.contract import sparse_linear_backward_op, sparse_linear_op
from ..ops.values import build_topology, count_bits
from ..ops.values.contract import gather_values_op, scatter_values_op
from .product import (
    DENSE,
    FORWARD,
    FP16,
    INPUT_GRADIENT,
    MASK_CHANGED,
    PRODUCTS,
    SPARSE,
    WEIGHT_GRADIENT,
    Observation,
    Product,
    Work,
    version_of,
)

__all__ = ["LinearProduct", "LinearTrial"]

_below_autograd = torch._C._AutoDispatchBelowADInplaceOrView
_TILE = 16  # samples: tiles are padded to a multiple


@dataclass(frozen=True)
class _Run:
    """What a forward and its backward go by, whatever happens to the product in between."""

    topology: Topology
    forward: str
    sparse_input: bool
    sparse_weight: bool

    def __post_init__(self) -> None:
        t = self.topology  # once, not at every call
        object.__setattr__(self, "where", (list(t.index), list(t.meta), t.format))
        object.__setattr__(self, "sparse_forward", self.forward != DENSE)

    @classmethod
    def of(cls, topology: Topology, chosen: Mapping[str, str]) -> _Run:
        return cls(topology, chosen[FORWARD], chosen[INPUT_GRADIENT] != DENSE, chosen[WEIGHT_GRADIENT] != DENSE)


def _forward(run: _Run, x: Tensor, weight: Tensor, bias: Tensor | None, save: bool, keep: bool) -> tuple[Tensor, ...]:
    """(y, tiles, values): tiles are empty unless ``save``, values None unless sparse or to ``keep``."""
    values = gather_values_op(weight, *run.where) if run.sparse_forward or keep else None
    if run.sparse_forward:
        return *sparse_linear_op(x, values, *run.where, bias, save, run.forward == FP16), values
    return linear(x, weight, bias), x.new_empty(0), values


def _backward(
    run: _Run | None,
    grad: Tensor,
    x: Tensor | None,
    packed: bool,
    values: Tensor | None,
    weight: Tensor | None,
    need_input: bool,
    need_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of input and weight. x: the input, or its tiles if ``packed``; run None: both dense."""
    if run is not None and run.topology.outlived_mask():
        raise RuntimeError(f"sparse_linear: backward must find the mask of its forward, but {MASK_CHANGED}")
    grad_x = grad_weight = None
    sparse_input, sparse_weight = need_input, need_weight
    if run is None or not run.sparse_input:
        sparse_input = False
        if need_input:
            grad_x = grad @ weight
    if run is None or not run.sparse_weight:
        sparse_weight = False
        if need_weight:
            rows = grad.shape[-1]
            grad_weight = grad.reshape(-1, rows).t() @ x.reshape(-1, x.shape[-1])
    if sparse_input or sparse_weight:
        if values is None:  # the weight gradient alone: they say only how many there are
            values = grad.new_empty(run.topology.kept)
        source = x if sparse_weight else grad
        one, other = sparse_linear_backward_op(
            grad, source, packed and sparse_weight, values, *run.where, sparse_input, sparse_weight
        )
        if sparse_input:
            grad_x = one
        if sparse_weight:
            grad_weight = scatter_values_op(other, *run.where)
    return grad_x, grad_weight


def _bias_gradient(grad: Tensor) -> Tensor:
    return (grad if grad.dim() == 2 else grad.reshape(-1, grad.shape[-1])).sum(0)


_NO_DOUBLE_BACKWARD = (
    b"sparse_linear: double backward is not supported: its gradients have no gradients of their own; "
    b"make the Sparsifier with kernels='dense'"
)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, run: _Run) -> Tensor:
        need_input, need_weight, _, _ = ctx.needs_input_grad
        packed = need_weight and run.sparse_forward and run.sparse_weight
        keep = need_input and run.sparse_input
        with _below_autograd():
            y, tiles, values = _forward(run, x, weight, bias, packed, keep)
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
        need_input, need_weight, need_bias = _asked_for(ctx)
        with _below_autograd():
            grads = *_backward(ctx.run, grad, x, ctx.packed, values, weight, need_input, need_weight), None
            if need_bias:
                grads = *grads[:2], _bias_gradient(grad)
        if torch.is_grad_enabled():
            grads = _once(grads)
        return *grads, None


def _asked_for(ctx: Any) -> tuple[bool, bool, bool]:
    """Whether this backward is to give the gradients of input and weight, and whether the bias requires one."""
    need_input, need_weight, need_bias, _ = ctx.needs_input_grad
    if need_input and need_weight:  # with one alone little can be saved
        (input_node, _), (weight_node, _) = ctx.next_functions[:2]
        need_input, need_weight = _is_asked(input_node), _is_asked(weight_node)
    return need_input, need_weight, need_bias


def _is_asked(node: torch.autograd.graph.Node) -> bool:
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # what it says of a leaf that torch.autograd.grad is asked for
        return True


def _once(grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """The same gradients, which raise when somebody differentiates them."""
    there = [grad.detach().requires_grad_() for grad in grads if grad is not None]
    made = torch._C._functions.DelayedError(_NO_DOUBLE_BACKWARD, len(there))(*there) if there else ()
    refusing = iter((made,) if isinstance(made, Tensor) else made)  # of one tensor it gives no tuple
    return tuple(None if grad is None else next(refusing) for grad in grads)


class LinearProduct(Product):
    """Computes a wrapped linear layer, ``y = x W^T + b``, as the plan says.

    It steps aside, and the layer's own forward runs, for what sparse kernels don't take: inputs that aren't plain
    float32 CPU tensors, autocast, transforms of ``torch.func``, forward-mode differentiation, tracing and exporting;
    where the mask was changed in place; where the layer holds another weight than the one that is masked
    (``functional_call``); where somebody has written weights outside of the mask; and for a number of samples beyond a
    factor of two of the plan's, unless ``favours`` says otherwise. Double backward, and a backward whose mask was
    changed in place since the forward, raise RuntimeError.
    """

    def __init__(self, weight: Parameter) -> None:
        super().__init__(weight)
        self._run: _Run | None = None
        self._samples_range = (0, 0)
        self._favours: Callable[[int], bool] | None = None
        self._favoured: dict[int, bool] = {}
        self._within: tuple[int, int] | None = None  # the version of the weight that is known to keep to its mask
        self._outside: tuple[int, int] | None = None  # the one that is known not to
        self._generation = 0
        self._gathered: tuple[tuple[int, int], Tensor] | None = None

    @staticmethod
    def refusal(layer: nn.Module, weight: Parameter, pattern: str) -> str | None:
        own = type(layer)._own
        if own.forward is not nn.Linear.forward:
            return f"{own.__name__} has a forward of its own"
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
    def missing(fp16: bool, pattern: str = "unstructured") -> str | None:
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
        return LinearTrial(self.weight, layer.bias, kept, FORMATS[pattern], seen, topology, fp16)

    def start(
        self, topology: Topology, chosen: Mapping[str, str], samples: int, favours: Callable[[int], bool] | None
    ) -> None:
        self.observing, self.aside = False, None
        self._run = _Run.of(topology, chosen)
        self._samples_range = ((samples + 1) // 2, 2 * samples) if samples else (1, 2**63)
        self._favours, self._favoured = favours, {}
        self._generation += 1
        self._within = self._outside = None

    def stop(self) -> None:
        self._run = self._favours = self._gathered = self._within = self._outside = None
        self._generation += 1

    @property
    def topology(self) -> Topology | None:
        return None if self._run is None else self._run.topology

    def mask_changed(self) -> bool:
        return self._run is not None and self._run.topology.outlived_mask()

    def weight_is_masked(self) -> None:
        self._within, self._outside = version_of(self.weight), None

    def __call__(self, layer: nn.Module, input: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            if _obstacle_in_graph(input):
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
                self._note(input, input.requires_grad)
            return nn.Linear.forward(layer, input)
        bias = parameters["bias"] if "bias" in parameters else layer.bias  # noqa: SIM401 (computed by a parametrization)
        run = _obstacle(input) or self._run_for(input, bias)
        if weight.requires_grad and torch.is_grad_enabled():
            self.aside = run if type(run) is str else ""
        if type(run) is not _Run:
            return nn.Linear.forward(layer, input)
        if torch.is_grad_enabled():
            return _Linear.apply(input, weight, bias, run)
        with _below_autograd():
            return _forward(run, input, weight, bias, False, False)[0]

    def _note(self, x: Tensor, input_gradient: bool) -> None:
        if x.dim() and (samples := math.prod(x.shape[:-1])):
            self.note(samples, input_gradient, _obstacle(x) or "")

    def _run_for(self, x: Tensor, bias: Tensor | None) -> _Run | str | None:
        """What to compute x by, which has nothing that ``_obstacle`` names; None or a reason: the dense product."""
        run = self._run
        if run is None:
            return None
        if run.topology.outlived_mask():
            return MASK_CHANGED
        rows, cols = run.topology.shape
        if x.dim() == 0 or x.shape[-1] != cols:
            return None  # of a misfit the dense product tells in torch's words
        if bias is not None and (bias.dtype is not torch.float32 or bias.shape != (rows,)):
            return None
        samples = x.numel() // cols
        low, high = self._samples_range
        if not low <= samples <= high:
            if samples not in self._favoured:
                self._favoured[samples] = samples > 0 and self._favours is not None and self._favours(samples)
            if not self._favoured[samples]:
                return None
        version = version_of(self.weight)
        if version != self._within and not self._keeps_to_mask(version):
            return "the weight was written to outside of its mask"
        return run

    def _keeps_to_mask(self, version: tuple[int, int]) -> bool:
        """Whether the weight, which somebody has written to, is zero outside of the mask still."""
        weight, run = self.weight.detach(), self._run
        if version == self._outside or weight.dtype != torch.float32 or not weight.is_cpu:
            return False
        with torch.no_grad():
            kept = torch.count_nonzero(gather_values_op(weight, *run.where))
            within = bool(torch.count_nonzero(weight) == kept)
        if within:
            self._within = version
        else:
            self._outside = version
        return within


def _obstacle_in_graph(x: Tensor) -> bool:
    """While a graph is traced: whether it must have the layer's own product, for any number of samples."""
    return (
        torch.compiler.is_exporting()
        or x.device.type != "cpu"
        or x.dtype != torch.float32
        or torch.is_autocast_enabled("cpu")
        or _transformed()
    )


def _transformed() -> bool:
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


# What torch.compiler.assume_constant_result does, which would import the compiler: half a second, for everybody.
_transformed._dynamo_marked_constant = True


def _obstacle(x: Tensor) -> str | None:
    """Why sparse kernels don't take x; None if they do."""
    if x.dtype is not torch.float32:
        return f"the inputs are {x.dtype}"
    if (type(x) is not Tensor and type(x) is not Parameter) or not x.is_cpu or x.layout is not torch.strided:
        return f"the inputs are {type(x).__name__} on {x.device.type}"
    if torch.is_autocast_enabled("cpu"):
        return f"autocast to {torch.get_autocast_dtype('cpu')}"
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0 or torch.jit.is_tracing():
        return "transforms of torch.func"
    return None


def _by_handle(handle: Tensor, weight: Tensor) -> LinearProduct | None:
    product = Product.of(handle)
    return product if isinstance(product, LinearProduct) and product.weight.data_ptr() == weight.data_ptr() else None


def _planned_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, handle: Tensor, save: bool, input_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``y = x W^T + b`` as the product with this handle computes it now; with ``save`` also what its backward needs.

    Returns (y, tiles, record): tiles has its size whether it is written or not; record is int64 [2], the product's
    generation and whether tiles was written.
    """
    product = _by_handle(handle, weight)
    run = None
    if product is not None:
        product.compiled = True
        if product.observing and save:
            product._note(x, input_gradient)
        run = None if product.observing else product._run_for(x, bias)
        if save:
            product.aside = run if type(run) is str else ""
    if type(run) is not _Run:
        y, packed, generation = linear(x, weight, bias), False, -1
        tiles = x.new_empty(0)
    else:
        packed, generation = save and run.sparse_forward and run.sparse_weight, product._generation
        keep = input_gradient and run.sparse_input
        y, tiles, values = _forward(run, x, weight, bias, packed, keep)
        product._gathered = (version_of(product.weight), values) if keep else None
    if not packed:
        tiles = x.new_empty(_tiles_size(x) if save else 0)
    return y, tiles, torch.tensor([generation, packed], dtype=torch.int64, device="cpu")


def _planned_linear_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    tiles: Tensor,
    record: Tensor,
    handle: Tensor,
    need_input: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of input and weight; [0] where not needed. Dense unless the forward was of this generation."""
    product = _by_handle(handle, weight)
    generation, packed = record.tolist()
    run = product._run if product is not None and product._generation == generation else None
    values = None
    if run is not None and need_input and run.sparse_input:
        gathered, product._gathered = product._gathered, None
        if gathered is not None and gathered[0] == version_of(product.weight):
            values = gathered[1]
        else:
            values = gather_values_op(weight, *run.where)
    packed = bool(packed) and run is not None
    grads = _backward(run, grad, tiles if packed else x, packed, values, weight, need_input, need_weight)
    return tuple(grad.new_empty(0) if g is None else g.contiguous() for g in grads)


def _tiles_size(x: Tensor) -> int:
    return x.shape[-1] * ((math.prod(x.shape[:-1]) + _TILE - 1) // _TILE * _TILE)


def _fake_planned(
    x: Tensor, weight: Tensor, bias: Tensor | None, handle: Tensor, save: bool, input_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    y = x.new_empty((*x.shape[:-1], weight.shape[0]))
    return y, x.new_empty(_tiles_size(x) if save else 0), x.new_empty(2, dtype=torch.int64)


def _fake_planned_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    tiles: Tensor,
    record: Tensor,
    handle: Tensor,
    need_input: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    return grad.new_empty(x.shape if need_input else (0,)), grad.new_empty(weight.shape if need_weight else (0,))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _, handle, _, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, output[1], output[2], handle)


def _planned_gradients(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    need_input, need_weight, need_bias = (need and grad is not None for need in ctx.needs_input_grad[:3])
    grad_x = grad_weight = None
    if need_input or need_weight:
        grad_x, grad_weight = planned_linear_backward_op(grad, *ctx.saved_tensors, need_input, need_weight)
    return (
        grad_x if need_input else None,
        grad_weight if need_weight else None,
        _bias_gradient(grad) if need_bias else None,
        *(None, None, None),
    )


def _refuse(ctx: Any, *grads: Any) -> None:
    raise RuntimeError(_NO_DOUBLE_BACKWARD.decode())


planned_linear_op = register(
    "planned_linear",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor handle, bool save, bool input_gradient)"
    " -> (Tensor y, Tensor tiles, Tensor record)",
    _planned_linear,
    _fake_planned,
    backward=_planned_gradients,
    setup_context=_setup,
    composed=True,
)
planned_linear_backward_op = register(
    "planned_linear_backward",
    "(Tensor grad, Tensor x, Tensor weight, Tensor tiles, Tensor record, Tensor handle, bool need_input,"
    " bool need_weight) -> (Tensor grad_x, Tensor grad_weight)",
    _planned_linear_backward,
    _fake_planned_backward,
    backward=_refuse,
    setup_context=lambda ctx, inputs, output: None,
    composed=True,
)


def _flops(x: Tensor, weight: Tensor, bias: Any, handle: Tensor, *args: Any, **kwargs: Any) -> int:
    run = _run_of(handle)
    kept = weight.numel() if run is None or not run.sparse_forward else run.topology.kept
    return 2 * math.prod(x.shape[:-1]) * kept


def _backward_flops(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    tiles: Tensor,
    record: Tensor,
    handle: Tensor,
    need_input: bool,
    need_weight: bool,
    **kwargs: Any,
) -> int:
    run, dense = _run_of(handle), weight.numel()
    of_input = dense if run is None or not run.sparse_input else run.topology.kept
    of_weight = dense if run is None or not run.sparse_weight else run.topology.kept
    return 2 * math.prod(grad.shape[:-1]) * (need_input * of_input + need_weight * of_weight)


def _run_of(handle: Tensor) -> _Run | None:
    product = Product.of(handle)
    return product._run if isinstance(product, LinearProduct) else None


for _op, _formula in ((planned_linear_op, _flops), (planned_linear_backward_op, _backward_flops)):
    if _op.overloadpacket not in flop_registry:  # registering twice raises, and modules can be reloaded
        register_flop_formula(_op.overloadpacket, get_raw=True)(_formula)


class LinearTrial:
    """A linear layer under its mask with ``samples`` rows of input, as the plan sees it (``product.Trial``).

    weight [rows, cols], of which ``kept`` may differ from zero; ``topology()`` is asked for when a kernel is to be run.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        kept: int,
        format: str,
        seen: Observation,
        topology: Callable[[], Topology],
        fp16: bool = False,
    ) -> None:
        self._weight, self._bias = weight.detach(), None if bias is None else bias.detach()
        self._topology = topology
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
        padded = (n + _TILE - 1) // _TILE * _TILE
        # Packing and unpacking; values and offsets; then what gathering and scattering read and write.
        moved = 2 * moved + 6 * self.kept
        moved += {FORWARD: 12 * self.kept, INPUT_GRADIENT: 0, WEIGHT_GRADIENT: 4 * weights + 8 * self.kept}[product]
        kind = "sparse blocks" if self.format == BLOCKS_4X1 else "sparse"
        return Work(f"{kind} fp16" if kernel == FP16 else kind, 2 * padded * self.kept, moved)

    def run(self, product: str, kernel: str, forward: str) -> Callable[[], object]:
        compute = self._dense(product) if kernel == DENSE else self._sparse(product, kernel, forward)

        def run() -> object:
            with _below_autograd():
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
        run = _Run.of(self._topology(), {**dict.fromkeys(PRODUCTS, SPARSE), FORWARD: kernel})
        where = run.where
        if product == FORWARD:
            return lambda: _forward(run, x, weight, bias, True, True)
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
        product: Callable[..., Tensor] = nn.Linear.forward
        if any(kernel != DENSE for kernel in chosen.values()):
            product = LinearProduct(weight)
            product.start(self._topology(), {**dict.fromkeys(PRODUCTS, DENSE), **chosen}, 0, None)
            product.weight_is_masked()  # whatever it holds, this is about time

        def step() -> object:
            return torch.autograd.grad(product(layer, x), wanted, grad)

        return step

    def _data(self) -> tuple[Tensor, Tensor]:
        """Input and gradient of the output, of no use but to take time over; not from the global generator."""
        if self._tensors is None:
            kind = {"generator": torch.Generator("cpu").manual_seed(0), "dtype": torch.float32, "device": "cpu"}
            self._tensors = tuple(torch.rand((self.samples, width), **kind) for width in (self.cols, self.rows))
        return self._tensors
