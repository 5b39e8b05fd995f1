"""What a data set is: three parts, whose batches are a pure function of order, seed and epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor


class Split(Protocol):
    """Part of a data set."""

    def __len__(self) -> int:
        """How many samples there are."""
        ...

    def batches(self, order: Tensor, size: int, epoch: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """(inputs, targets) of `size` samples each, in the order of `order`; the last batch may be smaller.

        `order` holds sample indices (int64). `epoch` None means evaluation: no augmentation. What augmentation does to
        sample i in epoch e depends on the data set's seed, e and i alone, so that a resumed epoch repeats itself.
        """
        ...


@dataclass(frozen=True)
class TensorSplit:
    """Inputs [n, ...] and int64 targets [n] or [n, T] in memory.

    `transform(inputs, indices, epoch)` makes a batch of the stored inputs at `indices`; None: as they are.
    """

    inputs: Tensor
    targets: Tensor
    transform: Callable[[Tensor, Tensor, int | None], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def batches(self, order: Tensor, size: int, epoch: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        for indices in order.split(size):
            inputs = self.inputs[indices]
            if self.transform is not None:
                inputs = self.transform(inputs, indices, epoch)
            yield inputs, self.targets[indices]


@dataclass(frozen=True)
class Dataset:
    """A data set: training, validation (picks the checkpoints) and test (only reported).

    `source` says where the data came from; `fingerprint` is equal for equal samples, wherever they lie (what is the
    same everywhere, like files of known digests, needs none). `classes` is the number of classes, or the size of a
    text's vocabulary; `example` is one input batch of size 1, with the shape and dtype of every other input.
    """

    name: str
    source: str
    classes: int
    train: Split
    validation: Split
    test: Split
    example: Tensor
    unit: Literal["images", "characters"] = "images"
    fingerprint: str = ""


def hold_out(samples: int, validation: float, seed: int) -> tuple[Tensor, Tensor]:
    """(indices to train on, indices to hold out): the seed picks round(validation x samples) of them."""
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    held_out = round(validation * samples)
    return order[held_out:], order[:held_out]
