"""What a run shows: a bar on a terminal only, one line an epoch everywhere."""

import io
import sys

import pytest

from acdc_kernels.train.progress import Progress

ROW = {
    "epoch": 2,
    "phase": "compressed",
    "train_loss": 0.5,
    "train_accuracy": 0.9,
    "val_accuracy": 0.875,
    "sparsity": 0.9,
}


class Stream(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.isatty = lambda: terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_bar_and_line(monkeypatch, capsys, terminal):
    shown = Stream(terminal)
    monkeypatch.setattr(sys, "stderr", shown)
    progress = Progress(epochs=12, steps=3, unit="images")
    progress.start_epoch(1, 2, "compressed", 0.9)
    progress.step(0.5, 0.9)
    progress.end_epoch(ROW, rate=12345.6)
    assert capsys.readouterr().out == (
        "epoch  2/12  compressed  loss 0.5000  train 90.00%  val 87.50%  sparsity 90.0%    12,346 images/s\n"
    )
    if terminal:
        assert "epoch  2/12  compressed" in shown.getvalue()
        assert "67%" in shown.getvalue()  # a resumed epoch begins where it stopped
    else:
        assert shown.getvalue() == ""


def test_closing_twice_is_harmless():
    progress = Progress(epochs=1, steps=1, unit="images")
    progress.start_epoch(0, 0, "dense", 0.0)
    progress.close()
    progress.close()
