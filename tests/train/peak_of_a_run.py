"""``python peak_of_a_run.py SCHEDULE WIDTH SAVING KERNELS``: what a run of an MLP adds to its process's peak, as JSON.

A run of a small model goes first: what the process loads once is no part of the growth.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch

from acdc_kernels.train.data import Dataset, TensorSplit
from acdc_kernels.train.loop import Trainer
from acdc_kernels.train.memory import memory_facts, peak_bytes
from acdc_kernels.train.presets import make_config
from acdc_kernels.train.run_folder import RunFolder


class Idle(RunFolder):
    """Writes none of the large files."""

    def save_checkpoint(self, **parts):
        pass

    def save_model(self, *model):
        pass


def run(schedule: str, width: int, saving: bool, kernels: str) -> Trainer:
    part = TensorSplit(torch.randn(16, 1, 28, 28), torch.arange(16) % 10)
    data = Dataset("noise", "noise", 10, part, part, part, part.inputs[:1])
    settings = {"epochs": 4, "batch_size": 8, "lr": 1e-3, "threads": 1, "kernels": kernels}
    config = make_config("demo", schedule=schedule, model=f"mlp-{width}", **settings)
    with tempfile.TemporaryDirectory() as place:
        folder = (RunFolder if saving else Idle)(Path(place, "run"))
        trainer = Trainer(config, data)
        folder.create(config)
        trainer.run(folder)
    return trainer


if __name__ == "__main__":
    schedule, width, saving, kernels = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "True", sys.argv[4]
    run(schedule, 16, saving, kernels)
    before = peak_bytes()
    trainer = run(schedule, width, saving, kernels)
    facts = memory_facts(trainer.model, trainer.optimizer, trainer.sparsifier)
    print(json.dumps({**facts, "growth": facts["peak_bytes"] - before}))
