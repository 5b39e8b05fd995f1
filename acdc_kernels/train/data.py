"""Data sets as tensors in memory, with a held-out validation split, and the order in which an epoch visits them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from . import fashion_mnist
from .errors import UserError


@dataclass(frozen=True)
class Split:
    """Images (float32 [n, C, H, W], normalised) and labels (int64 [n])."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A data set in three parts: training, validation (picks the checkpoints) and test (only reported)."""

    name: str
    source: str
    classes: int
    train: Split
    validation: Split
    test: Split

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return tuple(self.train.images.shape[1:])


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
        raise UserError(f"data: must be 'digits' or 'fashion-mnist', got {name!r}")
    train_images, train_labels, test_images, test_labels = parts
    order = torch.randperm(len(train_labels), generator=torch.Generator().manual_seed(seed))
    held_out = round(validation * len(order))
    kept, held = order[held_out:], order[:held_out]
    std, mean = torch.std_mean(train_images[kept])

    def split(images: Tensor, labels: Tensor) -> Split:
        # channels_last lets the convolutions of torch's CPU backend skip their layout changes
        return Split(((images - mean) / std).contiguous(memory_format=torch.channels_last), labels)

    return Dataset(
        name,
        source,
        int(train_labels.max()) + 1,
        train=split(train_images[kept], train_labels[kept]),
        validation=split(train_images[held], train_labels[held]),
        test=split(test_images, test_labels),
    )


def epoch_order(images: int, seed: int, epoch: int) -> Tensor:
    """The order in which `epoch` visits the training images, the same whenever it is asked for: int64 [images]."""
    return torch.randperm(images, generator=torch.Generator().manual_seed((seed + 1) * 1_000_003 + epoch))


def _digits() -> tuple[str, tuple[Tensor, Tensor, Tensor, Tensor]]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16
    labels = torch.from_numpy(digits.target).long()
    train, test = train_test_split(range(len(labels)), test_size=0.2, random_state=0, stratify=digits.target)
    return "scikit-learn's digits", (images[train], labels[train], images[test], labels[test])
