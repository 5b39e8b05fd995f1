"""The products of blocks by Triton's interpreter on CPU tensors: every kind of config, and the conformance cases."""

from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PYTEST = [
    "-m",
    "pytest",
    "-q",
    "-x",
    "-p",
    "block_plugin",
    "-p",
    "no:cacheprovider",
    "-c",
    TESTS.parent / "pyproject.toml",
]
CASES = Path(__file__).parent / "interpreted_blocks.py"
# The quick ones; the others run too, marked slow.
QUICK = "layouts or infinity or wrong or one_by_one or same_bits or (every_kind and 64-32 and weight) or ragged-17"


@pytest.fixture
def run_interpreted(run_python):
    """Runs pytest where the ops of blocks are their Triton kernels, interpreted."""

    def run(*arguments):
        # bfloat16 products are wrong in the interpreter, and float64 has no kernels
        out = run_python(*PYTEST, *arguments, TRITON_INTERPRET="1", ACDC_TEST_BLOCK_DTYPES="float32,float16")
        assert " passed" in out

    return run


@pytest.mark.parametrize(
    "chosen", [QUICK, pytest.param(f"not ({QUICK})", marks=pytest.mark.slow)], ids=["quick", "rest"]
)
def test_configs(chosen, run_interpreted):
    run_interpreted(CASES, "-k", chosen)
