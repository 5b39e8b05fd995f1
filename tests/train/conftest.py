"""A few seconds of training that several tests look at, and Fashion-MNIST's four files in miniature."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from acdc_kernels.train import fashion_mnist
from acdc_kernels.train.command import Options, run_training
from acdc_kernels.train.data import Dataset, TensorSplit
from acdc_kernels.train.text import TextSplit

# the model decides, so that runs repeat to the bit
SHORT = {"preset": "demo", "epochs": 5, "batch_size": 128, "lr": 0.1, "threads": 1, "kernels": "model"}


def characters(block: int, classes: int = 97) -> Dataset:
    """A data set of two sequences of newlines, as `images` is one of zero images."""
    part = TextSplit(torch.zeros(2 * block + 1, dtype=torch.uint8), block)
    example = torch.zeros(1, block, dtype=torch.int64)
    return Dataset("characters", "a test", classes, part, part, part, example, "characters")


def images(*shape: int, classes: int = 10) -> Dataset:
    """A data set of two zero images of `shape`, for what asks only for shapes and the number of classes."""
    part = TensorSplit(torch.zeros(2, *shape), torch.zeros(2, dtype=torch.int64))
    return Dataset("images", "a test", classes, part, part, part, torch.zeros(1, *shape))


def quiet(_text: str) -> None:
    """Swallow what a command says."""


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a finished short run of the demo; made once for each setting."""
    made: dict[tuple, Path] = {}

    def make(schedule: str = "acdc", seed: int = 0) -> Path:
        if (schedule, seed) not in made:
            out = tmp_path_factory.mktemp("runs") / f"{schedule}-{seed}"
            run_training(Options(**SHORT, schedule=schedule, seed=seed, out=out), "a test", quiet)
            made[schedule, seed] = out
        return made[schedule, seed]

    return make


def idx(array: torch.Tensor) -> bytes:
    """`array` (uint8) as an IDX file."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.numpy().tobytes()


@pytest.fixture
def miniature(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The content of four small IDX files, which the loader takes for Fashion-MNIST's while the test runs."""
    generator = torch.Generator().manual_seed(0)
    content = {}
    for part, images in (("train", 48), ("t10k", 16)):
        pixels = torch.randint(0, 256, (images, 28, 28), generator=generator, dtype=torch.uint8)
        labels = (torch.arange(images) % 10).to(torch.uint8)
        content[f"{part}-images-idx3-ubyte"] = idx(pixels)
        content[f"{part}-labels-idx1-ubyte"] = idx(labels)
    digests = {name: hashlib.sha256(content[name]).hexdigest() for name in fashion_mnist.SHA256}
    monkeypatch.setattr(fashion_mnist, "SHA256", digests)
    monkeypatch.setattr(fashion_mnist, "DEFAULT_FOLDERS", (Path("/nowhere"),))
    return content


def lay(content: dict[str, bytes], folder: Path, zipped: bool = True) -> Path:
    """Write the files of `content` to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in content.items():
        path = folder / (f"{name}.gz" if zipped else name)
        path.write_bytes(gzip.compress(data) if zipped else data)
    return folder


def pixels(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random bytes."""
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.fixture
def torchvision() -> ModuleType:
    """torchvision, where it can be imported."""
    try:
        import torchvision.datasets
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision cannot be imported: {error}")
    return torchvision


def cifar10_files(folder: Path, monkeypatch: pytest.MonkeyPatch, torchvision: ModuleType) -> dict:
    """Files as CIFAR-10's, of 8 images each, whose digests torchvision takes for the real ones."""
    make = torchvision.datasets.CIFAR10
    base = folder / make.base_folder
    base.mkdir()
    contents = {}

    def write(name, content):
        (base / name).write_bytes(packed := pickle.dumps(content))
        return [name, hashlib.md5(packed).hexdigest()]

    for i, (name, _) in enumerate([*make.train_list, *make.test_list]):
        contents[name] = pixels(8, 3072, seed=i)
        contents[name, "md5"] = write(name, {"data": contents[name].numpy(), "labels": [k % 10 for k in range(8)]})
    meta = {"label_names": [f"class {i}" for i in range(10)]}
    monkeypatch.setattr(
        make, "meta", {"filename": "batches.meta", "key": "label_names", "md5": write("batches.meta", meta)[1]}
    )
    for part in ("train_list", "test_list"):
        monkeypatch.setattr(make, part, [contents[name, "md5"] for name, _ in getattr(make, part)])
    return contents
