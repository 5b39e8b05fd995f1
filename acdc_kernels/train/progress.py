"""What the user sees while a run trains: a bar on a terminal, and one line an epoch everywhere."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


class Progress:
    """Shows the epochs of a run of `epochs` epochs of `steps` steps, on images or characters (`unit`)."""

    def __init__(self, epochs: int, steps: int, unit: str) -> None:
        self.epochs, self.steps, self.unit = epochs, steps, unit
        self._bar: tqdm | None = None

    def start_epoch(self, epoch: int, first_step: int, kind: str, sparsity: float) -> None:
        self._sparsity = sparsity
        self._bar = tqdm(
            desc=f"epoch {epoch + 1:>{len(str(self.epochs))}}/{self.epochs}  {kind:<10}",
            total=self.steps,
            initial=first_step,
            unit=" steps",
            leave=False,
            dynamic_ncols=True,
            disable=None,  # no bar unless stderr is a terminal
            bar_format="{desc} |{bar}| {percentage:3.0f}%{postfix} {rate_fmt}",
        )

    def step(self, loss: float, accuracy: float) -> None:
        if self._bar.disable:
            return
        self._bar.set_postfix_str(f"loss {loss:.4f} train {accuracy:.1%} sparsity {self._sparsity:.1%}", refresh=False)
        self._bar.update()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def end_epoch(self, row: dict[str, Any], rate: float) -> None:
        self.close()
        self.say(
            f"epoch {row['epoch']:>{len(str(self.epochs))}}/{self.epochs}  {row['phase']:<10}"
            f"  loss {row['train_loss']:.4f}  train {row['train_accuracy']:6.2%}  val {row['val_accuracy']:6.2%}"
            f"  sparsity {row['sparsity']:5.1%}  {rate:8,.0f} {self.unit}/s"
        )

    @staticmethod
    def say(text: str) -> None:
        print(text, file=sys.stdout, flush=True)
