"""The training loop: steps and phases, checkpoints that restore every bit, the pair picked by validation accuracy."""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from ..policy.schedules import Phase
from ..sparsifier import Sparsifier
from .clock import Clock, StopRequest
from .data import Dataset, Split, epoch_order
from .errors import UserError
from .flops import FlopRule
from .models import build_model
from .models.by_path import is_path
from .optimizers import build_optimizer
from .presets import RunConfig
from .progress import Progress
from .run_folder import Kind, RunFolder

EVALUATION_BATCH = 500


class Interrupted(Exception):
    """The run was asked to stop and has saved its state; `signal` is what asked."""

    def __init__(self, signal: int) -> None:
        super().__init__(f"stopped by signal {signal}")
        self.signal = signal


class Trainer:
    """One run of `config` on `data`; building it checks every setting and writes nothing."""

    def __init__(self, config: RunConfig, data: Dataset) -> None:
        self.config, self.data = config, data
        self.steps_per_epoch = len(data.train) // config.batch_size  # the last, smaller batch is dropped
        for part, use in (("validation", "pick the epochs by"), ("test", "report on")):
            if not len(getattr(data, part)):
                raise UserError(f"data: {data.name} has no {part} samples to {use}, got {len(data.train)} to train on")
        if self.steps_per_epoch < 1:
            raise UserError(f"batch-size: must be at most {len(data.train)} training samples, got {config.batch_size}")
        torch.set_num_threads(config.threads)
        self.model = build_model(config.model, data, config.seed, config.model_args)
        self.flops = FlopRule.of(self.model, data.example, strict=not is_path(config.model))
        schedule = config.build_schedule(self.steps_per_epoch)
        self.phases = [schedule.at(epoch * self.steps_per_epoch) for epoch in range(config.epochs)]
        self.optimizer = build_optimizer(config, self.model)
        self.sparsifier = Sparsifier(
            self.model,
            self.optimizer,
            schedule,
            sparsity=config.sparsity,
            pattern=config.pattern,
            scope=config.scope,
            kernels=config.kernels,
        )
        warmup = config.lr_warmup * self.steps_per_epoch
        self.lr_schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: lr_factor(step, warmup, self.total_steps)
        )
        self.step = 0  # optimizer updates so far
        self.history: list[dict[str, Any]] = []
        self.clock = Clock()
        self._sums = _EpochSums()
        self._rate = 0.0  # targets a second in the last epoch

    @property
    def total_steps(self) -> int:
        return self.config.epochs * self.steps_per_epoch

    def phase_epochs(self) -> list[tuple[str, int]]:
        """(kind, length in epochs) of each phase in order."""
        return [(run[0].kind, len(run)) for _, group in groupby(self.phases, lambda p: p.index) if (run := list(group))]

    def save(self, folder: RunFolder) -> None:
        """Save everything that decides the rest of the run, between any two steps; gradients are none of it."""
        self.optimizer.zero_grad()
        progress = {
            "data": self.data.fingerprint,
            "step": self.step,
            "history": self.history,
            "epoch_sums": asdict(self._sums),
            "seconds": self.clock.seconds,
        }
        folder.save_checkpoint(**self._parts(), progress=progress)

    def restore(self, folder: RunFolder) -> bool:
        """Go on from the checkpoint in `folder`: False if there is none. Raises UserError if it can't be used."""
        saved = folder.load_checkpoint(**self._parts())
        if saved is None:
            return False
        progress = saved["progress"]
        if progress["data"] != self.data.fingerprint:
            raise UserError(
                f"{folder.path}: the data of this run is {progress['data']}, {self.data.name} here is "
                f"{self.data.fingerprint}; go on with the data that it began with, or choose another --out"
            )
        self.step, self.history = progress["step"], progress["history"]
        self._sums, self.clock = _EpochSums(**progress["epoch_sums"]), Clock(progress["seconds"])
        return True

    def _parts(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "sparsifier": self.sparsifier,
            "lr_schedule": self.lr_schedule,
        }

    def run(self, folder: RunFolder) -> None:
        """Train to the end, leaving checkpoint, history and the pair's two models in `folder`.

        SIGINT and SIGTERM save at the next step boundary and raise Interrupted. A loss that is not finite raises
        UserError.
        """
        config = self.config
        progress = Progress(config.epochs, self.steps_per_epoch, self.data.unit)
        try:
            with StopRequest() as stop:
                for epoch in range(len(self.history), config.epochs):
                    self._train_epoch(epoch, folder, progress, stop)
                    self.save(folder)
                    progress.end_epoch(self.history[-1], self._rate)
                    if stop.signal is not None and epoch + 1 < config.epochs:
                        raise Interrupted(stop.signal)
        finally:
            progress.close()

    def _train_epoch(self, epoch: int, folder: RunFolder, progress: Progress, stop: StopRequest) -> None:
        size, phase = self.config.batch_size, self.phases[epoch]
        order = epoch_order(len(self.data.train), self.config.seed, epoch)
        first = self.step - epoch * self.steps_per_epoch
        # a dense phase begins with the zeros of the compressed one, gone after its first update
        sparsity = self.sparsifier.achieved_sparsity() if phase.kind == "compressed" else 0.0
        progress.start_epoch(epoch, first, phase.kind, sparsity)
        self.model.train()
        batches = self.data.train.batches(order[first * size : self.steps_per_epoch * size], size, epoch)
        for last in (i + 1 == self.steps_per_epoch for i in range(first, self.steps_per_epoch)):
            started = time.perf_counter()
            self._update(*next(batches))
            taken = time.perf_counter() - started
            self.clock.add(phase.kind, taken)
            self._sums.seconds += taken
            progress.step(*self._sums.means())
            if last:
                self._end_epoch(epoch, folder)  # before the flip that may be due changes what this epoch has trained
            self._count_update(phase)
            if stop.signal is not None and not last:
                self.save(folder)
                raise Interrupted(stop.signal)

    def _update(self, inputs: Tensor, targets: Tensor) -> None:
        self.optimizer.zero_grad()
        with autocast(self.model, self.config.precision):
            logits = self.model(inputs).flatten(0, -2)
            targets = targets.flatten()
            loss = nn.functional.cross_entropy(logits, targets)
        if not math.isfinite(value := loss.item()):
            raise UserError(f"loss is {value} at step {self.step}: training diverged; try a lower --lr")
        loss.backward()
        self.optimizer.step()
        correct = int((logits.argmax(1) == targets).sum())
        self._sums.add(value, correct, len(targets), float(self.optimizer.param_groups[0]["lr"]))

    def _count_update(self, phase: Phase) -> None:
        planned, started = self.sparsifier.planning_seconds, time.perf_counter()
        try:
            self.sparsifier.step()
        except ValueError as error:  # NaN where weights are to be compared
            raise UserError(f"{error}; training diverged; try a lower --lr") from error
        taken = time.perf_counter() - started
        if planning := self.sparsifier.planning_seconds - planned:
            self.clock.add("planning", planning)
        if self.sparsifier.phase.index != phase.index:
            self.clock.add("flip", taken - planning)
        self.lr_schedule.step()
        self.step += 1

    def _end_epoch(self, epoch: int, folder: RunFolder) -> None:
        phase = self.phases[epoch]
        self.optimizer.zero_grad()  # their memory is better used by what follows
        started = time.perf_counter()
        accuracy = evaluate(self.model, self.data.validation, self.config.precision)
        self.clock.add("evaluation", time.perf_counter() - started)
        nonzeros = self.flops.nonzeros(self.model)
        sums, self._sums = self._sums, _EpochSums()
        loss, train_accuracy = sums.means()
        row = {
            "epoch": epoch + 1,
            "phase": phase.kind,
            "train_loss": loss,
            "train_accuracy": train_accuracy,
            "val_accuracy": accuracy,
            "sparsity": self.flops.sparsity(nonzeros),
            "lr": sums.lr,
            "flops": self.flops.forward(nonzeros) / self.flops.dense_forward,
            "seconds": sums.seconds,
        }
        self.history.append(row)
        self._rate = sums.targets / sums.seconds
        kind: Kind = "dense" if phase.kind == "dense" else "sparse"
        if self.best(kind) is row:
            facts = {"epoch": row["epoch"], "val_accuracy": accuracy, **self._facts()}
            folder.save_model(kind, self.model.state_dict(), facts)
        folder.write_history(self.history)

    def best(self, kind: Kind) -> dict[str, Any] | None:
        """The epoch with the highest validation accuracy (the first on a tie) in the last phase of `kind`.

        None while that phase has not begun, or if the schedule has none.
        """
        wanted = "dense" if kind == "dense" else "compressed"
        last = max((phase.index for phase in self.phases if phase.kind == wanted), default=None)
        rows = [row for row, phase in zip(self.history, self.phases, strict=False) if phase.index == last]
        return max(rows, key=lambda row: row["val_accuracy"], default=None)

    def _facts(self) -> dict[str, Any]:
        config = self.config
        return {"preset": config.preset, "model": config.model, "schedule": config.schedule, "seed": config.seed}


@dataclass
class _EpochSums:
    """Running sums over the steps of the epoch in progress; a sample has one target or more (characters)."""

    loss: float = 0.0
    correct: int = 0
    targets: int = 0
    lr: float = 0.0
    seconds: float = 0.0

    def add(self, loss: float, correct: int, targets: int, lr: float) -> None:
        self.loss += loss * targets
        self.correct += correct
        self.targets += targets
        self.lr = lr

    def means(self) -> tuple[float, float]:
        """(loss, accuracy) over the targets so far."""
        return self.loss / self.targets, self.correct / self.targets


def autocast(model: nn.Module, precision: str) -> AbstractContextManager:
    """bf16: mixed precision for `model`'s device; fp32: nothing."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(next(model.parameters()).device.type, dtype=torch.bfloat16)


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, precision: str = "fp32") -> float:
    """The fraction of the targets in `split` that `model` gets right, in evaluation mode."""
    model.eval()
    right = total = 0
    for inputs, targets in split.batches(torch.arange(len(split)), EVALUATION_BATCH, None):
        with autocast(model, precision):
            right += int((model(inputs).argmax(-1) == targets).sum())
        total += targets.numel()
    return right / total


def lr_factor(step: int, warmup: float, total: int) -> float:
    """Linear warm-up over `warmup` steps, then a cosine from 1 to 0 at `total`; unaware of phases."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
