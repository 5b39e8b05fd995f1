"""Data sets in three parts, whose batches are a pure function of order, seed and epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from . import fashion_mnist
from .errors import UserError

DATASETS = ("digits", "fashion-mnist")


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

    `source` says where the data came from; `classes` is the number of classes, or the size of a text's vocabulary;
    `example` is one input batch of size 1, with the shape and dtype of every other input.
    """

    name: str
    source: str
    classes: int
    train: Split
    validation: Split
    test: Split
    example: Tensor
    unit: Literal["images", "characters"] = "images"


def load(name: str, *, validation: float, seed: int, folder: Path | None = None, download: bool = False) -> Dataset:
    """Load ``digits`` or ``fashion-mnist``; `seed` picks the fraction `validation` of the training images to hold out.

    Pixels are normalised by the mean and standard deviation of the training images. Raises UserError for a folder that
    is missing, truncated or corrupt.
    """
    if name == "digits":
        if folder is not None:
            raise UserError("data-dir: must be left out for digits (it comes with scikit-learn)")
        source, parts = _digits()
    elif name == "fashion-mnist":
        source, parts = fashion_mnist.load(folder, download)
    else:
        raise UserError(f"data: must be one of {', '.join(DATASETS)}, got {name!r}")
    train_images, train_labels, test_images, test_labels = parts
    kept, held = hold_out(len(train_labels), validation, seed)
    std, mean = torch.std_mean(train_images[kept])

    def split(images: Tensor, labels: Tensor) -> TensorSplit:
        # channels_last lets the convolutions of torch's CPU backend skip their layout changes
        return TensorSplit(((images - mean) / std).contiguous(memory_format=torch.channels_last), labels)

    return Dataset(
        name,
        source,
        int(train_labels.max()) + 1,
        train=split(train_images[kept], train_labels[kept]),
        validation=split(train_images[held], train_labels[held]),
        test=split(test_images, test_labels),
        example=torch.zeros(1, *train_images.shape[1:]),
    )


def hold_out(samples: int, validation: float, seed: int) -> tuple[Tensor, Tensor]:
    """(indices to train on, indices to hold out): the seed picks round(validation x samples) of them."""
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    held_out = round(validation * samples)
    return order[held_out:], order[:held_out]


def epoch_order(samples: int, seed: int, epoch: int) -> Tensor:
    """The order in which `epoch` visits the training samples, the same whenever it is asked for: int64 [samples]."""
    return torch.randperm(samples, generator=torch.Generator().manual_seed((seed + 1) * 1_000_003 + epoch))


def _digits() -> tuple[str, tuple[Tensor, Tensor, Tensor, Tensor]]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16
    labels = torch.from_numpy(digits.target).long()
    train, test = train_test_split(range(len(labels)), test_size=0.2, random_state=0, stratify=digits.target)
    return "scikit-learn's digits", (images[train], labels[train], images[test], labels[test])
