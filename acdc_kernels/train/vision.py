"""CIFAR and folders of images, read by torchvision."""

from __future__ import annotations

import hashlib
import importlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from .augment import crop_and_flip, random_bits
from .errors import UserError
from .splits import Dataset, TensorSplit, hold_out

CIFAR = {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}  # name -> torchvision's class
CIFAR_FOLDER = Path("data")
ARGUMENTS = {"size": 1, "resize": 1, "workers": 0}
WORKERS = min(4, os.cpu_count() or 1)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of a random crop: share of the area, width / height
ATTEMPTS = 10


def torchvision(part: str) -> ModuleType:
    """``torchvision.PART``; UserError saying what to install where it cannot be imported."""
    try:
        return importlib.import_module(f"torchvision.{part}")
    except (ImportError, RuntimeError) as error:  # RuntimeError: a build for another torch
        version, _, build = torch.__version__.partition("+")
        built = f"; for this {build} build, from the index that torch came from" if build else ""
        raise UserError(
            f"data: cifar10, cifar100 and imagefolder need the torchvision that was built for torch {version}: "
            f"pip install torchvision{built} (importing it said: {error})"
        ) from error


def load_cifar(name: str, validation: float, seed: int, folder: Path | None, download: bool, augment: bool) -> Dataset:
    """CIFAR-10 or CIFAR-100 (Krizhevsky, 2009) from `folder`, as torchvision lays it out (None: ``./data``)."""
    make = getattr(torchvision("datasets"), CIFAR[name])
    folder = folder or CIFAR_FOLDER
    try:
        parts = [make(str(folder), train=train, download=download) for train in (True, False)]
    except (RuntimeError, OSError) as error:  # missing or corrupt; torchvision compares digests before it unpickles
        raise UserError(f"{name} cannot be read from {folder} ({error}); --download fetches it (170 MB)") from error
    images, labels = zip(*((torch.from_numpy(part.data), torch.tensor(part.targets)) for part in parts), strict=True)
    return cifar(name, str(folder), len(parts[0].classes), images, labels, validation, seed, augment)


def cifar(
    name: str,
    source: str,
    classes: int,
    images: tuple[Tensor, Tensor],
    labels: tuple[Tensor, Tensor],
    validation: float,
    seed: int,
    augment: bool,
) -> Dataset:
    """A data set of small images in memory: uint8 [n, H, W, C] and int64 [n], of training and of test."""
    kept, held = hold_out(len(labels[0]), validation, seed)
    mean, std = channel_statistics(images[0][kept])
    plain = SmallImages(mean, std)
    height, width, channels = images[0].shape[1:]
    return Dataset(
        name,
        source,
        classes,
        train=TensorSplit(images[0][kept], labels[0][kept], SmallImages(mean, std, seed) if augment else plain),
        validation=TensorSplit(images[0][held], labels[0][held], plain),
        test=TensorSplit(images[1], labels[1], plain),
        example=torch.zeros(1, channels, height, width),
    )


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, standard deviation) of each channel of uint8 images [n, H, W, C], float32 [C] in [0, 1]; exact counts."""
    values = torch.arange(256, dtype=torch.float64) / 255
    shares = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(-1)]).double()
    shares /= shares.sum(1, keepdim=True)
    mean = shares @ values
    return mean.float(), (shares @ values**2 - mean**2).sqrt().float()


class SmallImages:
    """Makes batches of uint8 images [B, H, W, C]: float32 [B, C, H, W], channels last, normalised.

    With a `seed`, training images are first padded by 4, cropped and mirrored at random (He et al., 2016, section 4.2).
    """

    def __init__(self, mean: Tensor, std: Tensor, seed: int | None = None) -> None:
        self.shift, self.scale, self.seed = mean * 255, std * 255, seed

    def __call__(self, images: Tensor, indices: Tensor, epoch: int | None) -> Tensor:
        if self.seed is not None and epoch is not None:
            images = crop_and_flip(images, self.seed, epoch, indices)
        return images.float().sub_(self.shift).div_(self.scale).permute(0, 3, 1, 2)


def load_folder(
    validation: float,
    seed: int,
    folder: Path | None,
    augment: bool,
    size: int = 224,
    resize: int | None = None,
    workers: int = WORKERS,
) -> Dataset:
    """Images below ``FOLDER/train/CLASS/`` and ``FOLDER/val/CLASS/``, read as they are needed by `workers` processes.

    ``val`` is the test set, as is usual with ImageNet; validation images are held out of ``train``. Evaluation resizes
    the shorter side to `resize` (None: 256 for 224, in proportion) and cuts out the centre, `size` x `size`.
    """
    datasets = torchvision("datasets")
    if folder is None:
        raise UserError("data-dir: imagefolder needs a folder that holds train/CLASS/ and val/CLASS/")
    resize = resize or round(size * 256 / 224)
    if resize < size:
        raise UserError(f"data-args: resize must be at least size ({size}), got {resize}")
    try:
        train, test = (datasets.ImageFolder(str(folder / part)) for part in ("train", "val"))
    except (OSError, RuntimeError) as error:
        raise UserError(f"{folder}: must hold train/CLASS/ and val/CLASS/ with images ({error})") from error
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise UserError(
            f"{folder}: train/ and val/ must hold the same classes, got {', '.join(odd[:5])} in one of them"
        )
    kept, held = hold_out(len(train), validation, seed)

    def split(samples: list[tuple[str, int]], augmented: bool = False) -> FolderSplit:
        return FolderSplit(samples, size, resize, seed if augmented else None, workers)

    return Dataset(
        "imagefolder",
        str(folder),
        len(train.classes),
        train=split([train.samples[i] for i in kept.tolist()], augment),
        validation=split([train.samples[i] for i in held.tolist()]),
        test=split(test.samples),
        example=torch.zeros(1, 3, size, size),
        fingerprint=fingerprint(folder, train.samples, test.samples),
    )


def fingerprint(folder: Path, train: list[tuple[str, int]], test: list[tuple[str, int]]) -> str:
    """What a resumed run compares: how many images there are, and their names below `folder` in order."""
    names = "\n".join(Path(path).relative_to(folder).as_posix() for path, _ in (*train, *test))
    digest = hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()
    return f"{len(train):,} images in train/, {len(test):,} in val/ (sha256 of their names {digest[:16]})"


class FolderSplit:
    """Image files with their classes; a batch is float32 [B, 3, size, size], channels last, normalised."""

    def __init__(self, samples: list[tuple[str, int]], size: int, resize: int, seed: int | None, workers: int) -> None:
        self.samples, self.size, self.resize, self.seed, self.workers = samples, size, resize, seed, workers

    def __len__(self) -> int:
        return len(self.samples)

    def batches(self, order: Tensor, size: int, epoch: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        seed = None if epoch is None else self.seed
        images = _Images(self.samples, self.size, self.resize, seed, epoch or 0)
        loader: DataLoader[Any] = DataLoader(
            images,
            batch_sampler=[indices.tolist() for indices in order.split(size)],
            num_workers=self.workers,
            generator=torch.Generator(),  # else the loader draws from the training's random numbers
        )
        for pixels, labels in loader:
            yield pixels.contiguous(memory_format=torch.channels_last), labels


class _Images(TorchDataset):
    """One file a sample, decoded, cropped and normalised in a worker process."""

    def __init__(self, samples: list[tuple[str, int]], size: int, resize: int, seed: int | None, epoch: int) -> None:
        self.samples, self.size, self.resize, self.seed, self.epoch = samples, size, resize, seed, epoch

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        transforms = torchvision("transforms.functional")
        path, label = self.samples[index]
        try:
            image = torchvision("datasets.folder").pil_loader(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be read as an image ({error})") from error
        if self.seed is None:
            image = transforms.center_crop(transforms.resize(image, self.resize), self.size)
        else:
            width, height = image.size
            top, left, rows, columns, flip = random_crop(height, width, self.seed, self.epoch, index)
            image = transforms.resized_crop(image, top, left, rows, columns, [self.size, self.size])
            image = transforms.hflip(image) if flip else image
        return transforms.normalize(transforms.to_tensor(image), IMAGENET_MEAN, IMAGENET_STD), label


def random_crop(height: int, width: int, seed: int, epoch: int, index: int) -> tuple[int, int, int, int, bool]:
    """(top, left, rows, columns, whether to mirror) of sample `index` in `epoch`.

    A random share of the area (8 to 100%) with a random aspect (3/4 to 4/3), anywhere in the image (Szegedy et al.,
    2015); after ten draws that don't fit, the largest centred crop of allowed aspect.
    """
    draws = random_bits(seed, epoch, torch.tensor([index]), 4 * ATTEMPTS + 1)[0] / 2**31
    for share, aspect, down, right in draws[:-1].view(ATTEMPTS, 4).tolist():
        area = height * width * (SCALE[0] + share * (SCALE[1] - SCALE[0]))
        ratio = math.exp(math.log(RATIO[0]) + aspect * (math.log(RATIO[1]) - math.log(RATIO[0])))
        columns, rows = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < columns <= width and 0 < rows <= height:
            top, left = int(down * (height - rows + 1)), int(right * (width - columns + 1))
            return top, left, rows, columns, bool(draws[-1] < 0.5)
    columns = min(width, round(height * RATIO[1]))
    rows = min(height, round(columns / RATIO[0]))
    return (height - rows) // 2, (width - columns) // 2, rows, columns, bool(draws[-1] < 0.5)
