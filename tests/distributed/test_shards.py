"""FSDP2: shards of one model, thresholded as if it were whole."""

import pytest

from acdc_kernels._native import available


def test_masks_of_shards_are_shards_of_the_masks(together):
    for rank in together("sharded_masks"):
        assert rank["wrong"] == []


def test_processes_may_hold_different_numbers_of_tensors(together):
    for rank in together("uneven_lists"):
        assert rank["wrong"] == []
        assert rank["errors"] == [f"topk_mask: keep must be in [0, 14], got {k}" for k in (-1, 15, 10**19)]


@pytest.mark.skipif(not available(), reason="no compiled kernels: the reference allocates")
def test_extra_memory_is_bounded(together):
    for rank in together("sharded_memory"):
        for name, (outputs, peak, allowed) in rank.items():
            assert outputs < peak, name  # the profiler saw the call
            assert peak - outputs <= allowed, name


def test_two_ranks_train_one_sharded_model(together):
    n = 6 * 17 + 17 * 9 + 9 * 3
    for rank in together("sharded_training"):
        for run in rank.values():
            assert run["unlike"] == []
            assert run["error"] < 1e-5
            assert run["sparsities"] == [pytest.approx(round(0.8 * n) / n, abs=1e-12)] * 2
            assert any("FSDP" in name and "Linear" in name for name in run["classes"])
            assert "the model must not be sharded" in run["refused"]


def test_what_shards_cannot_have_is_refused(together):
    for errors in together("sharded_refusals"):
        assert "pattern must be 'unstructured' or 'n:m' for sharded weights" in errors["block"]
        assert "pattern must be 'unstructured' or 'n:m' for sharded weights" in errors["transposable"]
        assert "weights must all be DTensors of one mesh" in errors["some layers"]
        assert "process_group must be None" in errors["group"]
        assert "tie_rule 'lowest_index'" in errors["tie rule"]
        assert "model must hold the parameters that it had when the sparsifier was made" in errors["too late"]
