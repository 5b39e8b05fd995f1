"""The conformance cases with every CUDA kernel emulated: the sources that nvcc compiles, in several orders."""

from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
# File -> the tests of it that run here (pytest's -k); all where nothing is said.
FILES = {
    "mask_bits": "",
    "masked_sgd": "not 2-threads and not (against and float16 and not tenth)",
    "masked_adamw": "not 2-threads and not (against and float16 and not tenth)",
    "topk_mask": "not 2-threads",
    "topk_patterns": "(not threads and not float64 and not float16) or brute or literal or flushing",
    "magnitude_histogram": "not bracketed or normal or transposed",
    # What only a kernel that waits can raise for; test_values.py beside this has what these do instead.
    "values": "not threads and not (other_numbers and not reference) and not (bad_input and count)"
    " and not (index and (25 or 26 or 50 or 51 or 60 or 102) and not (half or ragged or kept))",  # of larger shapes
}
# Of those that take long, what runs in the other orders.
FEWER = {
    "masked_sgd": "layouts or kept or many or axes",
    "masked_adamw": "layouts or kept or many",
    "topk_mask": "float32 or float16",
    "topk_patterns": "float32 and (layouts or many)",
    "magnitude_histogram": "float32",
    "values": "(half or ragged or layouts or are_the_weights) and not (514 or 1025 or 1026 or 1028 or float64)",
}
ORDERS = {"ascending": 0, "descending": 1, "shuffled": 7, "a warp ahead": 8}
SLOW = ("descending", "shuffled")


@pytest.mark.parametrize("order", [pytest.param(o, marks=pytest.mark.slow if o in SLOW else ()) for o in ORDERS])
@pytest.mark.parametrize("name", FILES)
def test_conformance(name, order, run_emulated):
    chosen = (
        FILES[name]
        if order == "ascending"
        else f"({FILES[name] or 'test'}) and not threads and ({FEWER.get(name, 'test')})"
    )
    command = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-c", TESTS.parent / "pyproject.toml"]
    command.append(TESTS / "conformance" / f"test_{name}.py")
    out = run_emulated(*command, *(["-k", chosen] if chosen else []), order=ORDERS[order])
    assert " passed" in out


def test_the_emulated_kernels_are_what_runs(run_emulated):
    code = """
import torch, acdc_kernels
from acdc_kernels.ops._registry import has_kernel
from acdc_kernels.ops.mask_bits import contract
print(acdc_kernels.__file__, has_kernel(contract.pack_mask_op, "cpu"))
"""
    out = run_emulated("-c", code)
    assert "emulated" in out
    assert out.strip().endswith("True")
