"""Optimizer and precision of a run: each trains, repeats and resumes to the bit."""

import pytest
import torch

from acdc_kernels.train.command import Options, run_training
from acdc_kernels.train.loop import Interrupted, autocast
from acdc_kernels.train.report import read_report
from acdc_kernels.train.run_folder import RunFolder

from .conftest import SHORT, quiet
from .test_loop import STEPS, history, models, same_bits, stop_at

SETTINGS = {
    "bf16": {"precision": "bf16"},
    "adamw": {"optimizer": "adamw", "lr": 0.002},
    "adamw bf16": {"optimizer": "adamw", "lr": 0.002, "precision": "bf16"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_stopped_run_ends_with_the_bits_of_a_whole_one(tmp_path, monkeypatch, name):
    settings = SHORT | SETTINGS[name]
    run_training(Options(**settings, out=tmp_path / "whole"), "a test", quiet)
    stop_at(monkeypatch, 3 * STEPS - 2)
    with pytest.raises(Interrupted):
        run_training(Options(**settings, out=tmp_path / "run"), "a test", quiet)
    run_training(Options(out=tmp_path / "run", resume=True), "a test", quiet)
    assert same_bits(models(tmp_path / "whole"), models(tmp_path / "run"))
    assert history(tmp_path / "whole") == history(tmp_path / "run")
    sparse = read_report(tmp_path / "run")["models"]["sparse"]
    assert sparse["nonzeros"] == sparse["weights"] - round(0.9 * sparse["weights"])
    assert sparse["test_accuracy"] > 0.6


def test_precision_decides_the_bits(finished, tmp_path):
    run_training(Options(**SHORT, precision="bf16", out=tmp_path), "a test", quiet)
    assert not same_bits(models(finished()), models(tmp_path))
    assert RunFolder(tmp_path).config().precision == "bf16"


def test_bf16_computes_products_in_bfloat16_and_the_loss_in_float32():
    model = torch.nn.Linear(2, 3)
    with autocast(model, "bf16"):
        logits = model(torch.ones(4, 2))
        loss = torch.nn.functional.cross_entropy(logits, torch.zeros(4, dtype=torch.int64))
    assert (logits.dtype, loss.dtype, model.weight.dtype) == (torch.bfloat16, torch.float32, torch.float32)
