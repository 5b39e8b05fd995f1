import itertools
import math

import pytest
import torch

from acdc_kernels import pack_mask
from acdc_kernels._native import cpu_isa
from acdc_kernels.ops import masked_sgd_
from acdc_kernels.ops._update import skips_kept_zeros
from acdc_kernels.ops.dtypes import FLOAT_DTYPES
from acdc_kernels.ops.masked_sgd import cases, reference

from .conftest import DEVICE, ON_CPU, cpu_only, on_cpu

DTYPES = [(d, d) for d in FLOAT_DTYPES] + [(torch.bfloat16, torch.float32), (torch.float16, torch.float32)]
CASES = [*itertools.product(["around_a_vector"], cases.OPTIONS, cases.MASKS)]
CASES += [
    *itertools.product([s for s in cases.SHAPES if s != "around_a_vector"], ["decay", "nesterov"], ["none", "tenth"])
]
# One rounding of the result at the dtype, and a few of the intermediate sums in float32 or float64.
TOLERANCE = {torch.float32: 4e-6, torch.float64: 1e-14, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}


def drawn(shapes, g):
    return [torch.randn(s, generator=g, dtype=torch.float64) for s in cases.SHAPES[shapes]]


def masks_of(mask, shapes, g):
    kept = [cases.MASKS[mask](s, g) for s in cases.SHAPES[shapes]]
    return [None if k is None else k.to(DEVICE) for k in kept]


def make(shapes, dtype, layout="contiguous", mask="tenth", seed=0, state_dtype=None):
    g = torch.Generator().manual_seed(seed)
    tensors = [
        [cases.LAYOUTS[layout](x.to(of).to(DEVICE)) for x in drawn(shapes, g)]
        for of in (dtype, dtype, state_dtype or dtype)
    ]
    return *tensors, masks_of(mask, shapes, g)


def run(params, grads, buffers, kept, options, first_step=False, **scalars):
    bits = [None if k is None else pack_mask(k) for k in kept]
    buffers = buffers if options.get("momentum") else []
    masked_sgd_(params, grads, buffers, bits, **options, first_step=first_step, **scalars)


def run_reference(params, grads, buffers, kept, options, first_step, dtype):
    """(parameters, buffers) as they must become, on the CPU."""
    p, g, b = ([t.to("cpu", dtype, copy=True) for t in ts] for ts in (params, grads, buffers))
    full = {"momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False, "maximize": False, **options}
    bits = [None if k is None else pack_mask(k) for k in on_cpu(kept)]
    order = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")
    reference.masked_sgd_(
        p, g, b if full["momentum"] else [], bits, *(full[k] for k in order), first_step, None, None, None
    )
    return p, b


@pytest.mark.parametrize(("dtype", "state_dtype"), DTYPES, ids=str)
@pytest.mark.parametrize(("shapes", "options", "mask"), CASES)
def test_against_float64(shapes, options, mask, dtype, state_dtype):
    for first_step in (True, False):
        params, grads, buffers, kept = make(shapes, dtype, mask=mask, state_dtype=state_dtype)
        untouched = [g.clone() for g in grads]
        want, want_buffers = run_reference(
            params, grads, buffers, kept, cases.OPTIONS[options], first_step, torch.float64
        )
        if first_step:
            for b in buffers:
                b.fill_(math.nan)  # what the buffers hold must not matter
        run(params, grads, buffers, kept, cases.OPTIONS[options], first_step)
        got = [(params, want, TOLERANCE[dtype])]
        if cases.OPTIONS[options].get("momentum"):
            got.append((buffers, want_buffers, TOLERANCE[state_dtype]))
        for ours, exact, tolerance in got:
            for a, e in zip(ours, exact, strict=True):
                torch.testing.assert_close(a.double().cpu(), e, rtol=tolerance, atol=tolerance)
        assert all(torch.equal(a, b) for a, b in zip(grads, untouched, strict=True))


@pytest.mark.parametrize(("dtype", "state_dtype"), DTYPES, ids=str)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("mixed", [False, True], ids=["same-layout", "mixed-layouts"])
def test_layouts_give_the_contiguous_bits(layout, mixed, dtype, state_dtype, threads):
    for shapes in ("convolutions", "around_a_chunk"):
        params, grads, buffers, kept = make(shapes, dtype, layout, state_dtype=state_dtype)
        plain = [[t.contiguous().clone() for t in ts] for ts in (params, grads, buffers)]
        if mixed:
            grads = [g.contiguous() for g in grads]
        run(params, grads, buffers, kept, cases.OPTIONS["nesterov"])
        run(*plain, kept, cases.OPTIONS["nesterov"])
        assert all(torch.equal(a, b) for a, b in zip(params + buffers, plain[0] + plain[2], strict=True))


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("options", ["plain", "momentum", "nesterov"])
def test_masked_positions_are_exactly_plus_zero_whatever_stands_there(options, dtype):
    for bad in (math.nan, math.inf, -math.inf, -0.0, -1.0):
        params, grads, buffers, kept = make("convolutions", dtype)
        for p, g, b, k in zip(params, grads, buffers, kept, strict=True):
            for t in (p, g, b):
                t.masked_fill_(~k, bad)
        run(params, grads, buffers, kept, cases.OPTIONS[options])
        for p, b, k in zip(params, buffers, kept, strict=True):
            for t in (p, b) if cases.OPTIONS[options].get("momentum") else (p,):
                assert not t[~k].any()
                assert not t[~k].signbit().any()
                assert t[k].isfinite().all()


@pytest.mark.parametrize(("dtype", "state_dtype"), DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "unaligned", "channels_last"])
def test_kept_zeros_change_nothing_in_the_result(layout, dtype, state_dtype):
    results = []
    for zeros_kept in ([], [True, False, True]):
        params, grads, buffers, kept = make("convolutions", dtype, layout, state_dtype=state_dtype)
        for p, g, b, k in zip(params, grads, buffers, kept, strict=True):
            p.masked_fill_(~k, 0.0)
            b.masked_fill_(~k, 0.0)
            g.masked_fill_(~k, math.nan)
        run(params, grads, buffers, kept, cases.OPTIONS["nesterov"], zeros_kept=zeros_kept)
        results.append(params + buffers)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert not any(t.signbit()[t == 0].any() for t in results[1])


@pytest.mark.parametrize("n", [7, 64, 20000])
def test_where_zeros_are_kept_is_left_alone_by_kernels_that_skip_it(n):
    mask = torch.arange(n, device=DEVICE) % 16 >= 8  # every other byte of the mask is 0
    for zeros_kept in (False, True):
        p, g, b = (torch.full((n,), value, device=DEVICE) for value in (5.0, math.nan, 7.0))
        g[mask] = 1.0
        masked_sgd_([p], [g], [b], [pack_mask(mask)], lr=1.0, momentum=0.5, zeros_kept=[zeros_kept])
        skips = zeros_kept and skips_kept_zeros(DEVICE.type)
        assert p[~mask].unique().tolist() == [5.0 if skips else 0.0]
        assert b[~mask].unique().tolist() == [7.0 if skips else 0.0]
        assert p[mask].tolist() == [0.5] * int(mask.sum())


def test_many_tensors():
    g = torch.Generator().manual_seed(0)
    params, grads, buffers = ([torch.randn(1 + i % 19, generator=g).to(DEVICE) for i in range(1300)] for _ in range(3))
    kept = [(torch.rand(p.shape, generator=g) < 0.5).to(DEVICE) if i % 3 else None for i, p in enumerate(params)]
    want, want_buffers = run_reference(params, grads, buffers, kept, cases.OPTIONS["nesterov"], False, torch.float64)
    run(params, grads, buffers, kept, cases.OPTIONS["nesterov"])
    torch.testing.assert_close(torch.cat(params).double().cpu(), torch.cat(want), rtol=4e-6, atol=4e-6)
    torch.testing.assert_close(torch.cat(buffers).double().cpu(), torch.cat(want_buffers), rtol=4e-6, atol=4e-6)


@pytest.mark.parametrize("state_dtype", [torch.bfloat16, torch.float32], ids=str)
def test_axes_that_cannot_be_joined_and_gradients_that_repeat(state_dtype):
    for shape, layout in (((3,) * 10, (slice(0, 2),) * 10), ((6, 5, 4), (slice(0, 6, 2), slice(1, 4), slice(0, 4, 3)))):
        g = torch.Generator().manual_seed(0)
        param, buffer = (
            torch.randn(shape, generator=g).to(d).to(DEVICE)[layout] for d in (torch.bfloat16, state_dtype)
        )
        grad = torch.randn(param.shape[-1:], generator=g).bfloat16().to(DEVICE).expand(param.shape)
        kept = (torch.rand(param.shape, generator=g) < 0.5).to(DEVICE)
        plain = [[t.contiguous().clone()] for t in (param, grad, buffer)]
        run(*plain, [kept], cases.OPTIONS["nesterov"])
        run([param], [grad], [buffer], [kept], cases.OPTIONS["nesterov"])
        assert torch.equal(param, plain[0][0])
        assert torch.equal(buffer, plain[2][0])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_gradients_of_kept_weights_propagate(value):
    p, b = [torch.ones(20, device=DEVICE)], [torch.ones(20, device=DEVICE)]
    g = torch.ones(20, device=DEVICE)
    g[3] = value
    masked_sgd_(p, [g], b, [None], lr=0.1, momentum=0.9)
    assert not p[0][3].isfinite()
    assert p[0].isfinite().sum() == 19


def test_infinite_weight_without_decay_stays_infinite():
    p = [torch.tensor([math.inf, 1.0], device=DEVICE)]
    masked_sgd_(p, [torch.ones(2, device=DEVICE)], [], [None], lr=0.1)
    assert p[0].tolist() == [math.inf, pytest.approx(0.9)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("options", cases.OPTIONS)
def test_without_masks_the_bits_are_torchs(options, dtype):
    """torch's own loop on CPUs fuses each product with its sum; so do the AVX levels, and GPUs. The generic level rounds
    twice."""
    params, grads, buffers, kept = make("convolutions", dtype, mask="none")
    want, want_buffers = run_reference(params, grads, buffers, kept, cases.OPTIONS[options], False, dtype)
    run(params, grads, buffers, kept, cases.OPTIONS[options])
    pairs = list(zip(params, want, strict=True))
    if cases.OPTIONS[options].get("momentum"):
        pairs += zip(buffers, want_buffers, strict=True)
    for a, b in ((a.cpu(), b) for a, b in pairs):
        if ON_CPU and cpu_isa() == "generic":
            torch.testing.assert_close(a, b, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        else:
            assert torch.equal(a, b)


@cpu_only("threads are a CPU's")
def test_same_bits_for_every_thread_count():
    results = []
    before = torch.get_num_threads()
    for n in (1, 2, 5):
        torch.set_num_threads(n)
        params, grads, buffers, kept = make("around_a_chunk", torch.float32)
        run(params, grads, buffers, kept, cases.OPTIONS["nesterov"])
        results.append(params + buffers)
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for r in results[1:] for a, b in zip(results[0], r, strict=True))


@pytest.mark.parametrize("of", FLOAT_DTYPES, ids=str)
def test_a_learning_rate_in_a_tensor_is_the_number(of):
    for device in {torch.device("cpu"), DEVICE}:
        a, b = (make("convolutions", torch.float32) for _ in range(2))
        run(*a, {"lr": 0.125, "momentum": 0.9})
        run(*b, {"lr": torch.tensor(0.125, dtype=of, device=device), "momentum": 0.9})
        assert all(torch.equal(x, y) for x, y in zip(a[0] + a[2], b[0] + b[2], strict=True))


@pytest.mark.parametrize(("dtype", "state_dtype"), DTYPES, ids=str)
@pytest.mark.parametrize("options", ["plain", "nesterov", "maximize"])
def test_scaled_gradients_are_unscaled_in_the_precision_of_the_sum(options, dtype, state_dtype):
    a, b = (make("convolutions", dtype, state_dtype=state_dtype) for _ in range(2))
    scaled = [g * 1024 for g in b[1]]  # a power of two: exact
    run(*a, cases.OPTIONS[options])
    run(
        b[0],
        [g.clone() for g in scaled],
        b[2],
        b[3],
        cases.OPTIONS[options],
        grad_scale=torch.tensor(1024.0, device=DEVICE),
    )
    assert all(torch.equal(x, y) for x, y in zip(a[0] + a[2], b[0] + b[2], strict=True))


def test_a_scaled_gradient_may_be_too_small_for_its_own_dtype():
    param, grad, buffer = torch.zeros(9).half(), torch.full((9,), 2.0**-10).half(), torch.zeros(9)
    param, grad, buffer, scale = (t.to(DEVICE) for t in (param, grad, buffer, torch.tensor(2.0**20)))
    masked_sgd_([param], [grad], [buffer], [None], lr=0.1, momentum=0.5, grad_scale=scale)
    assert buffer.tolist() == [2.0**-30] * 9
    assert grad.tolist() == [2.0**-10] * 9


@pytest.mark.parametrize("found", [1.0, math.inf])
def test_found_inf_changes_nothing_at_all(found):
    params, grads, buffers, kept = make("convolutions", torch.float32)
    before = [t.clone() for t in params + buffers]
    run(params, grads, buffers, kept, cases.OPTIONS["nesterov"], found_inf=torch.tensor(found, device=DEVICE))
    assert all(torch.equal(a, b) for a, b in zip(params + buffers, before, strict=True))
    bits = [pack_mask(k) for k in kept]
    rest = (0.1, 0.9, 0.0, 0.0, False, False, False, None, None, torch.tensor(found, device=DEVICE))
    reference.masked_sgd_(params, grads, buffers, bits, *rest)
    assert all(torch.equal(a, b) for a, b in zip(params + buffers, before, strict=True))
    run(params, grads, buffers, kept, cases.OPTIONS["nesterov"], found_inf=torch.tensor(0.0, device=DEVICE))
    assert not any(torch.equal(a, b) for a, b in zip(params + buffers, before, strict=True))


def test_the_reference_reads_nothing_from_a_device():
    """A meta tensor has no value to read: whatever asks for one raises."""
    params, grads, buffers, kept = make("convolutions", torch.bfloat16, state_dtype=torch.float32)
    bits = [pack_mask(k).to("meta") for k in kept]
    tensors = ([t.to("meta") for t in ts] for ts in (params, grads, buffers))
    scalars = [torch.empty((), device="meta") for _ in range(3)]
    reference.masked_sgd_(*tensors, bits, 0.0, 0.9, 0.1, 0.1, True, True, False, *scalars)


def test_version_counters_move():
    params, grads, buffers, kept = make("convolutions", torch.float32)
    before = [t._version for t in params + buffers]
    run(params, grads, buffers, kept, cases.OPTIONS["momentum"])
    assert all(t._version > v for t, v in zip(params + buffers, before, strict=True))


BAD = {
    "no parameters": (
        lambda p, g, b, m: masked_sgd_([], [], [], [], lr=0.1),
        ValueError,
        "params must have at least one tensor",
    ),
    "a gradient too few": (
        lambda p, g, b, m: masked_sgd_(p, [], b, m, lr=0.1, momentum=0.9),
        ValueError,
        r"grads must have one entry a parameter \(1\), got 0",
    ),
    "no mask entry": (
        lambda p, g, b, m: masked_sgd_(p, g, b, [], lr=0.1, momentum=0.9),
        ValueError,
        "masks must have one entry",
    ),
    "no buffer": (
        lambda p, g, b, m: masked_sgd_(p, g, [], m, lr=0.1, momentum=0.9),
        ValueError,
        "momentum_buffers must have one entry",
    ),
    "buffer without momentum": (
        lambda p, g, b, m: masked_sgd_(p, g, b, m, lr=0.1),
        ValueError,
        "momentum_buffers must be empty when momentum is 0, got 1",
    ),
    "another shape": (
        lambda p, g, b, m: masked_sgd_(p, [g[0].t()], b, m, lr=0.1, momentum=0.9),
        ValueError,
        r"grads\[0\] must be torch.float32 \[9, 5\] .* got torch.float32 \[5, 9\]",
    ),
    "another dtype": (
        lambda p, g, b, m: masked_sgd_(p, g, [b[0].double()], m, lr=0.1, momentum=0.9),
        ValueError,
        r"momentum_buffers\[0\] must be torch.float32",
    ),
    "a float32 buffer of a float64 parameter": (
        lambda p, g, b, m: masked_sgd_([p[0].double()], [g[0].double()], b, m, lr=0.1, momentum=0.9),
        ValueError,
        r"momentum_buffers\[0\] must be torch.float64",
    ),
    "a vector of rates": (
        lambda p, g, b, m: masked_sgd_(p, g, b, m, lr=torch.ones(2), momentum=0.9),
        ValueError,
        "lr must have one element, got 2",
    ),
    "an integer parameter": (
        lambda p, g, b, m: masked_sgd_([p[0].long()], g, b, m, lr=0.1, momentum=0.9),
        TypeError,
        r"params\[0\] must be float32, .* got torch.int64",
    ),
    "a short mask": (
        lambda p, g, b, m: masked_sgd_(p, g, b, [m[0][:3]], lr=0.1, momentum=0.9),
        ValueError,
        r"masks\[0\] must have shape \[6\] \(45 elements, one bit each\), got \[3\]",
    ),
    "a bool mask": (
        lambda p, g, b, m: masked_sgd_(p, g, b, [m[0].bool()], lr=0.1, momentum=0.9),
        TypeError,
        r"masks\[0\] must be of dtype torch.uint8, got torch.bool",
    ),
    "a claim too few": (
        lambda p, g, b, m: masked_sgd_(p, g, b, m, lr=0.1, momentum=0.9, zeros_kept=[True, False]),
        ValueError,
        r"zeros_kept must have one entry a parameter \(1\), got 2",
    ),
    "unused bits set": (
        lambda p, g, b, m: masked_sgd_(p, g, b, [m[0] | 255], lr=0.1, momentum=0.9),
        ValueError,
        "must have zeros in the unused bits",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_changes_nothing(name):
    call, error, message = BAD[name]
    if not ON_CPU and "unused bits" in message:
        pytest.skip("the last byte is read on a CPU only")
    p, g, b = ([torch.randn(9, 5, device=DEVICE)] for _ in range(3))
    before = p[0].clone(), b[0].clone()
    with pytest.raises(error, match=message):
        call(p, g, b, [pack_mask(torch.rand(9, 5, device=DEVICE) < 0.5)])
    assert torch.equal(p[0], before[0])
    assert torch.equal(b[0], before[1])
