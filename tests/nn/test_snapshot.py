"""Snapshots: what was saved comes back bit for bit, and files neither break nor stay behind."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

from acdc_kernels.nn import Snapshot, named_tensors


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where temporary files go, empty at first."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def files(folder):
    return sorted(path.name for path in Path(folder).rglob("*") if path.is_file())


@pytest.mark.parametrize("where", ["disk", "memory", "path"])
def test_comes_back_bit_for_bit(where, temporary):
    snapshot = Snapshot(temporary / "twin.pt" if where == "path" else where)
    for seed in (1, 2):
        tensors = {
            "a": torch.randn(5, 7, generator=torch.Generator().manual_seed(seed)),
            "b": torch.tensor([0.0, -0.0, float("nan"), float("inf")], dtype=torch.bfloat16),
            "steps": torch.tensor(seed),
        }
        before = {name: tensor.clone() for name, tensor in tensors.items()}
        snapshot.save(tensors)
        for tensor in tensors.values():
            tensor.zero_()
        loaded = snapshot.load()
        assert loaded.keys() == before.keys()
        for name, tensor in loaded.items():
            assert tensor.dtype == before[name].dtype
            assert torch.equal(tensor.contiguous().view(-1).view(torch.uint8), before[name].view(-1).view(torch.uint8))


def test_an_older_load_survives_a_newer_save(temporary):
    snapshot = Snapshot("disk")
    snapshot.save({"a": torch.ones(1000)})
    older = snapshot.load()
    snapshot.save({"a": torch.zeros(1000)})
    assert torch.equal(older["a"], torch.ones(1000))
    assert torch.equal(snapshot.load()["a"], torch.zeros(1000))


@pytest.mark.parametrize("how", ["collected", "discarded"])
def test_temporary_file_goes(how, temporary):
    snapshot = Snapshot("disk")
    snapshot.save({"a": torch.ones(3)})
    assert files(temporary) == ["dense.pt", "in-use"]
    if how == "discarded":
        snapshot.discard()
    else:
        del snapshot
        gc.collect()
    assert list(temporary.iterdir()) == []


def test_a_forked_child_leaves_the_file(temporary):
    snapshot = Snapshot("disk")
    snapshot.save({"a": torch.ones(3)})
    child = os.fork()
    if child == 0:
        del snapshot
        os._exit(0)
    os.waitpid(child, 0)
    assert files(temporary) == ["dense.pt", "in-use"]


def test_a_file_of_ones_own_stays(tmp_path):
    snapshot = Snapshot(str(tmp_path / "twin.pt"))
    snapshot.save({"a": torch.ones(3)})
    snapshot.discard()
    del snapshot
    gc.collect()
    assert files(tmp_path) == ["twin.pt"]


def test_a_failed_save_leaves_the_previous_one(tmp_path, monkeypatch):
    snapshot = Snapshot(tmp_path / "twin.pt")
    snapshot.save({"a": torch.ones(3)})

    def full(tensors, path):
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        snapshot.save({"a": torch.zeros(3)})
    assert files(tmp_path) == ["twin.pt"]
    assert torch.equal(snapshot.load()["a"], torch.ones(3))


@pytest.mark.parametrize("path", ["", "missing/twin.pt"])
def test_rejects_a_path_that_cannot_be_written(path, tmp_path):
    with pytest.raises(ValueError, match="dense_snapshot must be 'disk', 'memory' or the path of a file in an"):
        Snapshot(tmp_path / path)


def test_named_tensors():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    model[2].weight = model[0].weight
    model.register_buffer("hidden", torch.ones(1), persistent=False)
    tensors = named_tensors(model)
    assert list(tensors) == [
        *("0.weight", "0.bias", "1.weight", "1.bias", "2.bias"),
        *("hidden", "1.running_mean", "1.running_var", "1.num_batches_tracked"),
    ]
    assert tensors["0.weight"].data_ptr() == model[0].weight.data_ptr()
    assert not any(tensor.requires_grad for tensor in tensors.values())


def test_what_a_killed_process_left_goes_with_the_next_snapshot(tmp_path, monkeypatch):
    code = (
        "import os, tempfile, torch\n"
        f"tempfile.tempdir = {str(tmp_path)!r}\n"
        "from acdc_kernels.nn import Snapshot\n"
        "snapshot = Snapshot()\n"
        "snapshot.save({'w': torch.ones(3)})\n"
        "os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    (left,) = tmp_path.iterdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    first = Snapshot()
    assert not left.exists()
    second = Snapshot()  # the first is in use: it stays
    assert len(list(tmp_path.iterdir())) == 2
    first.discard()
    second.discard()
    assert list(tmp_path.iterdir()) == []
