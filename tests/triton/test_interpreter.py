"""The products of blocks by Triton's interpreter on CPU tensors: every kind of config, and the conformance cases."""

from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PYTEST = [
    *("-m", "pytest", "-q", "-x", "-p", "block_plugin", "-p", "no:cacheprovider"),
    *("-c", TESTS.parent / "pyproject.toml"),
]
# File -> its quick tests; the others run too, marked slow, of the conformance cases the small ones in 16 bits.
FILES = {
    TESTS / "triton" / "interpreted_blocks.py": "layouts or infinity or wrong or one_by_one or same_bits or ragged-17"
    " or (every_kind and 64-32 and float16 and weight)",
    TESTS / "conformance" / "test_block_linear.py": "small_whole_weights or small_float32 or small_sums or"
    " (small_products and float32 and (32 or 64))",
}


@pytest.mark.parametrize("quick", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["quick", "rest"])
@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_interpreted(file, quick, run_python):
    chosen = FILES[file] if quick else f"not ({FILES[file]})"
    if not quick and file.parent.name == "conformance":
        chosen = f"small and float16 and {chosen}"
    # bfloat16 products are wrong in the interpreter, and float64 has no kernels
    environment = {"TRITON_INTERPRET": "1", "ACDC_TEST_BLOCK_DTYPES": "float32,float16"}
    assert " passed" in run_python(*PYTEST, file, "-k", chosen, **environment)
