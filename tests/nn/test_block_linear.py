"""The product of a linear layer under large blocks, by every choice of kernels and dtypes: to its users, the layer."""

from __future__ import annotations

import copy
import itertools
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from acdc_kernels import pack_mask
from acdc_kernels.nn import block_passes, product_type, wrap
from acdc_kernels.nn.block_linear import BlockProduct, BlockTrial
from acdc_kernels.nn.planned_block_linear import planned_block_linear_op
from acdc_kernels.nn.product import (
    DENSE,
    FORWARD,
    INPUT_GRADIENT,
    PRODUCTS,
    SPARSE,
    WEIGHT_GRADIENT,
    Calls,
    Observation,
    config_of,
    is_kernel,
    named,
)
from acdc_kernels.nn.running import WRITTEN
from acdc_kernels.nn.sparse_linear import LinearProduct

pytestmark = pytest.mark.usefixtures("quiet_references")

ROWS, COLS, R, C = 96, 128, 32, 64
PATTERN = f"block:{R}x{C}"
CHOICES = [dict(zip(PRODUCTS, kernels, strict=True)) for kernels in itertools.product((DENSE, SPARSE), repeat=3)]
ALL_SPARSE = dict.fromkeys(PRODUCTS, SPARSE)
HALF = torch.bfloat16


def by_name(chosen):
    return "-".join(chosen.values())


@pytest.fixture
def calls(monkeypatch):
    """How often the ops of blocks were called, and the arguments of the latest calls."""
    seen = SimpleNamespace(forward=0, backward=0, gather=0, forward_args=(), backward_args=())

    def counted(name, op):
        def call(*args):
            setattr(seen, name, getattr(seen, name) + 1)
            setattr(seen, f"{name}_args", args)
            return op(*args)

        return call

    for name, op in (
        ("forward", "block_linear_op"),
        ("backward", "block_linear_backward_op"),
        ("gather", "gather_blocks_op"),
    ):
        monkeypatch.setattr(block_passes, op, counted(name, getattr(block_passes, op)))
    return seen


@pytest.fixture
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def make(chosen=ALL_SPARSE, samples=0, bias=True, density=0.5, favours=None, dtype=torch.float32):
    """(a masked layer that runs by ``chosen``, its mask, the same layer dense)."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(COLS, ROWS, bias=bias)
    blocks = torch.rand(ROWS // R, COLS // C, generator=generator) < density
    mask = blocks.repeat_interleave(R, 0).repeat_interleave(C, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(ROWS, COLS, generator=generator) * mask)
        if bias:
            layer.bias.copy_(torch.randn(ROWS, generator=generator))
    layer.to(dtype)
    dense = copy.deepcopy(layer)
    wrap(layer)
    layer.product = product = BlockProduct(layer.weight)
    product.start(product.build(pack_mask(mask), PATTERN), chosen, samples, favours)
    return layer, mask, dense


def autocast(on):
    return torch.autocast("cpu", dtype=HALF, enabled=on)


def agree(layer, dense, mask, x, chosen, low=False):
    """Outputs and gradients have the dense layer's dtypes and values; a sparse weight gradient is +0.0 outside."""
    near = (
        {"rtol": 2e-2, "atol": 2e-1} if HALF in (x.dtype, dense.weight.dtype) or low else {"rtol": 1e-5, "atol": 1e-4}
    )
    x, other = (x.detach().clone().requires_grad_() for _ in range(2))
    layer.zero_grad()
    dense.zero_grad()
    with autocast(low):
        y, expected = layer(x), dense(other)
    torch.testing.assert_close(y, expected, **near)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(7)).to(expected.dtype)
    y.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(x.grad, other.grad, **near)
    want = dense.weight.grad * mask if chosen[WEIGHT_GRADIENT] != DENSE else dense.weight.grad
    torch.testing.assert_close(layer.weight.grad, want, **near)
    assert chosen[WEIGHT_GRADIENT] == DENSE or not layer.weight.grad[~mask].count_nonzero()
    if layer.bias is not None:
        torch.testing.assert_close(layer.bias.grad, dense.bias.grad, **near)


INPUTS = {
    "matrix": torch.randn(17, COLS),
    "no leading dimensions": torch.randn(COLS),
    "three dimensions": torch.randn(3, 5, COLS),
    "transposed": torch.randn(COLS, 19).t(),
    "every other": torch.randn(8, 2 * COLS)[:, ::2],
    "expanded": torch.randn(1, COLS).expand(6, COLS),
    "no samples": torch.randn(4, 0, COLS),
}
KINDS = {  # dtypes of the layer and of its input; autocast
    "float32": (torch.float32, torch.float32, False),
    "bfloat16": (HALF, HALF, False),
    "autocast": (torch.float32, torch.float32, True),
    "autocast of a low input": (torch.float32, HALF, True),
    "autocast of a low layer": (HALF, torch.float32, True),
}


@pytest.mark.parametrize("chosen", CHOICES, ids=by_name)
@pytest.mark.parametrize("shape", INPUTS)
def test_every_choice_and_input(shape, chosen):
    layer, mask, dense = make(chosen)
    agree(layer, dense, mask, INPUTS[shape], chosen)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("chosen", CHOICES, ids=by_name)
@pytest.mark.parametrize("kind", KINDS)
def test_every_choice_and_dtype(kind, chosen, compiled, calls, fresh):
    dtype, of_input, low = KINDS[kind]
    layer, mask, dense = make(chosen, dtype=dtype)
    forward = layer
    if compiled:
        forward = torch.compile(layer, backend="aot_eager", fullgraph=True)
        forward.product, forward.weight, forward.bias = layer.product, layer.weight, layer.bias
    agree(forward, dense, mask, INPUTS["three dimensions"].to(of_input), chosen, low)
    assert calls.forward == (chosen[FORWARD] == SPARSE)
    assert calls.backward == (SPARSE in (chosen[INPUT_GRADIENT], chosen[WEIGHT_GRADIENT]))
    if calls.forward:
        x, values = calls.forward_args[:2]
        assert x.dtype == values.dtype == (HALF if low else dtype)
        assert values.dim() == (2 if x.dtype == dtype else 3)  # the whole weight where nothing has to be cast
    casts = low and dtype != HALF and SPARSE in (chosen[FORWARD], chosen[INPUT_GRADIENT])
    assert calls.gather == casts  # once for both


@pytest.mark.parametrize("density", [0.0, 1.0])
@pytest.mark.parametrize("bias", [True, False])
def test_masks(density, bias):
    layer, mask, dense = make(density=density, bias=bias)
    agree(layer, dense, mask, INPUTS["matrix"], ALL_SPARSE)


@pytest.mark.parametrize("compiled", [False, True])
def test_configs_reach_the_ops(compiled, calls, fresh):
    configs = dict(zip(PRODUCTS, ("64x32 w4 s3", "64x32 w4 s2", "64x64 w4 s3 splits2"), strict=True))
    layer, _mask, _dense = make({product: named(config) for product, config in configs.items()})
    forward = torch.compile(layer, backend="aot_eager", fullgraph=True) if compiled else layer
    forward(INPUTS["matrix"].clone().requires_grad_()).sum().backward()
    assert calls.forward_args[-1] == configs[FORWARD]
    assert calls.backward_args[-2:] == (configs[INPUT_GRADIENT], configs[WEIGHT_GRADIENT])


def test_names_of_kernels():
    assert (named(""), named("64x32 w4 s3")) == (SPARSE, "sparse 64x32 w4 s3")
    assert [config_of(kernel) for kernel in (DENSE, SPARSE, "sparse 64x32 w4 s3")] == ["", "", "64x32 w4 s3"]
    assert all(map(is_kernel, (DENSE, SPARSE, "sparse fp16", "sparse 64x32 w4 s3")))
    assert not any(map(is_kernel, ("", "quantum", "sparsely", "sparse ", "dense 64x32")))


@pytest.mark.parametrize("kind", ["float32", "autocast"])
@pytest.mark.parametrize("chosen", [CHOICES[0], CHOICES[2], CHOICES[5], CHOICES[7]], ids=by_name)
@pytest.mark.parametrize("need", list(itertools.product((False, True), repeat=3)), ids=str)
def test_only_the_gradients_that_are_needed(need, chosen, kind):
    layer, mask, dense = make(chosen)
    for one in (layer, dense):
        one.weight.requires_grad_(need[1])
        one.bias.requires_grad_(need[2])
    inputs = [torch.ones(5, COLS).requires_grad_(need[0]) for _ in range(2)]
    with autocast(kind == "autocast"):
        outputs = [one(i) for one, i in zip((layer, dense), inputs, strict=True)]
    assert outputs[0].requires_grad == outputs[1].requires_grad == any(need)
    if any(need):
        for y in outputs:
            y.sum().backward()
        pairs = ((inputs[0], inputs[1]), (layer.weight, dense.weight), (layer.bias, dense.bias))
        for got, want in pairs:
            assert (got.grad is None) == (want.grad is None)
            if want.grad is not None:
                where = mask if want.grad.dim() == 2 and want.grad.shape == mask.shape else 1
                torch.testing.assert_close(got.grad * where, want.grad * where, rtol=2e-2, atol=0.3)


@pytest.mark.parametrize("low", [False, True])
def test_without_gradients(low, calls):
    layer, _, dense = make()
    x = torch.randn(5, COLS)
    with autocast(low), torch.no_grad():
        torch.testing.assert_close(layer(x), dense(x), rtol=2e-2, atol=1e-1)
    assert (calls.forward, layer.product.aside) == (1, None)


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("chosen", [CHOICES[2], CHOICES[4], CHOICES[7]], ids=by_name)
def test_double_backward_is_an_error(chosen, low):
    layer, _, _ = make(chosen)
    x = torch.randn(3, COLS, requires_grad=True)
    with autocast(low):
        y = layer(x)
    (grad,) = torch.autograd.grad(y.float().square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        grad.sum().backward()


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant, calls):
    layer, mask, dense = make()
    for one in (layer, dense):
        x = torch.ones(5, COLS, requires_grad=True)
        with autocast(True):
            y = checkpoint(one, x, use_reentrant=reentrant)
        y.sum().backward()
    torch.testing.assert_close(layer.weight.grad, dense.weight.grad * mask, rtol=2e-2, atol=0.2)
    assert calls.forward == 2


def test_a_weight_that_changes_before_backward_is_noticed():
    layer, _, _ = make()
    y = layer(torch.randn(3, COLS, requires_grad=True))
    with torch.no_grad():
        layer.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_what_steps_aside(calls):
    layer, _, dense = make()
    x = torch.randn(3, COLS)
    weight = torch.randn(ROWS, COLS)
    assert torch.equal(torch.func.functional_call(layer, {"weight": weight}, (x,)), linear(x, weight, layer.bias))
    with torch.no_grad():
        assert torch.equal(torch.func.vmap(layer)(x), torch.func.vmap(dense)(x))
    for wrong in (x.double(), x.to(HALF), x[:, 1:]):
        with pytest.raises(RuntimeError) as ours:
            layer(wrong)
        with pytest.raises(RuntimeError) as theirs:
            dense(wrong)
        assert str(ours.value) == str(theirs.value)
    assert torch.equal(layer(x[:0]), dense(x[:0]))
    with autocast(True), pytest.raises(RuntimeError, match="dtype"):
        layer(x.double())
    assert calls.forward == 0


def test_numbers_of_samples_far_from_the_plans(calls):
    layer, _, _ = make(samples=8, favours=lambda n: n == 100)
    for samples, forwards in ((8, 1), (4, 2), (16, 3), (3, 3), (17, 3), (100, 4)):
        layer(torch.randn(samples, COLS))
        assert calls.forward == forwards


def test_weights_that_leave_the_mask_are_seen(calls):
    layer, mask, _ = make()
    x = torch.randn(3, COLS)
    with torch.no_grad():
        layer.weight[mask] += 1
    layer(x)
    assert calls.forward == 1
    with torch.no_grad():
        layer.weight.add_(1)
    torch.testing.assert_close(layer(x), linear(x, layer.weight, layer.bias))
    assert layer.product.aside == "the weight was written to outside of its mask"
    assert calls.forward == 1


def test_on_a_gpu_nobody_looks_at_the_weight(calls, monkeypatch):
    """A step must not wait: a weight that was written to is dense until somebody vouches for it; a start may look."""
    layer, mask, _ = make()
    x, product, looks = torch.randn(3, COLS), layer.product, []
    monkeypatch.setattr(BlockProduct, "_look", lambda self, version: looks.append(version) or True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.Tensor, "is_cpu", property(lambda self: False))
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
    product.start(product.topology, ALL_SPARSE, 0, None)
    assert len(looks) == 1

    def write():
        with torch.no_grad():
            layer.weight[mask] += 1

    write()  # a state that is loaded after the plan
    layer(x)
    assert (calls.forward, len(looks)) == (1, 2)
    product.weight_is_masked()  # an update
    layer(x)
    write()
    layer(x)
    assert (calls.forward, product.aside) == (2, WRITTEN)
    product.weight_is_masked()
    layer(x)
    assert (calls.forward, product.aside) == (3, "")
    write()
    product.vouch = lambda: True
    layer(x)
    product.vouch = lambda: False
    write()
    layer(x)
    assert (calls.forward, product.aside, len(looks)) == (4, WRITTEN, 2)


@pytest.mark.parametrize("low", [False, True])
def test_observing_notes_the_dtype(low, fresh):
    layer, _, _ = make()
    for forward in (layer, torch.compile(layer, backend="aot_eager", fullgraph=True)):
        layer.product.calls = Calls()
        layer.product.start_observing()
        with autocast(low):
            forward(torch.randn(3, COLS))
        assert layer.product.observed() == Observation(3, False, "", "bfloat16" if low else "")


def test_calls_of_dtypes_are_kept_as_data():
    calls = Calls()
    calls.note(8, True, "", "bfloat16")
    calls.note(8, True, "", "bfloat16")
    calls.note(4, True, "")
    assert calls.to_dict()["latest"] == [[8, "", 2, "bfloat16"], [4, "", 1]]
    assert Calls.from_dict(calls.to_dict()).observed() == Observation(8, True, "", "bfloat16")
    for bad in ([8, "", 2, 3], [8, "", 2, "bfloat16", 1], [8, ""]):
        with pytest.raises(ValueError, match=r"latest must hold \[samples, obstacle, count\] of calls, a dtype"):
            Calls.from_dict({"first": [], "latest": [bad], "input_gradient": True})


REFUSALS = {
    "float64": (lambda: nn.Linear(64, 32, dtype=torch.float64), PATTERN, "no sparse kernels for torch.float64"),
    "meta": (lambda: nn.Linear(64, 32, device="meta"), PATTERN, "no sparse kernels on meta"),
    "pattern": (
        lambda: nn.Linear(64, 32),
        "block:4x1",
        "no sparse kernels for pattern 'block:4x1', only for blocks of",
    ),
    "empty": (lambda: nn.Linear(0, 32), PATTERN, "the weight has no elements"),
    "own forward": (lambda: type("Mine", (nn.Linear,), {"forward": lambda self, x: x})(64, 32), PATTERN, "Mine has a"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_layers_that_stay_dense(case):
    make_layer, pattern, why = REFUSALS[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = make_layer()
    wrap(layer)
    assert BlockProduct.refusal(layer, layer.weight, pattern).startswith(why)


def test_which_product_a_layer_gets():
    layer = nn.Linear(2, 2)
    for pattern, kind in (
        ("block:32x128", BlockProduct),
        ("block:4x1", LinearProduct),
        ("unstructured", LinearProduct),
    ):
        for device in ("cpu", "cuda"):
            assert product_type(layer, pattern, device) is kind
    assert product_type(nn.Conv2d(1, 1, 1), PATTERN, "cpu") is None


def test_what_is_missing():
    assert BlockProduct.missing(False, PATTERN, "cpu") == "no sparse kernels on cpu for pattern 'block:32x64'"
    assert BlockProduct.missing(True, PATTERN, "cuda") == "no half-precision kernels for pattern 'block:32x64'"
    if not torch.version.cuda:
        why = BlockProduct.missing(False, PATTERN, "cuda")
        assert why == f"no Triton kernels: torch {torch.__version__} is built without CUDA"


def test_on_a_gpu_every_way_to_go_about_it_is_a_candidate(monkeypatch):
    product = make()[0].product
    topology = product.topology
    trial = product.trial(
        nn.Linear(COLS, ROWS), PATTERN, topology.bits, Observation(4096, True), lambda: topology, False
    )
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
    for name in PRODUCTS:
        dense, default, *others = trial.kernels(name)
        assert (dense, default) == (DENSE, SPARSE)
        assert 1 <= len(others) <= 5
        for kernel in others:
            assert is_kernel(kernel)
            assert product.unknown(name, kernel, PATTERN) is None
            assert trial.work(name, kernel).cached > 0


def test_configs_of_elsewhere():
    product = make()[0].product
    assert product.unknown(FORWARD, SPARSE, PATTERN) is None
    assert product.unknown(FORWARD, "sparse 64x32 w4 s3", PATTERN) is None
    assert product.unknown(FORWARD, "sparse quantum", PATTERN).startswith(
        "there is no kernel 'sparse quantum' here: config"
    )
    assert "a depth that goes with" in product.unknown(FORWARD, "sparse 64x128 w4 s3", PATTERN)  # blocks are 64 wide


def test_configs_that_need_more_shared_memory_than_there_is(monkeypatch):
    product = make()[0].product
    product.calls.latest[4096, "", "bfloat16"] += 1
    kernel = "sparse 256x64 w8 s4"
    assert product.unknown(FORWARD, kernel, "block:128x128") is None  # as if on a card of 9.0
    monkeypatch.setattr("acdc_kernels.nn.block_linear.machine", lambda device: (108, (8, 0)))
    why = "kernel 'sparse 256x64 w8 s4' may take 197,632 bytes of shared memory, of which this GPU has 166,912"
    assert product.unknown(FORWARD, kernel, "block:128x128") == why
    assert product.unknown(FORWARD, "sparse 256x64 w8 s3", "block:128x128") is None


def test_to_judge_another_number_of_samples_nobody_counts_the_mask(monkeypatch):
    product = make()[0].product
    topology = product.topology
    monkeypatch.setattr(
        "acdc_kernels.nn.block_linear.count_bits", lambda bits: pytest.fail("a GPU would be waited for")
    )
    trial = product.trial(nn.Linear(COLS, ROWS), PATTERN, topology.bits, Observation(9, True), lambda: topology, False)
    assert trial.kept == topology.kept


# Compiled


def test_compiled_layers_share_a_graph(fresh):
    counter = CompileCounterWithBackend("aot_eager")
    layers = [make()[0] for _ in range(10)]
    x = torch.randn(3, COLS, requires_grad=True)
    for layer in layers:
        layer.compile(backend=counter, fullgraph=True)
        torch.testing.assert_close(layer(x), linear(x, layer.weight, layer.bias), rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 1


@pytest.mark.parametrize("low", [False, True])
def test_compiled_it_follows_every_change(low, fresh, calls):
    layer, mask, dense = make(samples=8)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True, dynamic=True)
    x = torch.randn(8, COLS, requires_grad=True)
    topology = layer.product.topology

    def gradient(of, forward):
        with autocast(low):
            y = forward(x)
        return torch.autograd.grad(y.float().square().sum(), of.weight)[0]

    near = {"rtol": 5e-2, "atol": 3.0} if low else {"rtol": 1e-4, "atol": 1e-3}
    full = gradient(dense, dense)
    torch.testing.assert_close(gradient(layer, compiled), full * mask, **near)
    layer.product.stop()
    torch.testing.assert_close(gradient(layer, compiled), full, **near)
    layer.product.start(topology, {**ALL_SPARSE, FORWARD: DENSE}, 8, None)
    torch.testing.assert_close(gradient(layer, compiled), full * mask, **near)
    assert (calls.forward, calls.backward) == (1, 2)
    assert counter.frame_count == 1


def test_compiled_a_change_between_forward_and_backward(fresh):
    layer, _mask, dense = make()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = torch.randn(8, COLS, requires_grad=True)
    with autocast(True):
        y = compiled(x).float().sum()
    topology = layer.product.topology
    layer.product.stop()
    layer.product.start(topology, ALL_SPARSE, 0, None)
    y.backward()
    with autocast(True):
        dense(x).float().sum().backward()
    torch.testing.assert_close(layer.weight.grad, dense.weight.grad, rtol=2e-2, atol=0.2)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_mask_that_changes_before_backward_is_an_error(compiled, fresh):
    layer, _mask, _dense = make()
    forward = torch.compile(layer, backend="aot_eager", fullgraph=True) if compiled else layer
    y = forward(torch.randn(8, COLS, requires_grad=True)).square().sum()
    layer.product.topology.bits[0] ^= 1
    with pytest.raises(RuntimeError, match="backward must find the mask of its forward, but its mask was changed in"):
        y.backward()


def test_the_opaque_op():
    layer, mask, _ = make({**ALL_SPARSE, INPUT_GRADIENT: DENSE})
    x = torch.randn(5, COLS, requires_grad=True)
    args = (x, layer.weight, layer.bias, layer.product.handle, True, True)
    torch.library.opcheck(planned_block_linear_op, args)
    torch.library.opcheck(planned_block_linear_op, (x.detach().to(HALF), *args[1:]))
    torch.set_default_device("meta")
    try:
        record = planned_block_linear_op(*args)[1]
    finally:
        torch.set_default_device(None)
    assert (record.device.type, record.dtype) == ("cpu", torch.int64)
    with FlopCounterMode(display=False) as counter:
        planned_block_linear_op(*args)[0].sum().backward()
    assert counter.get_total_flops() == 2 * 5 * (2 * int(mask.sum()) + mask.numel())


# What the plan sees


@pytest.mark.parametrize("dtype", ["", "bfloat16"])
@pytest.mark.parametrize("input_gradient", [True, False])
def test_trials_run_every_kernel_and_leave_no_trace(input_gradient, dtype):
    layer, mask, _ = make()
    product, topology = layer.product, layer.product.topology
    seen = Observation(9, input_gradient, "", dtype)
    trial = product.trial(layer, PATTERN, topology.bits, seen, lambda: topology, False)
    assert isinstance(trial, BlockTrial)
    assert trial.computed == (PRODUCTS if input_gradient else (FORWARD, WEIGHT_GRADIENT))
    state = torch.get_rng_state()
    of = trial.dtype
    kinds = {FORWARD: (9, ROWS, of), INPUT_GRADIENT: (9, COLS, of), WEIGHT_GRADIENT: (ROWS, COLS, torch.float32)}
    for name in trial.computed:
        results = []
        for kernel, forward in itertools.product((*trial.kernels(name), "sparse 64x32 w4 s3"), (DENSE, SPARSE)):
            result = trial.run(name, kernel, forward)()
            assert (*result.shape, result.dtype) == kinds[name]
            results.append(result * mask if name == WEIGHT_GRADIENT else result)
            work = trial.work(name, kernel)
            assert work.flops > 0
            assert (work.cached > 0) == (kernel != DENSE)
        for result in results[1:]:
            torch.testing.assert_close(result, results[0], rtol=2e-2, atol=2e-1)
    for chosen in (dict.fromkeys(trial.computed, DENSE), dict.fromkeys(trial.computed, SPARSE)):
        gradients = trial.step(chosen)()
        assert [g.dtype for g in gradients] == [of] * input_gradient + [torch.float32] * 2
    assert torch.equal(torch.get_rng_state(), state)
    assert layer.weight.grad is None


def test_keys_tell_apart_what_times_depend_on():
    def key(rows=256, cols=256, kept=32 * 1024, n=8, r=32, dtype="", of=torch.float32, input_gradient=True, bias=True):
        bias = torch.zeros(rows) if bias else None
        seen = Observation(n, input_gradient, "", dtype)
        return BlockTrial(
            BlockProduct, torch.zeros(rows, cols, dtype=of), bias, (rows, cols, kept, r, 32), seen, lambda: None
        ).key

    others = [
        {}, {"rows": 128}, {"cols": 128}, {"kept": 16 * 1024}, {"kept": 0}, {"n": 9}, {"r": 64}, {"dtype": "bfloat16"},
        {"of": HALF}, {"input_gradient": False}, {"bias": False},
    ]  # fmt: skip
    assert len({key(**other) for other in others}) == len(others)
