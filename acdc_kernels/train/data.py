"""The data sets by name, and the order in which an epoch visits one."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from . import fashion_mnist, text, vision
from .errors import UserError
from .json_args import json_object
from .splits import Dataset, Split, TensorSplit, hold_out

__all__ = ["DATASETS", "Dataset", "Split", "TensorSplit", "epoch_order", "load"]

DATASETS = ("digits", "fashion-mnist", *vision.CIFAR, "imagefolder", "python-text")

# what data_args may hold for a data set: name and least value
ARGUMENTS = {"imagefolder": vision.ARGUMENTS, "python-text": text.ARGUMENTS}


def load(
    name: str,
    *,
    validation: float,
    seed: int,
    folder: Path | None = None,
    download: bool = False,
    augment: bool = False,
    data_args: str = "{}",
) -> Dataset:
    """One of `DATASETS`; `seed` picks the fraction `validation` of the training part to hold out.

    | name              | what it is                             | `folder`             | `data_args`           |
    |-------------------|----------------------------------------|----------------------|-----------------------|
    | digits            | scikit-learn's 8x8 digits              | left out             |                       |
    | fashion-mnist     | 28x28 images of clothes                | of its four files    |                       |
    | cifar10, cifar100 | 32x32 photographs, through torchvision | torchvision's        |                       |
    | imagefolder       | any images, through torchvision        | with train/ and val/ | size, resize, workers |
    | python-text       | the standard library's source          | left out             | block, characters     |

    `data_args` is a JSON object of whole numbers. `augment` asks for the usual random crops and flips of training
    images (CIFAR and imagefolder). Pixels are normalised by the mean and standard deviation of the training images (one
    for each channel with CIFAR; imagefolder uses ImageNet's). Raises UserError for what cannot be found, is corrupt, or
    means nothing.
    """
    if name not in DATASETS:
        raise UserError(f"data: must be one of {', '.join(DATASETS)}, got {name!r}")
    if augment and name not in (*vision.CIFAR, "imagefolder"):
        raise UserError(f"augment: only for {', '.join(vision.CIFAR)} and imagefolder, got {name}")
    arguments = _arguments(name, data_args)
    if name in ("digits", "python-text") and folder is not None:
        comes_with = {"digits": "scikit-learn", "python-text": "Python"}[name]
        raise UserError(f"data-dir: must be left out for {name} (it comes with {comes_with})")
    if name in vision.CIFAR:
        return vision.load_cifar(name, validation, seed, folder, download, augment)
    if name == "imagefolder":
        return vision.load_folder(validation, seed, folder, augment, **arguments)
    if name == "python-text":
        return text.load(validation, seed, **arguments)
    source, parts = _digits() if name == "digits" else fashion_mnist.load(folder, download)
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


def _arguments(name: str, data_args: str) -> dict[str, int]:
    found = json_object("data-args", data_args)
    known = ARGUMENTS.get(name, {})
    for key, value in found.items():
        if key not in known:
            raise UserError(f"data-args: {name} takes {', '.join(known) or 'none'}, got {key!r}")
        if type(value) is not int or value < known[key]:
            raise UserError(f"data-args: {key} must be a whole number, at least {known[key]}, got {value!r}")
    return found
