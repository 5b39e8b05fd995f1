"""The masked updates' Triton kernels: the conformance cases by Triton's interpreter, and what the compiler makes of them."""

import json
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
HERE = Path(__file__).parent
PYTEST = ["-m", "pytest", "-q", "-x", "-p", "update_plugin", "-p", "no:cacheprovider"]
PYTEST += ["-c", TESTS.parent / "pyproject.toml"]
# The quick ones; the others run too, marked slow.
QUICK = {
    "masked_sgd": "(around_a_vector and nesterov and tenth) or left_alone or found_inf or too_small"
    " or (kept_zeros and (unaligned or channels_last) and float16)",
    "masked_adamw": "(against and around_a_vector and tenth and all) or (left_alone and True) or denormals"
    " or (kept_zeros and channels_last and float16)",
}
slow = pytest.mark.slow


@pytest.fixture
def run_interpreted(run_python):
    """Runs pytest where the masked updates are their Triton kernels, interpreted."""

    def run(*arguments):
        # The interpreter rounds a fused sum twice, as do the kernels of this level, which are compared so.
        out = run_python(*PYTEST, *arguments, TRITON_INTERPRET="1", ACDC_CPU_ISA="generic")
        assert " passed" in out

    return run


@pytest.mark.parametrize("rest", [False, pytest.param(True, marks=slow)], ids=["quick", "rest"])
@pytest.mark.parametrize("name", QUICK)
def test_conformance(name, rest, run_interpreted):
    chosen = f"not ({QUICK[name]}) and not float64 and not bfloat16" if rest else QUICK[name]
    run_interpreted(TESTS / "conformance" / f"test_{name}.py", "-k", f"not threads and ({chosen})")


@pytest.mark.parametrize("chosen", ["not many", pytest.param("many", marks=slow)])
def test_steps(chosen, run_interpreted):
    run_interpreted(HERE / "interpreted_updates.py", "-k", chosen)


ALL = ["float32,float32", "float64,float64", "bfloat16,bfloat16", "float16,float16", "bfloat16,float32"]
CASES = [
    *(pytest.param(cc, "flat", [ALL[0], ALL[-1]], id=f"{cc}-quick") for cc in (80, 90)),
    *(pytest.param(cc, "flat", ALL, marks=slow, id=f"{cc}-flat") for cc in (80, 90, 100, 120)),
    *(pytest.param(cc, "walked", ALL, marks=slow, id=f"{cc}-walked") for cc in (80, 90, 100, 120)),
]
# By launch: the tensors that are read and those that are written.
READ_AND_WRITTEN = [(3, 2), (2, 2), (2, 1), None, (4, 3), None, (5, 4)]


@pytest.mark.parametrize(("capability", "kind", "dtypes"), CASES)
def test_what_the_compiler_makes(capability, kind, dtypes, run_python):
    kernels = [json.loads(x) for x in run_python(HERE / "compile_updates.py", capability, kind, *dtypes).splitlines()]
    assert len(kernels) == len(READ_AND_WRITTEN) * len(dtypes)
    for kernel in kernels:
        name = json.dumps(kernel)
        # one number of a program set aside before its loop is what Triton 3.9's assembler does of one kernel for 10.0
        assert kernel["local"] == 0, name
        assert kernel["stack"] <= 8, name
        assert kernel["flushed"] == [], name
        # what isn't meant to be one rounding can't become one
        assert all(".rn." in operation for operation in kernel["unfused"]), name
        assert all(".rn." in operation for operation in kernel["arithmetic"] if ".f" in operation), name
        assert len(kernel["stores"]) == kernel["every_store"], name
        tensors = READ_AND_WRITTEN[kernel["at"]]
        if tensors is None:
            assert kernel["kernel"] == "_start", name
            continue
        if kernel["dtype"] != "float64":
            assert kernel["registers"] <= 96, name
        if kind == "flat":
            check_vectors(kernel, *tensors, name)


def check_vectors(kernel, read, written, name):
    """All vectors: of 16 bytes, but for what goes with wider states."""
    state = kernel["state"] if kernel["at"] != 2 else kernel["dtype"]  # without momentum there is none
    mixed = kernel["dtype"] != state
    vectors = 2 if kernel["at"] < 3 else 1  # a thread, of each tensor
    wide = [x for x in kernel["loads"] if x.endswith(("v4.b32", "v2.b64"))]
    narrow = [x for x in kernel["loads"] if x.endswith("v2.b32")]
    masks = [x for x in kernel["loads"] if x.endswith(".b8")]
    assert len(masks) == vectors, name  # a byte a vector
    assert len(wide) + len(narrow) + len(masks) == len(kernel["loads"]), name
    assert len(narrow) == (2 * vectors if mixed else 0), name  # parameter and gradient
    assert len(wide) == ((read - 2) if mixed else read) * vectors, name
    stored = [x for x in kernel["stores"] if x.endswith(("v4.b32", "v2.b64"))]
    assert len(stored) == ((written - 1) if mixed else written) * vectors, name
