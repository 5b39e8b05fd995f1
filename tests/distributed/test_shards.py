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
            assert run["sparsity"] == pytest.approx(round(0.8 * n) / n, abs=1e-12)
            assert any("FSDP" in name and "Linear" in name for name in run["classes"])
            assert "the model must not be sharded" in run["refused"]
