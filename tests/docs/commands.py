"""Stands in for the programs that the docs' shell blocks call, so that the blocks run in seconds.

``acdc-kernels`` is the real command line in this process: training is cut to a few epochs of small data, benchmarks are
quick ones. ``make`` prints what it would do, ``pip`` looks whether what it would install is there.
"""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.flat = torch.nn.Flatten()
        self.head = torch.nn.LazyLinear(classes)

    def forward(self, x):
        return self.head(self.flat(x))
"""


def small_fashion_mnist() -> None:
    """Random images in Fashion-MNIST's four files, which the loader takes for the real ones."""
    import torch

    from acdc_kernels.train import fashion_mnist

    folder = Path("small-fashion-mnist")
    folder.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    digests = {}
    for part, images in (("train", 96), ("t10k", 16)):
        pixels = torch.randint(0, 256, (images, 28, 28), generator=generator, dtype=torch.uint8)
        labels = (torch.arange(images) % 10).to(torch.uint8)
        for name, array in ((f"{part}-images-idx3-ubyte", pixels), (f"{part}-labels-idx1-ubyte", labels)):
            data = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.numpy().tobytes()
            (folder / name).write_bytes(data)
            digests[name] = hashlib.sha256(data).hexdigest()
    fashion_mnist.SHA256 = digests
    fashion_mnist.DEFAULT_FOLDERS = (folder,)


def train(arguments: list[str]) -> None:
    small_fashion_mnist()
    if any("my_project" in a for a in arguments):
        Path("my_project").mkdir(exist_ok=True)
        Path("my_project/nets.py").write_text(NET)
    short = ["--epochs", "4", "--threads", "1", "--batch-size", "16"]
    if "python-text" in arguments:
        short += ["--data-args", '{"block": 32, "characters": 20000}']
    call([*arguments, *short])


def call(arguments: list[str]) -> None:
    from typer.testing import CliRunner

    from acdc_kernels.train.cli import app

    result = CliRunner().invoke(app, arguments)
    print(result.output)
    missing = any(name in result.output for name in ("torchvision", "No module named 'transformers'"))
    if result.exit_code and not (result.output.startswith("error: ") and missing):
        raise SystemExit(f"{arguments}: exit code {result.exit_code}, {result.exception!r}")


def acdc_kernels(arguments: list[str]) -> None:
    import torch

    torch.set_num_threads(1)
    command = arguments[0]
    if command == "train":
        train(arguments)
        return
    if command == "report" and not Path(arguments[1]).exists():
        train(["train", "--out", arguments[1]])
    call([*arguments, "--quick", "--threads", "1"] if command == "bench" else arguments)


def make(arguments: list[str]) -> None:
    subprocess.run(
        [os.environ["REAL_MAKE"], "-C", str(ROOT), "--dry-run", *arguments], check=True, stdout=subprocess.DEVNULL
    )


def pip(arguments: list[str]) -> None:
    assert arguments[0] == "install"
    for wanted in arguments[1:]:
        if wanted.startswith("."):
            assert (ROOT / "pyproject.toml").is_file()
            extra = wanted.strip(".[]")
            assert extra in metadata.metadata("acdc-kernels").get_all("Provides-Extra")
        elif not wanted.startswith("-"):
            metadata.version(wanted)


if __name__ == "__main__":
    {"acdc-kernels": acdc_kernels, "make": make, "pip": pip}[sys.argv[1]](sys.argv[2:])
