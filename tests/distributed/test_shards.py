"""FSDP2: shards of one model, thresholded as if it were whole."""

import pytest


def test_masks_of_shards_are_shards_of_the_masks(together):
    for rank in together("sharded_masks"):
        assert rank["wrong"] == []


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
