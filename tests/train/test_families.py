"""Whole runs of the trainer on other data and models than images and perceptrons."""

import json
import math
import sys

import pytest
from torch import nn

from acdc_kernels.train.command import Options, run_training
from acdc_kernels.train.errors import UserError

from .conftest import cifar10_files, quiet

TEXT = {
    "preset": "python-text",
    "model": "transformer-1-32",
    "data_args": '{"characters": 40000, "block": 32}',
    "optimizer": "sgd",
    "lr": 0.3,
    "batch_size": 16,
    "epochs": 5,
    "threads": 1,
}


def report(folder):
    return json.loads((folder / "report.json").read_text())


def test_a_transformer_learns_characters_and_is_pruned(tmp_path):
    run_training(Options(**TEXT, out=tmp_path), "a test", quiet)
    found = report(tmp_path)
    assert found["flops"]["rule"] == "the paper's rule"
    assert found["data"]["source"].startswith("standard library of Python")
    sparse = found["models"]["sparse"]
    assert sparse["sparsity"] == pytest.approx(0.9, abs=1e-4)
    assert len(sparse["layers"]) == 5  # qkv, out, up, down, head
    # a fifth of the characters are spaces: more than always guessing one
    assert sparse["test_accuracy"] > 0.2
    assert found["history"][-1]["train_loss"] < found["history"][0]["train_loss"] - 0.3


class Attends(nn.Module):
    """A model of a stranger, whose attention no rule knows."""

    def __init__(self, classes, width=8):
        super().__init__()
        self.rows = nn.Linear(8, width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.head = nn.Linear(8 * width, classes)

    def forward(self, x):
        h = self.rows(x.squeeze(1))
        return self.head((h + self.attention(h, h, h)[0]).flatten(1))


def test_a_strangers_model_by_import_path(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "strangers_families", sys.modules[__name__])
    settings = {"epochs": 4, "batch_size": 128, "threads": 1, "model": "strangers_families:Attends"}
    run_training(Options(**settings, model_args='{"classes": 10}', out=tmp_path), "a test", quiet)
    found = report(tmp_path)
    assert found["config"]["model_args"] == '{"classes": 10}'
    assert found["flops"]["rule"].endswith("; other work of MultiheadAttention is left out")
    attention = 2 * 4 * 8 * 8 * 8 + 2 * 2 * 8 * 8 * 8
    linear = 2 * 8 * 8 * 8 + 8 * 8 + 2 * 64 * 10 + 10
    assert found["flops"]["dense_forward_per_sample"] == linear + attention
    with pytest.raises(UserError, match=r"model: strangers_families:Attends failed with \{\}: TypeError"):
        run_training(Options(**settings, out=tmp_path / "other"), "a test", quiet)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("data", ["cifar10", "imagefolder"])
def test_a_run_without_torchvision_ends_before_anything_is_written(tmp_path, monkeypatch, data):
    monkeypatch.setitem(sys.modules, "torchvision", None)  # makes its import fail
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(UserError, match="need the torchvision that was built for torch"):
        run_training(Options(dataset=data, data_dir=tmp_path, out=tmp_path / "run"), "a test", quiet)
    assert not (tmp_path / "run").exists()


def test_cifar_with_a_resnet_through_torchvision(torchvision, tmp_path, monkeypatch):
    cifar10_files(tmp_path, monkeypatch, torchvision)
    settings = {"preset": "cifar10-resnet20", "model": "resnet-8", "epochs": 4, "batch_size": 8, "threads": 1}
    outs = [tmp_path / "one", tmp_path / "two"]
    for out in outs:
        run_training(Options(**settings, data_dir=tmp_path, out=out), "a test", quiet)
    assert report(outs[0])["config"]["augment"]
    one, two = ((out / "sparse.safetensors").read_bytes() for out in outs)
    assert one == two
    assert math.isfinite(report(outs[0])["history"][-1]["train_loss"])
