"""One set of cases for every backend of every op, against the reference in float64 or to the bit."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _no_poison_left_behind():
    """Fresh memory is filled with NaN: an op that leaves part of its output unwritten fails."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=[1, 2], ids=["1-thread", "2-threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
