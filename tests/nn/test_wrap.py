"""Wrapped layers: to their users, what they were before."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from acdc_kernels.nn import is_wrapped, unwrap, wrap


class Scaled(nn.Linear):
    """A user's own layer, with state and an argument of its own."""

    def __init__(self, n: int) -> None:
        super().__init__(n, n)
        self.register_buffer("scale", torch.full((), 2.0), persistent=False)
        self.calls = 0

    def forward(self, x, times=1):
        return super().forward(x) * self.scale * times


LAYERS = {
    "Linear": (lambda: nn.Linear(6, 4), (3, 6)),
    "Conv1d": (lambda: nn.Conv1d(2, 4, 3), (3, 2, 8)),
    "Conv2d": (lambda: nn.Conv2d(2, 4, 3, padding=1), (3, 2, 5, 5)),
    "Conv3d": (lambda: nn.Conv3d(2, 4, 3, groups=2), (2, 2, 4, 4, 4)),
    "Scaled": (lambda: Scaled(6), (3, 6)),
}


@pytest.fixture(params=LAYERS)
def pair(request):
    """A layer, the same layer wrapped, and an input."""
    make, shape = LAYERS[request.param]
    torch.manual_seed(0)
    plain = make()
    wrapped = copy.deepcopy(plain)
    wrap(wrapped)
    return plain, wrapped, torch.randn(shape)


def doubled(layer, x):
    return x * 2


def test_is_what_it_was(pair):
    plain, wrapped, x = pair
    assert is_wrapped(wrapped)
    assert not is_wrapped(plain)
    assert isinstance(wrapped, type(plain))
    assert type(wrapped).__module__ == type(plain).__module__
    assert repr(wrapped) == f"Sparse{plain!r}"
    assert list(wrapped.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in wrapped.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert vars(wrapped).keys() == vars(plain).keys()
    assert torch.equal(wrapped(x), plain(x))


def test_gradients_are_what_they_were(pair):
    plain, wrapped, x = pair
    for layer in (plain, wrapped):
        layer(x).square().sum().backward()
    for p, q in zip(plain.parameters(), wrapped.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_one_class_for_each_class():
    layers = [nn.Linear(2, 3), nn.Linear(4, 5), Scaled(2)]
    for layer in layers:
        wrap(layer)
    assert type(layers[0]) is type(layers[1]) is not type(layers[2])
    assert isinstance(layers[2], Scaled)


def test_forward_arguments_pass_through():
    layer = Scaled(3)
    x = torch.randn(2, 3)
    expected = layer(x, times=5)
    wrap(layer)
    assert torch.equal(layer(x, times=5), expected)
    assert torch.equal(layer(x, 5), expected)


def test_parameters_hooks_and_modes_stay():
    layer = nn.Linear(3, 3)
    seen = []
    layer.register_forward_hook(lambda *_: seen.append("forward"))
    layer.register_forward_pre_hook(lambda *_: seen.append("before"))
    weight = layer.weight
    layer.eval()
    wrap(layer)
    layer(torch.randn(1, 3))
    assert seen == ["before", "forward"]
    assert layer.weight is weight
    assert not layer.training
    assert layer.train().training
    assert layer.to(torch.float64).weight.dtype == torch.float64


def test_state_dict_loads_both_ways(pair):
    plain, wrapped, x = pair
    with torch.no_grad():
        for p in wrapped.parameters():
            p.add_(1)
    plain.load_state_dict(wrapped.state_dict())
    assert torch.equal(plain(x), wrapped(x))
    wrapped.load_state_dict(plain.state_dict())


@pytest.mark.parametrize("copied", ["deepcopy", "copy", *range(pickle.HIGHEST_PROTOCOL + 1), "torch.save"])
def test_copies_work(pair, copied):
    _, wrapped, x = pair
    wrapped.eval()
    if copied == "torch.save":
        file = io.BytesIO()
        torch.save(wrapped, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    elif isinstance(copied, int):
        other = pickle.loads(pickle.dumps(wrapped, copied))
    else:
        other = getattr(copy, copied)(wrapped)
    assert type(other) is type(wrapped)
    assert other is not wrapped
    assert not other.training
    assert torch.equal(other(x), wrapped(x))
    unwrap(other)
    assert not is_wrapped(other)
    assert is_wrapped(wrapped)


def test_product_takes_the_place_of_forward(pair):
    plain, wrapped, x = pair
    wrapped.product = doubled
    assert torch.equal(wrapped(x), 2 * x)
    for other in (copy.deepcopy(wrapped), pickle.loads(pickle.dumps(wrapped))):
        assert torch.equal(other(x), 2 * x)
    wrapped.product = None
    assert torch.equal(wrapped(x), plain(x))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_without_a_break(pair, backend):
    plain, wrapped, x = pair
    torch._dynamo.reset()
    compiled = torch.compile(wrapped, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(x), plain(x))
    compiled(x).sum().backward()
    plain(x).sum().backward()
    torch.testing.assert_close(wrapped.weight.grad, plain.weight.grad)
    wrapped.product = doubled
    torch.testing.assert_close(compiled(x), 2 * x)
    wrapped.product = None
    torch.testing.assert_close(compiled(x), plain(x))


def test_wrapping_after_compiling_is_seen():
    torch._dynamo.reset()
    layer = nn.Linear(3, 3)
    x = torch.randn(2, 3)
    compiled = torch.compile(nn.Sequential(layer), fullgraph=True, backend="eager")
    expected = compiled(x)
    wrap(layer)
    torch.testing.assert_close(compiled(x), expected)
    layer.product = doubled
    torch.testing.assert_close(compiled(x), 2 * x)


def test_fx_takes_it_for_a_leaf():
    layer = nn.Linear(3, 3)
    wrap(layer)
    graph = torch.fx.symbolic_trace(nn.Sequential(layer)).graph
    assert [node.op for node in graph.nodes] == ["placeholder", "call_module", "output"]


def test_export(pair):
    _, wrapped, x = pair
    program = torch.export.export(wrapped, (x,))
    torch.testing.assert_close(program.module()(x), wrapped(x))


def test_unwrap_takes_a_whole_model():
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Conv2d(1, 1, 1), Scaled(3)), nn.ReLU())
    before = [type(module) for module in model.modules()]
    for layer in (model[0], model[1][0], model[1][1]):
        wrap(layer)
        layer.product = doubled
    assert unwrap(model) is model
    assert [type(module) for module in model.modules()] == before
    assert not any("product" in vars(module) for module in model.modules())
    assert unwrap(model) is model


def test_unwrap_leaves_a_class_that_others_derived():
    layer = nn.Linear(3, 3)
    x = torch.randn(2, 3)
    expected = layer(x)
    wrap(layer)
    layer.__class__ = derived = type("Sharded", (type(layer),), {})
    layer.product = doubled
    unwrap(layer)
    assert type(layer) is derived
    assert torch.equal(layer(x), expected)


def test_wrapping_twice_is_an_error():
    layer = nn.Linear(2, 3)
    wrap(layer)
    with pytest.raises(ValueError, match="wrap: layer must not be wrapped already, got SparseLinear"):
        wrap(layer)
    with pytest.raises(ValueError, match="wrap: layer must not be wrapped already"):
        wrap(copy.deepcopy(layer))
