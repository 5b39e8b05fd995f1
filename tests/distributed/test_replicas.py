"""DistributedDataParallel: the same masks everywhere, checked at each flip."""

import pytest
import torch


def test_two_ranks_train_one_sparse_model(together):
    first, second = together("replicas")
    for part in ("weights", "twin"):
        assert all(torch.equal(tensor, second[part][name]) for name, tensor in first[part].items())
    phases = [bool(masks) for masks in first["masks"]]
    assert phases == [False, False, True, True] * 3
    for ours, theirs in zip(first["masks"], second["masks"], strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(bits, theirs[name]) for name, bits in ours.items())
    n = 6 * 17 + 17 * 9 + 9 * 3
    assert first["sparsity"] == pytest.approx(round(0.8 * n) / n, abs=1e-12)
    assert all(t.count_nonzero() > 0.9 * t.numel() for t in first["twin"].values())


def test_ranks_that_differ_stop_together(together):
    for rank in together("replicas_that_differ"):
        drifted, broken = rank["errors"]
        assert "must be the same on every process where compressed phase 1 begins (step 2)" in drifted
        assert "2.weight" in drifted
        assert "got NaN in 2.weight (34 of 153)" in broken
        assert rank["before"] == (1, "dense", 0)
        assert rank["after"] == "compressed"


def test_the_twin_of_replicas_in_a_group_of_their_own(together):
    n = 6 * 17 + 17 * 9 + 9 * 3
    for rank in together("replicas_of_a_group"):
        assert rank["same"]
        assert rank["sparsity"] == pytest.approx(round(0.8 * n) / n, abs=1e-12)


def test_the_plan_of_rank_0_is_used_everywhere(together):
    first, second = together("replicas_share_the_plan")
    for name, sparse in {"dense first": [0, 0, 3, 3, 0, 0, 3, 3], "compressed first": [0, 3, 0, 0, 3, 3]}.items():
        one, other = first[name], second[name]
        assert one["sparse"] == other["sparse"] == sparse
        assert one["plan"] == other["plan"]
        assert one["reasons"] == ["as rank 0 likes it", "the input needs no gradient"]
        assert one["asked"] > 0 == other["asked"]
        assert all(torch.equal(p, other["weights"][key]) for key, p in one["weights"].items())


def test_a_plan_that_fails_fails_everywhere(together):
    first, second = together("a_plan_that_fails_on_rank_0")
    assert first["errors"] == ["MemoryError: all gone"] * 2
    why = "RuntimeError: Sparsifier: rank 0 must make the plan for all processes, but got MemoryError: all gone"
    assert second["errors"] == [why] * 2
    for rank in (first, second):
        assert (rank["steps"], rank["rows"]) == (4, 9)
