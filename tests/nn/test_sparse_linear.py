"""The product of a linear layer, by every choice of kernels: to its users, the layer that it was."""

from __future__ import annotations

import copy
import itertools
import pickle
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from acdc_kernels import _native, pack_mask
from acdc_kernels.nn import linear_passes, sparse_linear, unwrap, wrap
from acdc_kernels.nn.planned_linear import planned_linear_op
from acdc_kernels.nn.product import DENSE, FORWARD, INPUT_GRADIENT, PRODUCTS, SPARSE, WEIGHT_GRADIENT, Observation
from acdc_kernels.nn.sparse_linear import LinearProduct, LinearTrial
from acdc_kernels.ops._registry import has_kernel

pytestmark = pytest.mark.usefixtures("quiet_references")

ROWS, COLS = 24, 37
CHOICES = [dict(zip(PRODUCTS, kernels, strict=True)) for kernels in itertools.product((DENSE, SPARSE), repeat=3)]
ALL_SPARSE = dict.fromkeys(PRODUCTS, SPARSE)


@pytest.fixture
def sparse_calls(monkeypatch):
    """How often the sparse ops were called."""
    calls = SimpleNamespace(forward=0, backward=0)
    forward, backward = linear_passes.sparse_linear_op, linear_passes.sparse_linear_backward_op

    def count_forward(*args):
        calls.forward += 1
        return forward(*args)

    def count_backward(*args):
        calls.backward += 1
        return backward(*args)

    monkeypatch.setattr(linear_passes, "sparse_linear_op", count_forward)
    monkeypatch.setattr(linear_passes, "sparse_linear_backward_op", count_backward)
    return calls


def make(chosen=ALL_SPARSE, samples=0, bias=True, density=0.2, favours=None, pattern="unstructured", seed=0):
    """(a masked layer that runs by ``chosen``, its mask, the same layer dense)."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(COLS, ROWS, bias=bias)
    mask = torch.rand(ROWS, COLS, generator=generator) < density
    if pattern == "block:4x1":
        mask = mask[::4].repeat_interleave(4, 0)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(ROWS, COLS, generator=generator) * mask)
        if bias:
            layer.bias.copy_(torch.randn(ROWS, generator=generator))
    dense = copy.deepcopy(layer)
    wrap(layer)
    layer.product = product = LinearProduct(layer.weight)
    product.start(product.build(pack_mask(mask), pattern), chosen, samples, favours)
    return layer, mask, dense


def agree(layer, dense, mask, x, chosen):
    """Outputs and gradients are the dense layer's; a sparse weight gradient is +0.0 outside of the mask."""
    x = x.detach().clone().requires_grad_()
    other = x.detach().clone().requires_grad_()
    layer.zero_grad()
    dense.zero_grad()
    y, expected = layer(x), dense(other)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(7))
    y.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(x.grad, other.grad, rtol=1e-5, atol=1e-5)
    want = dense.weight.grad * mask if chosen[WEIGHT_GRADIENT] == SPARSE else dense.weight.grad
    torch.testing.assert_close(layer.weight.grad, want, rtol=1e-5, atol=1e-4)
    if chosen[WEIGHT_GRADIENT] == SPARSE:
        assert not layer.weight.grad[~mask].view(torch.int32).any()
    if layer.bias is not None:
        torch.testing.assert_close(layer.bias.grad, dense.bias.grad, rtol=1e-5, atol=1e-4)


INPUTS = {
    "matrix": torch.randn(17, COLS),
    "no leading dimensions": torch.randn(COLS),
    "three dimensions": torch.randn(3, 5, COLS),
    "transposed": torch.randn(COLS, 19).t(),
    "every other": torch.randn(8, 2 * COLS)[:, ::2],
    "expanded": torch.randn(1, COLS).expand(6, COLS),
    "one sample": torch.randn(1, COLS),
    "no samples": torch.randn(0, COLS),
    "no samples, three dimensions": torch.randn(4, 0, COLS),
}


@pytest.mark.parametrize("chosen", CHOICES, ids=lambda chosen: "-".join(chosen.values()))
@pytest.mark.parametrize("shape", INPUTS)
def test_every_choice_and_input(shape, chosen):
    layer, mask, dense = make(chosen)
    agree(layer, dense, mask, INPUTS[shape], chosen)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("pattern", ["unstructured", "block:4x1"])
@pytest.mark.parametrize("density", [0.0, 0.05, 1.0])
def test_masks(density, pattern, bias):
    layer, mask, dense = make(density=density, pattern=pattern, bias=bias)
    agree(layer, dense, mask, INPUTS["matrix"], ALL_SPARSE)


@pytest.mark.parametrize("chosen", CHOICES, ids=lambda chosen: "-".join(chosen.values()))
def test_the_ops_that_were_chosen_run(chosen, sparse_calls):
    layer, _, _ = make(chosen)
    layer(torch.randn(3, COLS, requires_grad=True)).sum().backward()
    assert sparse_calls.forward == (chosen[FORWARD] == SPARSE)
    assert sparse_calls.backward == (SPARSE in (chosen[INPUT_GRADIENT], chosen[WEIGHT_GRADIENT]))


@pytest.mark.parametrize("chosen", CHOICES, ids=lambda chosen: "-".join(chosen.values()))
@pytest.mark.parametrize("need", list(itertools.product((False, True), repeat=3)), ids=str)
def test_only_the_gradients_that_are_needed(need, chosen):
    layer, mask, dense = make(chosen)
    for one in (layer, dense):
        one.weight.requires_grad_(need[1])
        one.bias.requires_grad_(need[2])
    x = torch.randn(5, COLS)
    inputs = [x.clone().requires_grad_(need[0]) for _ in range(2)]
    outputs = [one(i) for one, i in zip((layer, dense), inputs, strict=True)]
    assert outputs[0].requires_grad == outputs[1].requires_grad == any(need)
    if any(need):
        for y in outputs:
            y.square().sum().backward()
        for got, want in ((inputs[0], inputs[1]), (layer.bias, dense.bias)):
            assert (got.grad is None) == (want.grad is None)
            if want.grad is not None:
                torch.testing.assert_close(got.grad, want.grad, rtol=1e-4, atol=1e-4)
        assert (layer.weight.grad is None) == (dense.weight.grad is None)
        if dense.weight.grad is not None:
            torch.testing.assert_close(layer.weight.grad * mask, dense.weight.grad * mask, rtol=1e-4, atol=1e-4)


def test_without_gradients(sparse_calls):
    layer, _, dense = make()
    x = torch.randn(5, COLS)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            y = layer.eval()(x)
            torch.testing.assert_close(y, dense(x))
            assert not y.requires_grad
    assert sparse_calls.forward == 2


def test_the_weight_gradient_is_the_callers(sparse_calls):
    layer, _mask, _ = make()
    x = torch.randn(4, COLS)
    grads = []
    for _ in range(2):
        layer.zero_grad()
        layer(x).sum().backward()
        grads.append(layer.weight.grad)
    assert grads[0] is not grads[1]
    assert torch.equal(*grads)
    assert grads[0].is_contiguous()
    assert sparse_calls.backward == 2


def test_gradients_accumulate():
    layer, mask, dense = make()
    for i in range(3):
        x = torch.randn(4 + i, COLS)
        layer(x).square().sum().backward()
        dense(x).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, dense.weight.grad * mask, rtol=1e-4, atol=1e-4)


def test_a_layer_used_twice_in_a_forward():
    torch.manual_seed(0)
    layer, mask, dense = make()
    back = nn.Linear(ROWS, COLS)
    x = torch.randn(4, COLS)
    layer(torch.tanh(back(layer(x)))).square().sum().backward()
    dense(torch.tanh(back(dense(x)))).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, dense.weight.grad * mask, rtol=1e-4, atol=1e-4)


def test_backward_twice_through_one_forward():
    layer, mask, dense = make()
    x = torch.randn(4, COLS)
    y, expected = layer(x).square().sum(), dense(x).square().sum()
    for loss in (y, expected):
        loss.backward(retain_graph=True)
        loss.backward()
    torch.testing.assert_close(layer.weight.grad, dense.weight.grad * mask, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("chosen", CHOICES[1:], ids=lambda chosen: "-".join(chosen.values()))
def test_double_backward_is_an_error(chosen):
    layer, _, _ = make(chosen)
    x = torch.randn(4, COLS, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    assert grad.requires_grad  # the first gradient is right, and may be used
    with pytest.raises(RuntimeError, match="sparse_linear: double backward is not supported"):
        grad.square().sum().backward()


@pytest.mark.parametrize("alone", ["weight", "input", "bias"])
def test_a_gradient_that_is_alone_can_be_kept(alone):
    layer, _, dense = make(bias=alone == "bias")
    x = torch.randn(4, COLS, requires_grad=alone == "input")
    for one in (layer, dense):
        one.weight.requires_grad_(alone == "weight")
    grads = []
    for one in (layer, dense):
        wanted = {"input": x, "weight": one.weight, "bias": one.bias}[alone]
        grads.append(torch.autograd.grad(one(x).square().sum(), wanted, create_graph=True)[0])
    assert grads[0].requires_grad
    inside = dense.weight != 0 if alone == "weight" else True
    torch.testing.assert_close(grads[0], grads[1] * inside, rtol=1e-5, atol=1e-4)
    with pytest.raises(RuntimeError, match="sparse_linear: double backward is not supported"):
        grads[0].square().sum().backward()


@pytest.mark.parametrize("chosen", CHOICES, ids=lambda chosen: "-".join(chosen.values()))
def test_only_the_gradients_that_are_asked_for(chosen, monkeypatch):
    layer, mask, dense = make(chosen)
    x = torch.randn(5, COLS, requires_grad=True)
    asked, backward = [], sparse_linear.linear_backward
    monkeypatch.setattr(sparse_linear, "linear_backward", lambda *args: asked.append(args[-2:]) or backward(*args))
    inside = mask if chosen[WEIGHT_GRADIENT] == SPARSE else torch.ones_like(mask)
    for names in (("x",), ("weight",), ("bias",), ("weight", "x")):
        own, others = ([{"x": x}.get(name, getattr(one, name, None)) for name in names] for one in (layer, dense))
        grads = torch.autograd.grad(layer(x).square().sum(), own)
        expected = torch.autograd.grad(dense(x).square().sum(), others)
        for name, grad, other in zip(names, grads, expected, strict=True):
            torch.testing.assert_close(grad, other * inside if name == "weight" else other, rtol=1e-5, atol=1e-4)
    layer(2 * x).sum().backward(inputs=[x])
    assert layer.weight.grad is None
    assert asked == [(True, False), (False, True), (False, False), (True, True), (True, False)]


def test_a_weight_that_changes_before_backward_is_noticed():
    layer, _, _ = make({**ALL_SPARSE, INPUT_GRADIENT: DENSE})
    y = layer(torch.randn(4, COLS, requires_grad=True)).sum()
    with torch.no_grad():
        layer.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant, sparse_calls):
    layer, mask, dense = make()
    x = torch.randn(4, COLS, requires_grad=True)
    checkpoint(lambda x: layer(x).square(), x, use_reentrant=reentrant).sum().backward()
    dense(x).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, dense.weight.grad * mask, rtol=1e-4, atol=1e-4)
    assert sparse_calls.forward == 2


def test_hooks_run_and_saved_tensors_can_be_packed():
    layer, mask, dense = make()
    seen = []
    layer.register_forward_hook(lambda *_: seen.append("forward"))
    layer.register_full_backward_hook(lambda *_: seen.append("backward"))
    x = torch.randn(4, COLS, requires_grad=True)
    with torch.autograd.graph.save_on_cpu():
        y = layer(x)
    y.sum().backward()
    dense(x).sum().backward()
    assert seen == ["forward", "backward"]
    torch.testing.assert_close(layer.weight.grad, dense.weight.grad * mask, rtol=1e-4, atol=1e-4)


def test_inf_and_nan_act_as_with_kept_weights_alone():
    layer, mask, _ = make()
    x = torch.randn(6, COLS)
    x[1, 3], x[2, 5] = float("inf"), float("nan")
    y = layer(x)
    for sample, column in ((1, 3), (2, 5)):
        assert torch.equal(y[sample].isfinite(), ~mask[:, column])


# What steps aside: the layer's own forward runs.


def test_other_dtypes_and_devices_step_aside(sparse_calls):
    layer, _, dense = make()
    with pytest.raises(RuntimeError, match="must have the same dtype"):
        layer(torch.randn(2, COLS, dtype=torch.float64))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(2, COLS)).dtype == torch.bfloat16
    layer.double()
    torch.testing.assert_close(layer(torch.ones(2, COLS).double()), dense.double()(torch.ones(2, COLS).double()))
    assert sparse_calls.forward == 0


def test_misfits_are_told_in_torchs_words(sparse_calls):
    layer, _, dense = make()
    for x in (torch.randn(3, COLS + 1), torch.randn(())):
        with pytest.raises(RuntimeError) as mine:
            layer(x)
        with pytest.raises(RuntimeError) as theirs:
            dense(x)
        assert str(mine.value) == str(theirs.value)
    layer.bias.data = torch.zeros(ROWS - 1)
    with pytest.raises(RuntimeError):
        layer(torch.randn(3, COLS))
    assert sparse_calls.forward == 0


def test_functional_call(sparse_calls):
    layer, _, dense = make()
    other = {"weight": torch.randn(ROWS, COLS), "bias": torch.randn(ROWS)}
    x = torch.randn(3, COLS)
    y = torch.func.functional_call(layer, other, (x,))
    torch.testing.assert_close(y, linear(x, **other))
    assert sparse_calls.forward == 0
    own = dict(layer.named_parameters())
    torch.testing.assert_close(torch.func.functional_call(layer, own, (x,)), dense(x))
    assert sparse_calls.forward == 1


def test_transforms_of_torch_func(sparse_calls):
    layer, _, dense = make()
    x = torch.randn(5, COLS)
    torch.testing.assert_close(torch.func.vmap(layer)(x), dense(x))
    torch.testing.assert_close(
        torch.func.grad(lambda x: layer(x).sum())(x), torch.func.grad(lambda x: dense(x).sum())(x)
    )
    torch.testing.assert_close(torch.func.jvp(layer, (x,), (x,))[1], torch.func.jvp(dense, (x,), (x,))[1])
    hessian = torch.func.hessian(lambda x: layer(x).square().sum())
    torch.testing.assert_close(hessian(x[0]), torch.func.hessian(lambda x: dense(x).square().sum())(x[0]))
    assert sparse_calls.forward == 0


def test_forward_mode(sparse_calls):
    from torch.autograd import forward_ad

    layer, _, _dense = make()
    with forward_ad.dual_level():
        x = forward_ad.make_dual(torch.randn(2, COLS), torch.ones(2, COLS))
        assert forward_ad.unpack_dual(layer(x)).tangent is not None
    assert sparse_calls.forward == 0


def test_subclasses_and_meta(sparse_calls):
    class Mine(torch.Tensor):
        pass

    layer, _, _dense = make()
    assert type(layer(torch.randn(2, COLS).as_subclass(Mine))) is Mine
    with torch.device("meta"), pytest.raises((RuntimeError, NotImplementedError)):
        layer(torch.randn(2, COLS))
    assert sparse_calls.forward == 0


def test_tracing_and_exporting(sparse_calls):
    layer, _, dense = make()
    x = torch.randn(2, COLS)
    program = torch.export.export(layer, (x,))
    assert "planned" not in str(program.graph)
    torch.testing.assert_close(program.module()(x), dense(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(layer, (x,), check_trace=False)
    torch.testing.assert_close(traced(x), dense(x))
    assert sparse_calls.forward == 0


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_are_dense(how, sparse_calls):
    layer, _, _ = make()
    other = copy.deepcopy(layer) if how == "deepcopy" else pickle.loads(pickle.dumps(layer))
    assert other.product is None
    with torch.no_grad():
        other.weight.add_(1)
    x = torch.randn(2, COLS)
    torch.testing.assert_close(other(x), linear(x, other.weight, other.bias))
    assert sparse_calls.forward == 0
    assert layer.product is not None


def test_a_weight_average_is_dense(sparse_calls):
    layer, _, _ = make()
    average = torch.optim.swa_utils.AveragedModel(layer)
    with torch.no_grad():
        layer.weight.add_(layer.weight)
    average.update_parameters(layer)
    x = torch.randn(2, COLS)
    torch.testing.assert_close(average(x), linear(x, average.module.weight, average.module.bias))
    assert sparse_calls.forward == 0


def test_weights_that_leave_the_mask_are_seen(sparse_calls):
    layer, _mask, _dense = make()
    x = torch.randn(3, COLS)
    layer(x)
    assert sparse_calls.forward == 1
    inside = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    outside = {"weight": torch.randn(ROWS, COLS), "bias": inside["bias"]}
    for _ in range(2):  # as when an average of weights is swapped in for an evaluation, and out again
        layer.load_state_dict(outside)
        torch.testing.assert_close(layer(x), linear(x, **outside))
        torch.testing.assert_close(layer(x), linear(x, **outside))
        layer.load_state_dict(inside)
        torch.testing.assert_close(layer(x), linear(x, **inside))
    assert sparse_calls.forward == 3
    layer.weight.data = outside["weight"]
    torch.testing.assert_close(layer(x), linear(x, **outside))
    assert sparse_calls.forward == 3
    layer.weight.data = inside["weight"]
    layer(x)
    assert sparse_calls.forward == 4


def test_a_nan_outside_of_the_mask_is_seen(sparse_calls):
    layer, mask, _ = make()
    with torch.no_grad():
        layer.weight[~mask] = float("nan")
    assert layer(torch.ones(2, COLS)).isnan().all()
    assert sparse_calls.forward == 0


def test_a_parametrization_that_comes_later(sparse_calls):
    layer, _, dense = make()
    nn.utils.parametrizations.weight_norm(layer)
    x = torch.randn(2, COLS)
    torch.testing.assert_close(layer(x), dense(x), rtol=1e-4, atol=1e-4)
    assert sparse_calls.forward == 0


def test_numbers_of_samples_far_from_the_plans(sparse_calls):
    asked = []
    layer, _, dense = make(samples=8, favours=lambda n: asked.append(n) or n > 100)
    for n, sparse in ((8, True), (4, True), (16, True), (3, False), (17, False), (200, True), (3, False), (0, False)):
        before = sparse_calls.forward
        x = torch.randn(n, COLS)
        torch.testing.assert_close(layer(x), dense(x), rtol=1e-4, atol=1e-4)
        assert sparse_calls.forward - before == sparse, n
    assert asked == [3, 17, 200]


def test_stopping_between_forward_and_backward():
    layer, mask, dense = make()
    x = torch.randn(4, COLS, requires_grad=True)
    y = layer(x)
    layer.product.stop()
    y.square().sum().backward()
    dense(x).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, dense.weight.grad * mask, rtol=1e-4, atol=1e-4)
    assert layer.product.topology is None
    torch.testing.assert_close(layer(x), dense(x))


def test_unwrapping_takes_the_product_away():
    layer, _, _ = make()
    unwrap(layer)
    assert type(layer) is nn.Linear
    assert "product" not in vars(layer)


def test_the_flop_counter_counts_kept_weights():
    layer, mask, _ = make()
    x = torch.randn(5, COLS, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        layer(x).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 5 * int(mask.sum())


# Observing


def observing(**settings):
    layer, _, dense = make(**settings)
    layer.product.stop()
    layer.product.start_observing()
    return layer, dense


def test_observing_notes_training_forwards_alone(sparse_calls):
    layer, dense = observing()
    x = torch.randn(6, COLS)
    with torch.no_grad():
        layer(x)
    assert layer.product.observed() is None
    assert torch.equal(layer(x), dense(x))
    assert layer.product.observed() == Observation(6, False)
    layer(torch.randn(2, 3, COLS, requires_grad=True))
    for n in (5, 5, 9):
        layer(torch.randn(n, COLS))
    layer(torch.randn(0, COLS))
    assert layer.product.observed() == Observation(6, True)
    assert sparse_calls.forward == 0


def test_observing_notes_what_stands_in_the_way():
    layer, _ = observing()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(torch.randn(2, COLS))
    assert layer.product.observed() == Observation(2, False, "autocast to torch.bfloat16")
    layer(torch.randn(7, COLS))
    layer(torch.randn(7, COLS))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(torch.randn(2, COLS))
    assert layer.product.observed() == Observation(7, False)  # of as many calls
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(torch.randn(3, COLS))
    assert layer.product.observed() == Observation(2, False, "autocast to torch.bfloat16")


REFUSALS = {
    "float64": (lambda: nn.Linear(3, 2, dtype=torch.float64), "unstructured", "no sparse kernels for torch.float64"),
    "meta": (lambda: nn.Linear(3, 2, device="meta"), "unstructured", "no sparse kernels on meta"),
    "pattern": (lambda: nn.Linear(4, 2), "2:4", "no sparse kernels for pattern '2:4', only for 'unstructured' and"),
    "empty": (lambda: nn.Linear(0, 2), "unstructured", "the weight has no elements"),
    "own forward": (
        lambda: type("Mine", (nn.Linear,), {"forward": lambda self, x: x})(2, 2),
        "unstructured",
        "Mine has a",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_layers_that_stay_dense(case):
    make_layer, pattern, why = REFUSALS[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = make_layer()
    wrap(layer)
    assert LinearProduct.refusal(layer, layer.weight, pattern).startswith(why)


# Compiled


@pytest.fixture
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("chosen", CHOICES, ids=lambda chosen: "-".join(chosen.values()))
@pytest.mark.parametrize("shape", ["matrix", "no leading dimensions", "three dimensions", "transposed"])
def test_compiled_as_eager(chosen, shape, fresh):
    layer, mask, dense = make(chosen)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    compiled.product = layer.product
    compiled.weight, compiled.bias = layer.weight, layer.bias
    agree(compiled, dense, mask, INPUTS[shape], chosen)


def test_compiled_it_follows_every_change(fresh, sparse_calls):
    layer, mask, dense = make(samples=8)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True, dynamic=True)
    x = torch.randn(8, COLS, requires_grad=True)
    topology = layer.product.topology

    def both():
        layer.zero_grad()
        compiled(x).square().sum().backward()
        return layer.weight.grad

    full = torch.autograd.grad(dense(x).square().sum(), dense.weight)[0]
    torch.testing.assert_close(both(), full * mask, rtol=1e-4, atol=1e-4)
    layer.product.stop()
    torch.testing.assert_close(both(), full, rtol=1e-4, atol=1e-4)
    layer.product.start_observing()
    both()
    assert layer.product.observed() == Observation(8, True)
    layer.product.start(topology, {**ALL_SPARSE, FORWARD: DENSE}, 8, None)
    torch.testing.assert_close(both(), full * mask, rtol=1e-4, atol=1e-4)
    assert (sparse_calls.forward, sparse_calls.backward) == (1, 2)
    compiled(torch.randn(3, COLS, requires_grad=True)).sum().backward()  # far from the plan's samples
    assert (sparse_calls.forward, sparse_calls.backward) == (1, 2)
    assert counter.frame_count == 1


def test_compiled_a_change_between_forward_and_backward(fresh):
    layer, _mask, dense = make()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = torch.randn(8, COLS, requires_grad=True)
    y = compiled(x).square().sum()
    topology = layer.product.topology
    layer.product.stop()
    layer.product.start(topology, ALL_SPARSE, 0, None)
    y.backward()
    dense(x).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, dense.weight.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_mask_that_changes_before_backward_is_an_error(compiled, fresh):
    layer, _mask, _dense = make()
    forward = torch.compile(layer, backend="aot_eager", fullgraph=True) if compiled else layer
    y = forward(torch.randn(8, COLS, requires_grad=True)).square().sum()
    layer.product.topology.bits[0] ^= 1
    with pytest.raises(RuntimeError, match="backward must find the mask of its forward, but its mask was changed in"):
        y.backward()


@pytest.mark.parametrize("compiled", [False, True])
def test_a_mask_that_changes_makes_forwards_dense(compiled, fresh, sparse_calls):
    layer, _mask, dense = make()
    forward = torch.compile(layer, backend="aot_eager", fullgraph=True) if compiled else layer
    x = torch.randn(8, COLS, requires_grad=True)
    forward(x)
    layer.product.topology.bits[:4] = 255
    assert torch.equal(forward(x), dense(x))
    assert sparse_calls.forward == 1
    assert layer.product.mask_changed()
    assert layer.product.aside == "its mask was changed in place in this phase"


def test_the_opaque_ops_know_their_device():
    layer, _, dense = make()
    x = torch.randn(4, COLS)
    torch.set_default_device("meta")
    try:
        other = LinearProduct(layer.weight)
        assert other.handle.device.type == "cpu"
        y, _, record = planned_linear_op(x, layer.weight, layer.bias, layer.product.handle, True, False)
    finally:
        torch.set_default_device(None)
    assert (record.device.type, record.dtype) == ("cpu", torch.int64)
    torch.testing.assert_close(y, dense(x), rtol=1e-5, atol=1e-5)


def test_compiled_layers_share_a_graph(fresh):
    layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(12))
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    for layer in layers:
        wrap(layer)
        layer.product = LinearProduct(layer.weight)
        bits = pack_mask(torch.ones(8, 8, dtype=torch.bool))
        layer.product.start(layer.product.build(bits, "unstructured"), ALL_SPARSE, 0, None)
        layer.compile(backend=counter, fullgraph=True)
    x = want = torch.randn(3, 8, requires_grad=True)
    for layer in layers:
        x, want = layer(x), linear(want, layer.weight, layer.bias)
    torch.testing.assert_close(x, want)
    assert counter.frame_count == 1


def test_compiled_other_weights_are_seen(fresh, sparse_calls):
    layer, _, _ = make()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = torch.randn(3, COLS)
    compiled(x)
    with torch.no_grad():
        layer.weight.add_(1)
    torch.testing.assert_close(compiled(x), linear(x, layer.weight, layer.bias))
    assert sparse_calls.forward == 1


def test_the_opaque_ops_count_kept_weights():
    layer, mask, _ = make({**ALL_SPARSE, INPUT_GRADIENT: DENSE})
    x = torch.randn(5, COLS, requires_grad=True)
    args = (x, layer.weight, layer.bias, layer.product.handle, True, True)
    with FlopCounterMode(display=False) as counter:
        planned_linear_op(*args)[0].sum().backward()
        assert counter.get_total_flops() == 2 * 5 * (2 * int(mask.sum()) + mask.numel())
        layer.product.stop()
        planned_linear_op(*args)[0].sum().backward()
    assert counter.get_total_flops() == 2 * 5 * (2 * int(mask.sum()) + 4 * mask.numel())


@pytest.mark.skipif(not has_kernel(linear_passes.sparse_linear_op, "cpu"), reason="no compiled kernels")
def test_the_opaque_ops_are_no_references(fresh):
    _native._warn_once.cache_clear()
    layer, _mask, _dense = make()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*plain torch reference")
        torch.compile(layer, backend="aot_eager", fullgraph=True)(torch.randn(8, COLS)).sum().backward()


def test_the_opaque_ops_keep_torchs_rules():
    layer, _, _ = make()
    x = torch.randn(5, COLS, requires_grad=True)
    args = (x, layer.weight, layer.bias, layer.product.handle)
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(planned_linear_op, (*args, False, True), test_utils=checks)
    torch.library.opcheck(planned_linear_op, (*args, True, True), test_utils=checks[:2])


# What the plan sees


@pytest.mark.parametrize("format", ["bundles", "bundles-4x1"])
@pytest.mark.parametrize("input_gradient", [True, False])
def test_trials_run_every_kernel_and_leave_no_trace(input_gradient, format):
    pattern = {"bundles": "unstructured", "bundles-4x1": "block:4x1"}[format]
    layer, _, _ = make(pattern=pattern)
    product, topology = layer.product, layer.product.topology
    trial = product.trial(layer, pattern, topology.bits, Observation(9, input_gradient), lambda: topology, False)
    assert isinstance(trial, LinearTrial)
    assert trial.computed == (PRODUCTS if input_gradient else (FORWARD, WEIGHT_GRADIENT))
    state = torch.get_rng_state()
    shapes = {FORWARD: (9, ROWS), INPUT_GRADIENT: (9, COLS), WEIGHT_GRADIENT: (ROWS, COLS)}
    for product_name in trial.computed:
        results = []
        for kernel, forward in itertools.product(trial.kernels(product_name), (DENSE, SPARSE)):
            result = trial.run(product_name, kernel, forward)()
            result = result[0] if isinstance(result, tuple) else result
            assert tuple(result.shape) == shapes[product_name]
            results.append(result if product_name != WEIGHT_GRADIENT else result * (layer.weight != 0))
            assert trial.work(product_name, kernel).flops > 0
        for result in results[1:]:
            torch.testing.assert_close(result, results[0], rtol=1e-4, atol=1e-4)
    for chosen in (dict.fromkeys(trial.computed, DENSE), dict.fromkeys(trial.computed, SPARSE)):
        assert len(trial.step(chosen)()) == 2 + input_gradient
    assert torch.equal(torch.get_rng_state(), state)
    assert layer.weight.grad is None
    assert layer.weight.requires_grad


def test_keys_tell_apart_what_times_depend_on():
    def key(rows=64, cols=64, kept=400, n=8, format="bundles", input_gradient=True, bias=True):
        bias = torch.zeros(rows) if bias else None
        seen = Observation(n, input_gradient)
        return LinearTrial(LinearProduct, torch.zeros(rows, cols), bias, kept, format, seen, lambda: None).key

    base = key()
    assert key(kept=402) == base
    others = [
        key(rows=32),
        key(cols=32),
        key(kept=600),
        key(n=9),
        key(format="bundles-4x1"),
        key(bias=False),
        key(kept=0),
    ]
    assert len({base, *others, key(input_gradient=False)}) == 9
