"""The masked optimizers on the emulated kernels, which leave kept zeros alone."""

from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
# The compiler can't be told of kernels that stand in a CPU's place; AdamW's kernels take a little memory on a device.
NOT_HERE = "inductor or one_kernel_call or allocates_nothing"


@pytest.mark.parametrize("order", [0, 7], ids=["ascending", "shuffled"])
def test_optimizers(order, run_emulated):
    chosen = f"not ({NOT_HERE})" if order == 0 else "kept_zeros"
    command = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-c", TESTS.parent / "pyproject.toml"]
    out = run_emulated(*command, TESTS / "optim", "-k", chosen, order=order)
    assert " passed" in out


def test_the_emulated_kernels_skip(run_emulated):
    code = "from acdc_kernels.ops._update import skips_kept_zeros as s; import acdc_kernels; print(s('cpu'), s('meta'))"
    assert run_emulated("-c", code).split() == ["True", "False"]
