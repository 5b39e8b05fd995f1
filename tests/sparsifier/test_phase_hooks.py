"""Hooks: when they are called, with what, and in which order."""

from __future__ import annotations

import copy

import pytest


def test_called_at_every_change_of_phase_with_the_new_phase_in_place(run):
    training = run()
    seen = []

    def hook(sparsifier, old, new):
        assert sparsifier is training.sparsifier
        assert sparsifier.phase == new
        assert bool(sparsifier.masks) == (new.kind == "compressed")
        assert sparsifier.step_count == new.first_step == old.last_step + 1
        if new.kind == "dense":
            assert all(not m.count_nonzero() for m in training.momentum().values())
        seen.append((old.index, new.index, new.kind))

    training.sparsifier.register_phase_hook(hook)
    training.train()
    kinds = ["dense", "compressed"] * 3
    assert seen == [(i, i + 1, kinds[i + 1]) for i in range(5)]


def test_order_and_removal(run):
    training = run()
    seen = []
    first = training.sparsifier.register_phase_hook(lambda *_: seen.append("first"))
    training.sparsifier.register_phase_hook(lambda *_: seen.append("second"))
    training.train(3)
    first.remove()
    training.train(3)
    assert seen == ["first", "second", "second"]


def test_a_hook_may_remove_itself(run):
    training = run()
    seen = []
    handles = [training.sparsifier.register_phase_hook(lambda *_: (seen.append(1), handles[0].remove()))]
    training.train()
    assert seen == [1]


def test_a_hook_that_raises_leaves_the_flip_whole(run):
    training = run()

    def stop(*_):
        raise KeyboardInterrupt

    training.sparsifier.register_phase_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        training.train()
    assert (training.sparsifier.step_count, training.sparsifier.phase.kind) == (3, "compressed")
    assert len(training.sparsifier.masks) == 3


def test_loading_calls_none(run):
    saved = copy.deepcopy(run().train(4).sparsifier.state_dict())
    training = run()
    training.sparsifier.register_phase_hook(lambda *_: pytest.fail("a hook was called"))
    training.sparsifier.load_state_dict(saved)
    assert training.sparsifier.phase.kind == "compressed"
