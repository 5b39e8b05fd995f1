import itertools
import math

import pytest
import torch
from torch.optim.adamw import adamw

from acdc_kernels import pack_mask
from acdc_kernels._native import cpu_isa
from acdc_kernels.ops import masked_adamw_
from acdc_kernels.ops._update import skips_kept_zeros
from acdc_kernels.ops.dtypes import FLOAT_DTYPES
from acdc_kernels.ops.masked_adamw import cases, reference

from .conftest import DEVICE, ON_CPU, cpu_only, on_cpu

DTYPES = [(d, d) for d in FLOAT_DTYPES] + [(torch.bfloat16, torch.float32), (torch.float16, torch.float32)]
# One rounding of the result at the dtype, and a few of the intermediate results in float32 or float64.
TOLERANCE = {torch.float32: 4e-6, torch.float64: 1e-14, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}
DEFAULTS = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 1e-2, "amsgrad": False, "maximize": False}
CASES = [*itertools.product(["around_a_vector"], cases.OPTIONS, cases.MASKS)]
CASES += [
    *itertools.product([s for s in cases.SHAPES if s != "around_a_vector"], ["default", "all"], ["none", "tenth"])
]
PARAM, GRAD, AVG, SQUARE, LARGEST = range(5)
FUSED = not ON_CPU or cpu_isa() in ("avx2", "avx512")  # the generic level has no fused multiply-add


def make(shapes, dtype, state_dtype=None, layout="contiguous", mask="tenth", seed=0, step=3.0):
    """([params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs], steps, kept)."""
    g = torch.Generator().manual_seed(seed)
    tensors = []
    for k in range(5):
        drawn = [torch.randn(s, generator=g, dtype=torch.float64) for s in cases.SHAPES[shapes]]
        of = dtype if k < AVG else state_dtype or dtype
        tensors.append([cases.LAYOUTS[layout]((x.square() if k >= SQUARE else x).to(of).to(DEVICE)) for x in drawn])
    kept = [cases.MASKS[mask](s, g) for s in cases.SHAPES[shapes]]
    kept = [None if k is None else k.to(DEVICE) for k in kept]
    return tensors, [torch.tensor(step + 2 * i, device=DEVICE) for i in range(len(kept))], kept


def bits_of(kept):
    return [None if k is None else pack_mask(k) for k in kept]


def run(tensors, steps, kept, options, **scalars):
    *most, largest = tensors
    masked_adamw_(*most, largest if options.get("amsgrad") else [], steps, bits_of(kept), **options, **scalars)


def run_reference(tensors, steps, kept, options, dtype=None):
    """(tensors, steps) as they must become, on the CPU."""
    *most, largest = [[t.to("cpu", dtype or t.dtype, copy=True) for t in ts] for ts in tensors]
    steps, full = [s.to("cpu", copy=True) for s in steps], {**DEFAULTS, **options}
    order = ("lr", "beta1", "beta2", "eps", "weight_decay", "amsgrad", "maximize")
    reference.masked_adamw_(
        *most,
        largest if full["amsgrad"] else [],
        steps,
        bits_of(on_cpu(kept)),
        *(full[k] for k in order),
        None,
        None,
        None,
    )
    return [*most, largest], steps


def clones(tensors):
    return [[t.clone() for t in ts] for ts in tensors]


def same(a, b):
    return all(torch.equal(x.cpu(), y.cpu()) for x, y in zip(itertools.chain(*a), itertools.chain(*b), strict=True))


@pytest.mark.parametrize(("dtype", "state_dtype"), DTYPES, ids=str)
@pytest.mark.parametrize(("shapes", "options", "mask"), CASES)
def test_against_float64(shapes, options, mask, dtype, state_dtype):
    options = cases.OPTIONS[options]
    for step in (0.0, 3.0):
        tensors, steps, kept = make(shapes, dtype, state_dtype, mask=mask, step=step)
        untouched = clones(tensors)
        want, want_steps = run_reference(tensors, steps, kept, options, torch.float64)
        run(tensors, steps, kept, options)
        for k in (PARAM, AVG, SQUARE, *((LARGEST,) if options.get("amsgrad") else ())):
            tolerance = TOLERANCE[dtype if k == PARAM else state_dtype]
            for a, e in zip(tensors[k], want[k], strict=True):
                torch.testing.assert_close(a.double().cpu(), e, rtol=tolerance, atol=tolerance)
        assert same([tensors[GRAD], steps], [untouched[GRAD], want_steps])
        assert options.get("amsgrad") or same([tensors[LARGEST]], [untouched[LARGEST]])


@pytest.mark.parametrize(("dtype", "state_dtype"), DTYPES, ids=str)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("mixed", [False, True], ids=["same-layout", "mixed-layouts"])
def test_layouts_give_the_contiguous_bits(layout, mixed, dtype, state_dtype, threads):
    for shapes in ("convolutions", "around_a_chunk"):
        tensors, steps, kept = make(shapes, dtype, state_dtype, layout)
        plain, plain_steps = [[t.contiguous().clone() for t in ts] for ts in tensors], [s.clone() for s in steps]
        if mixed:
            tensors[SQUARE] = [t.contiguous() for t in tensors[SQUARE]]
        run(tensors, steps, kept, cases.OPTIONS["all"])
        run(plain, plain_steps, kept, cases.OPTIONS["all"])
        assert same([*tensors, steps], [*plain, plain_steps])


@pytest.mark.parametrize(("dtype", "state_dtype"), DTYPES, ids=str)
@pytest.mark.parametrize("options", ["default", "amsgrad", "short_memory"])
def test_masked_positions_are_exactly_plus_zero_whatever_stands_there(options, dtype, state_dtype):
    options = cases.OPTIONS[options]
    for bad in (math.nan, math.inf, -math.inf, -0.0, -1.0):
        tensors, steps, kept = make("convolutions", dtype, state_dtype)
        for ts in tensors:
            for t, k in zip(ts, kept, strict=True):
                t.masked_fill_(~k, bad)
        run(tensors, steps, kept, options)
        for which in (PARAM, AVG, SQUARE, *((LARGEST,) if options.get("amsgrad") else ())):
            for t, k in zip(tensors[which], kept, strict=True):
                assert not t[~k].any()
                assert not t[~k].signbit().any()
                assert t[k].isfinite().all()


@pytest.mark.parametrize(("dtype", "state_dtype"), DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "unaligned", "channels_last"])
def test_kept_zeros_change_nothing_in_the_result(layout, dtype, state_dtype):
    results = []
    for zeros_kept in ([], [True, False, True]):
        tensors, steps, kept = make("convolutions", dtype, state_dtype, layout)
        for which, ts in enumerate(tensors):
            for t, k in zip(ts, kept, strict=True):
                t.masked_fill_(~k, math.nan if which == GRAD else 0.0)
        run(tensors, steps, kept, cases.OPTIONS["all"], zeros_kept=zeros_kept)
        results.append([ts for which, ts in enumerate(tensors) if which != GRAD])
    assert same(*results)
    assert not any(t.signbit()[t == 0].any() for t in itertools.chain(*results[1]))


@pytest.mark.parametrize("amsgrad", [False, True])
def test_where_zeros_are_kept_is_left_alone_by_kernels_that_skip_it(amsgrad):
    n = 20000
    mask = torch.arange(n, device=DEVICE) % 16 >= 8  # every other byte of the mask is 0
    for zeros_kept in (False, True):
        tensors = [[torch.full((n,), 5.0, device=DEVICE)] for _ in range(5)]
        tensors[GRAD][0].masked_fill_(~mask, math.nan)
        run(tensors, [torch.zeros((), device=DEVICE)], [mask], {"lr": 0.1, "amsgrad": amsgrad}, zeros_kept=[zeros_kept])
        skips = zeros_kept and skips_kept_zeros(DEVICE.type)
        for which in (PARAM, AVG, SQUARE, *((LARGEST,) if amsgrad else ())):
            assert tensors[which][0][~mask].unique().tolist() == [5.0 if skips else 0.0]
            assert bool((tensors[which][0][mask] > 0).all())


def test_many_tensors():
    g = torch.Generator().manual_seed(0)
    tensors = [[torch.randn(1 + i % 19, generator=g).to(DEVICE) for i in range(1000)] for _ in range(5)]
    for which in (SQUARE, LARGEST):
        tensors[which] = [t.square() for t in tensors[which]]
    kept = [torch.rand(p.shape, generator=g) < 0.5 if i % 3 else None for i, p in enumerate(tensors[PARAM])]
    kept = [None if k is None else k.to(DEVICE) for k in kept]
    steps = [torch.tensor(float(i % 7), device=DEVICE) for i in range(1000)]
    want, want_steps = run_reference(tensors, steps, kept, cases.OPTIONS["all"])
    run(tensors, steps, kept, cases.OPTIONS["all"])
    assert same([steps], [want_steps])
    for a, b in zip(tensors, want, strict=True):
        torch.testing.assert_close(torch.cat(a).cpu(), torch.cat(b), rtol=4e-6, atol=4e-6)


@pytest.mark.parametrize("where", [PARAM, GRAD, AVG, SQUARE, LARGEST])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("options", ["default", "amsgrad"])
def test_what_is_not_finite_goes_where_torch_lets_it_go(options, value, where):
    tensors, steps, _ = make("around_a_vector", torch.float32, mask="none")
    for t in tensors[where]:
        t[-1] = value
    want, _ = run_reference(tensors, steps, [None] * len(steps), cases.OPTIONS[options], torch.float64)
    run(tensors, steps, [None] * len(steps), cases.OPTIONS[options])
    for a, e in zip(itertools.chain(*tensors), itertools.chain(*want), strict=True):
        torch.testing.assert_close(a.double().cpu(), e, rtol=4e-6, atol=4e-6, equal_nan=True)


def test_denormals_are_numbers():
    tiny = torch.full((1, 9), 2.0**-140)
    tensors, steps = [list(tiny.to(DEVICE, copy=True)) for _ in range(5)], [torch.tensor(1.0, device=DEVICE)]
    run(tensors, steps, [None], {"lr": 0.0, "weight_decay": 0.0, "beta1": 0.5, "beta2": 0.5, "amsgrad": True})
    assert [t[0][0].item() for t in tensors] == [2.0**-140, 2.0**-140, 2.0**-140, 2.0**-141, 2.0**-140]


def torchs(tensors, steps, options, **how):
    names = {"foreach": False, "fused": False, **DEFAULTS, **options, **how}
    largest = tensors[LARGEST] if names["amsgrad"] else []
    adamw(*tensors[:LARGEST], largest, steps, **names)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("options", cases.OPTIONS)
def test_without_masks_the_moments_have_torchs_bits_and_parameters_those_of_its_fused_loop(options, dtype):
    """torch's other loop takes its square roots from a vector library that is one unit off in a sixth of them; a GPU's
    powers, in the bias corrections, aren't the C library's."""
    g = torch.Generator().manual_seed(5)
    # Whole vectors: in the last elements of a row torch's fused loop rounds otherwise.
    ours = [[torch.randn(s, generator=g, dtype=dtype) for s in ((16, 16, 3, 3), (64, 48))] for _ in range(3)]
    ours += [[torch.rand(t.shape, generator=g, dtype=dtype) for t in ours[0]] for _ in range(2)]
    fused, plain, before = clones(ours), clones(ours), clones(ours)
    ours = [[t.to(DEVICE) for t in ts] for ts in ours]
    counts = [[torch.tensor(4.0), torch.tensor(0.0)] for _ in range(3)]
    counts[0] = [step.to(DEVICE) for step in counts[0]]
    run(ours, counts[0], [None, None], cases.OPTIONS[options])
    torchs(fused, counts[1], cases.OPTIONS[options], fused=True)
    torchs(plain, counts[2], cases.OPTIONS[options])
    states = [ours[AVG], ours[SQUARE], ours[LARGEST], counts[0]], [plain[AVG], plain[SQUARE], plain[LARGEST], counts[2]]
    if FUSED:
        assert same(*states)
        assert not ON_CPU or same([ours[PARAM]], [fused[PARAM]])
    units = (2 if FUSED else 8) * torch.finfo(dtype).eps
    for p, q, start in zip(on_cpu(ours[PARAM]), plain[PARAM], before[PARAM], strict=True):
        # Of what was added up: a root that is one off moves the update by about as much.
        size = start.abs() + (q - start).abs()
        assert ((p - q).abs() <= units * size).all()


@pytest.mark.parametrize(("dtype", "state_dtype"), DTYPES, ids=str)
@pytest.mark.parametrize("options", cases.OPTIONS)
def test_kernel_and_reference_round_alike(options, dtype, state_dtype):
    tensors, steps, kept = make("convolutions", dtype, state_dtype)
    want, _ = run_reference(tensors, steps, kept, cases.OPTIONS[options])
    run(tensors, steps, kept, cases.OPTIONS[options])
    if dtype == torch.float64 or not FUSED or not ON_CPU:  # double roots are the vector library's in the reference
        for a, b in zip(itertools.chain(*tensors), itertools.chain(*want), strict=True):
            torch.testing.assert_close(a.cpu(), b, rtol=TOLERANCE[a.dtype], atol=TOLERANCE[a.dtype])
    else:
        assert same(tensors, want)


def test_the_reference_reads_nothing_from_a_device():
    """A meta tensor has no value to read: whatever asks for one raises."""
    tensors, steps, kept = make("convolutions", torch.bfloat16, torch.float32)
    tensors = [[t.to("meta") for t in ts] for ts in tensors]
    scalars = [torch.empty((), device="meta") for _ in range(3)]
    bits = [b.to("meta") for b in bits_of(kept)]
    steps = [s.to("meta") for s in steps]
    reference.masked_adamw_(*tensors, steps, bits, 0.0, 0.9, 0.99, 1e-8, 0.01, True, True, *scalars)


@cpu_only("threads are a CPU's")
def test_same_bits_for_every_thread_count():
    results = []
    before = torch.get_num_threads()
    for n in (1, 2, 5):
        torch.set_num_threads(n)
        tensors, steps, kept = make("around_a_chunk", torch.float32)
        run(tensors, steps, kept, cases.OPTIONS["all"])
        results.append(tensors)
    torch.set_num_threads(before)
    assert all(same(results[0], r) for r in results[1:])


@pytest.mark.parametrize("of", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_a_learning_rate_in_a_tensor_is_the_number(of):
    for device in {torch.device("cpu"), DEVICE}:
        a, b = (make("convolutions", torch.float32) for _ in range(2))
        run(*a, {"lr": 0.125})
        run(*b, {"lr": torch.tensor(0.125, dtype=of, device=device)})
        assert same(a[0], b[0])


@pytest.mark.parametrize(("dtype", "state_dtype"), DTYPES, ids=str)
def test_scaled_gradients_are_unscaled_in_the_precision_of_the_sum(dtype, state_dtype):
    a, b = (make("convolutions", dtype, state_dtype) for _ in range(2))
    b[0][GRAD] = [g * 1024 for g in b[0][GRAD]]  # a power of two: exact
    scaled = [g.clone() for g in b[0][GRAD]]
    run(*a, cases.OPTIONS["all"])
    run(*b, cases.OPTIONS["all"], grad_scale=torch.tensor(1024.0, device=DEVICE))
    assert same([a[0][k] for k in (PARAM, AVG, SQUARE, LARGEST)], [b[0][k] for k in (PARAM, AVG, SQUARE, LARGEST)])
    assert same([scaled], [b[0][GRAD]])
    if dtype == torch.float16:  # 2^-10 / 2^20 is no float16 any more
        with DEVICE:
            param, avg, square, step = torch.zeros(9, dtype=dtype), torch.zeros(9), torch.zeros(9), torch.zeros(())
            grad, scale = torch.full((9,), 2.0**-10, dtype=dtype), torch.tensor(2.0**20)
        masked_adamw_([param], [grad], [avg], [square], [], [step], [None], lr=0.1, grad_scale=scale)
        torch.testing.assert_close(avg.cpu(), torch.full((9,), 0.1 * 2.0**-30), rtol=1e-6, atol=0)


@pytest.mark.parametrize("found", [1.0, math.inf])
def test_found_inf_changes_nothing_at_all(found):
    tensors, steps, kept = make("convolutions", torch.float32)
    before, before_steps = clones(tensors), [s.clone() for s in steps]
    run(tensors, steps, kept, cases.OPTIONS["all"], found_inf=torch.tensor(found, device=DEVICE))
    assert same([*tensors, steps], [*before, before_steps])
    run(tensors, steps, kept, cases.OPTIONS["all"], found_inf=torch.tensor(0.0, device=DEVICE))
    want = run_reference(before, before_steps, kept, cases.OPTIONS["all"], torch.float64)
    torch.testing.assert_close([t.double().cpu() for t in tensors[PARAM]], want[0][PARAM], rtol=4e-6, atol=4e-6)
    assert same([steps], [want[1]])


def test_found_inf_in_the_reference_changes_nothing_at_all():
    tensors, steps, kept = make("convolutions", torch.float32)
    before, before_steps = clones(tensors), [s.clone() for s in steps]
    for found in (1.0, 0.0):
        flag = torch.tensor([found], device=DEVICE)
        reference.masked_adamw_(
            *tensors, steps, bits_of(kept), 0.1, 0.9, 0.99, 1e-8, 0.1, True, False, None, None, flag
        )
        changed = [not same([a], [b]) for a, b in zip([*tensors, steps], [*before, before_steps], strict=True)]
        assert changed == [found == 0, False, *[found == 0] * 4]


def test_version_counters_move():
    tensors, steps, kept = make("convolutions", torch.float32)
    before = [t._version for t in itertools.chain(*tensors, steps)]
    run(tensors, steps, kept, cases.OPTIONS["all"])
    moved = [t._version > v for t, v in zip(itertools.chain(*tensors, steps), before, strict=True)]
    assert moved == [True] * 3 + [False] * 3 + [True] * 12


# name: (arguments of ADAMW that differ, options, error, message)
BAD = {
    "no parameters": ({"params": [], "grads": [], "exp_avgs": [], "exp_avg_sqs": [], "steps": [], "masks": []}, {}, ValueError, "params must have at least one tensor"),
    "a gradient too few": ({"grads": []}, {}, ValueError, r"grads must have one entry a parameter \(1\), got 0"),
    "no mask entry": ({"masks": []}, {}, ValueError, "masks must have one entry"),
    "no moment": ({"exp_avgs": []}, {}, ValueError, "exp_avgs must have one entry a parameter"),
    "no maximum": ({}, {"amsgrad": True}, ValueError, r"max_exp_avg_sqs must have one entry a parameter \(1\), got 0"),
    "a maximum without amsgrad": ({"max_exp_avg_sqs": [torch.zeros(9, 5)]}, {}, ValueError, "max_exp_avg_sqs must be empty unless amsgrad, got 1"),
    "no step": ({"steps": []}, {}, ValueError, r"steps must have one entry a parameter \(1\), got 0"),
    "a double step": ({"steps": [torch.zeros((), dtype=torch.float64)]}, {}, ValueError, r"steps\[0\] must be torch.float32 of one element on .*, got torch.float64 \[\]"),
    "a long step": ({"steps": [torch.zeros(2)]}, {}, ValueError, r"steps\[0\] must be torch.float32 of one element on .*, got torch.float32 \[2\]"),
    "another shape": ({"grads": [torch.zeros(5, 9)]}, {}, ValueError, r"grads\[0\] must be torch.float32 \[9, 5\] .* got torch.float32 \[5, 9\]"),
    "another dtype": ({"exp_avg_sqs": [torch.zeros(9, 5, dtype=torch.float64)]}, {}, ValueError, r"exp_avg_sqs\[0\] must be torch.float32"),
    "moments of two dtypes": ({"params": [torch.zeros(9, 5).half()], "grads": [torch.zeros(9, 5).half()], "exp_avg_sqs": [torch.zeros(9, 5).half()]}, {}, ValueError, r"exp_avg_sqs\[0\] must be torch.float32 .* got torch.float16"),
    "an integer parameter": ({"params": [torch.zeros(9, 5, dtype=torch.int64)]}, {}, TypeError, r"params\[0\] must be float32, .* got torch.int64"),
    "a short mask": ({"masks": [torch.zeros(3, dtype=torch.uint8)]}, {}, ValueError, r"masks\[0\] must have shape \[6\] \(45 elements, one bit each\), got \[3\]"),
    "unused bits set": ({"masks": [torch.full((6,), 255, dtype=torch.uint8)]}, {}, ValueError, "must have zeros in the unused bits"),
    "beta1 of 1": ({}, {"beta1": 1.0}, ValueError, r"beta1 must be in \[0, 1\), got 1.0"),
    "negative beta2": ({}, {"beta2": -0.1}, ValueError, r"beta2 must be in \[0, 1\), got -0.1"),
    "a claim too few": ({}, {"zeros_kept": [True, False]}, ValueError, r"zeros_kept must have one entry a parameter \(1\), got 2"),
    "negative eps": ({}, {"eps": -1.0}, ValueError, "eps must be at least 0, got -1.0"),
    "a vector of rates": ({}, {"lr": torch.ones(2)}, ValueError, "lr must have one element, got 2"),
    "an integer rate": ({}, {"lr": torch.tensor(1)}, TypeError, "lr must be a floating-point tensor, got torch.int64"),
    "a scale that is no tensor": ({}, {"grad_scale": 2.0}, TypeError, "grad_scale must be a floating-point tensor, got float"),
    "found_inf elsewhere": ({}, {"found_inf": torch.zeros((), device="meta")}, ValueError, f"found_inf must be on {DEVICE} as params"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_changes_nothing(name):
    given, options, error, message = BAD[name]
    if not ON_CPU and "unused bits" in message:
        pytest.skip("the last byte is read on a CPU only")
    arguments = {k: [torch.randn(9, 5)] for k in ("params", "grads", "exp_avgs", "exp_avg_sqs")}
    arguments |= {
        "max_exp_avg_sqs": [],
        "steps": [torch.zeros(())],
        "masks": [pack_mask(torch.rand(9, 5) < 0.5)],
        **given,
    }
    arguments = {k: [t.to(DEVICE) for t in ts] for k, ts in arguments.items()}
    before = {k: [t.clone() for t in ts] for k, ts in arguments.items()}
    with pytest.raises(error, match=message):
        masked_adamw_(**arguments, **{"lr": 0.1, **options})
    assert same(arguments.values(), before.values())
