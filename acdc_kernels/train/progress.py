"""What the user sees while a run trains: a bar on a terminal, and one line an epoch everywhere."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


class Progress:
    """Shows the epochs of a run of `epochs` epochs of `steps` steps of `batch` images."""

    def __init__(self, epochs: int, steps: int, batch: int) -> None:
        self.epochs, self.steps, self.batch = epochs, steps, batch
        self._bar: tqdm | None = None

    def start_epoch(self, epoch: int, first_step: int, kind: str, sparsity: float) -> None:
        self._sparsity = sparsity
        self._bar = tqdm(
            desc=f"epoch {epoch + 1:>{len(str(self.epochs))}}/{self.epochs}  {kind:<10}",
            total=self.steps * self.batch,
            initial=first_step * self.batch,
            unit=" images",
            leave=False,
            dynamic_ncols=True,
            disable=None,  # no bar unless stderr is a terminal
            bar_format="{desc} |{bar}| {percentage:3.0f}%{postfix} {rate_fmt}",
        )

    def step(self, loss: float, accuracy: float) -> None:
        if self._bar.disable:
            return
        self._bar.set_postfix_str(f"loss {loss:.4f} train {accuracy:.1%} sparsity {self._sparsity:.1%}", refresh=False)
        self._bar.update(self.batch)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def end_epoch(self, row: dict[str, Any], images_per_second: float) -> None:
        self.close()
        self.say(
            f"epoch {row['epoch']:>{len(str(self.epochs))}}/{self.epochs}  {row['phase']:<10}"
            f"  loss {row['train_loss']:.4f}  train {row['train_accuracy']:6.2%}  val {row['val_accuracy']:6.2%}"
            f"  sparsity {row['sparsity']:5.1%}  {images_per_second:8,.0f} images/s"
        )

    @staticmethod
    def say(text: str) -> None:
        print(text, file=sys.stdout, flush=True)
