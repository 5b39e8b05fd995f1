"""The product of a layer with a 2:4 weight, with torch's kernels faked by dense ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from acdc_kernels import pack_mask, topk_mask, unpack_mask
from acdc_kernels.nn import product_type, wrap
from acdc_kernels.nn.product import DENSE, FORWARD, INPUT_GRADIENT, PRODUCTS, SEMI, SPARSE, WEIGHT_GRADIENT, Observation
from acdc_kernels.nn.semi_structured import SemiStructuredProduct
from acdc_kernels.plan import ONE_KERNEL, CostModel, Memory, Planner, Timer

ROWS, COLS, HALF = 32, 48, torch.bfloat16
CHOSEN = {FORWARD: SEMI, INPUT_GRADIENT: DENSE, WEIGHT_GRADIENT: DENSE}


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """The dtypes and shapes that torch's kernels were given."""
    seen = []

    def compress(weight):
        assert weight.is_contiguous()
        assert weight.unflatten(1, (-1, 4)).count_nonzero(2).max() <= 2
        return weight.clone()

    def multiply(compressed, dense, *, bias, transpose_result):
        assert transpose_result
        assert dense.t().is_contiguous()
        assert compressed.dtype == dense.dtype == (dense.dtype if bias is None else bias.dtype)
        seen.append((dense.dtype, tuple(dense.shape)))
        return nn.functional.linear(dense.t(), compressed, bias)

    monkeypatch.setattr(torch, "_cslt_compress", compress)
    monkeypatch.setattr(torch, "_cslt_sparse_mm", multiply)
    return seen


@pytest.fixture
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def make(dtype=HALF, bias=True, pattern="2:4", chosen=CHOSEN):
    torch.manual_seed(0)
    layer = nn.Linear(COLS, ROWS, bias=bias)
    mask = unpack_mask(topk_mask([layer.weight.detach()], None, pattern)[0], layer.weight.shape)
    with torch.no_grad():
        layer.weight.mul_(mask)
    layer.to(dtype)
    dense = copy.deepcopy(layer)
    wrap(layer)
    layer.product = product = SemiStructuredProduct(layer.weight)
    product.start(product.build(pack_mask(mask), pattern), chosen, 0, None)
    return layer, mask, dense


def gradients(layer, forward, x, low):
    x = x.detach().clone().requires_grad_()
    with torch.autocast("cpu", dtype=HALF, enabled=low):
        y = forward(x)
    return y, torch.autograd.grad(y.float().square().sum(), [x, *layer.parameters()])


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("pattern", ["2:4", "2:4-transposable"])
@pytest.mark.parametrize(("dtype", "low"), [(HALF, False), (torch.float16, False), (torch.float32, True)])
def test_as_the_layer_itself(dtype, low, pattern, bias, compiled, calls, fresh):
    layer, _, dense = make(dtype, bias, pattern)
    forward = torch.compile(layer, backend="aot_eager", fullgraph=True) if compiled else layer
    x = torch.randn(2, 8, COLS).to(dtype)
    (y, ours), (expected, theirs) = gradients(layer, forward, x, low), gradients(dense, dense, x, low)
    torch.testing.assert_close(y, expected, rtol=2e-2, atol=2e-2)
    for got, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, want, rtol=5e-2, atol=0.3)
    assert calls == [(torch.float16 if dtype == torch.float16 else HALF, (COLS, 16))]


def test_what_steps_aside(calls):
    layer, mask, dense = make()
    for x in (torch.randn(7, COLS, dtype=HALF), torch.randn(COLS, dtype=HALF)):
        assert torch.equal(layer(x), dense(x))
        assert layer.product.aside.startswith("2:4 kernels take a multiple of 8 samples, got ")
    layer, mask, dense = make(torch.float32)
    x = torch.randn(8, COLS)
    assert torch.equal(layer(x), dense(x))
    assert layer.product.aside == "no 2:4 kernels for torch.float32, only for torch.bfloat16 and torch.float16"
    with torch.autocast("cpu", dtype=HALF), torch.no_grad():
        layer(x)
        layer.weight.add_(~mask)  # more than two of four
        layer(x)
    assert len(calls) == 1


def test_observations_tell_what_steps_aside():
    layer, _, _ = make(torch.float32)
    layer.product.start_observing()
    with torch.autocast("cpu", dtype=HALF):
        layer(torch.randn(8, COLS))
        assert layer.product.observed() == Observation(8, False, "", "bfloat16")
        for _ in range(2):
            layer(torch.randn(9, COLS))
    assert layer.product.observed().obstacle == "2:4 kernels take a multiple of 8 samples, got 9"


def test_which_layers_get_it():
    layer = nn.Linear(COLS, ROWS)
    assert (
        product_type(layer, "2:4", "cuda") is product_type(layer, "2:4-transposable", "cuda") is SemiStructuredProduct
    )
    assert product_type(layer, "2:4", "cpu") is not SemiStructuredProduct
    assert product_type(layer, "1:4", "cuda") is not SemiStructuredProduct
    for layer, why in (
        (nn.Linear(COLS, ROWS), None),
        (nn.Linear(COLS, ROWS, dtype=torch.float64), "no 2:4 kernels for torch.float64"),
        (nn.Linear(20, 32), r"2:4 kernels take weights with a multiple of 16 rows and columns, got [32, 20]"),
    ):
        wrap(layer)
        found = SemiStructuredProduct.refusal(layer, layer.weight, "2:4")
        assert (found is None) if why is None else found.startswith(why)
    assert SemiStructuredProduct.missing(True) == "no half-precision kernels for pattern '2:4'"
    assert SemiStructuredProduct.missing(False, "2:4", "cpu") == "no sparse kernels on cpu for pattern '2:4'"
    if not torch.version.cuda:
        assert SemiStructuredProduct.missing(False) == "this torch has no 2:4 kernels (cuSPARSELt)"


def test_what_is_asked_and_known():
    product = make()[0].product
    assert product.asked() == CHOSEN
    assert product.unknown(FORWARD, SEMI, "2:4") is None
    for name, kernel in ((FORWARD, SPARSE), (INPUT_GRADIENT, SEMI), (FORWARD, "sparse 64x32 w4 s3")):
        assert product.unknown(name, kernel, "2:4") == f"there is no kernel {kernel!r} here"


@pytest.mark.parametrize("cast", [False, True])
def test_the_plan_sees_one_sparse_kernel(cast):
    layer, _, _ = make(torch.float32 if cast else HALF)
    product, topology = layer.product, layer.product.topology
    seen = Observation(16, True, "", "bfloat16" if cast else "")
    trial = product.trial(layer, "2:4", topology.bits, seen, lambda: topology, False)
    assert [trial.kernels(name) for name in PRODUCTS] == [(DENSE, SEMI), (DENSE,), (DENSE,)]
    torch.testing.assert_close(
        trial.run(FORWARD, SEMI, DENSE)(), trial.run(FORWARD, DENSE, DENSE)(), rtol=2e-2, atol=2e-2
    )
    assert [g.dtype for g in trial.step(CHOSEN)()] == [HALF, layer.weight.dtype, layer.weight.dtype]
    assert trial.work(FORWARD, SEMI).moved > trial.work(FORWARD, DENSE).moved
    assert " 2:4 " in trial.key
    for sparse, kernel in ((1e12, SEMI), (1.0, DENSE)):
        model = CostModel({"dense bfloat16": 1e6, "2:4 bfloat16": sparse}, bandwidth=1e15)
        choices = Planner(False, Timer(), Memory(None), model).plan({"it": trial}, {}, 1.0)["it"]
        assert choices[FORWARD].kernel == kernel
        assert {choices[name].reason for name in PRODUCTS[1:]} == {ONE_KERNEL}
