"""Fashion-MNIST (Xiao et al., 2017; MIT licence): finds, checks or downloads its four IDX files."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import struct
import tempfile
import urllib.request
import zlib
from collections.abc import Sequence
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from .errors import UserError

URL = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
DEFAULT_FOLDERS = (Path("/usr/share/datasets/fashion-mnist"), Path("data"))
DOWNLOAD_FOLDER = Path("data")
RAW = Path("FashionMNIST", "raw")  # as torchvision lays it out

# sha256 of the uncompressed files: the compressed ones differ between distributors
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
HOW_TO_GET = (
    "get it with `apt-get install dataset-fashion-mnist`, name its folder with --data-dir, "
    "or let --download fetch it (31 MB)"
)


class Incomplete(UserError):
    """Some of the four files lie in `place`, but not all."""

    def __init__(self, place: Path, missing: Sequence[str]) -> None:
        super().__init__(f"{place}: incomplete, lacks {' and '.join(missing)} (.gz or not); {HOW_TO_GET}")
        self.place = place


def load(folder: Path | None = None, download: bool = False) -> tuple[str, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """(where the files lie, (training images, training labels, test images, test labels)).

    Images are float32 [n, 1, 28, 28] in [0, 1], labels int64 [n]. `folder` holds the four files, gzipped or not, flat
    or below ``FashionMNIST/raw``; None: Debian's folder, then ``./data``. Raises UserError naming the file at fault.
    """
    try:
        files = find(folder)
    except Incomplete as incomplete:
        if not download:
            raise
        files = fetch(incomplete.place)
    if files is None and download:
        files = fetch((folder or DOWNLOAD_FOLDER) / RAW)
    if files is None:
        raise UserError(f"fashion-mnist is not in {folder or ' or '.join(map(str, DEFAULT_FOLDERS))}: {HOW_TO_GET}")
    train_images, train_labels, test_images, test_labels = (
        decode_idx(read_checked(files[name], digest), files[name]) for name, digest in SHA256.items()
    )
    return str(files["train-images-idx3-ubyte"].parent), (
        train_images[:, None].float() / 255,
        train_labels.long(),
        test_images[:, None].float() / 255,
        test_labels.long(),
    )


def find(folder: Path | None = None) -> dict[str, Path] | None:
    """The path of each file in the first folder that holds any of them; None if none does, UserError if some lack."""
    for root in (folder,) if folder is not None else DEFAULT_FOLDERS:
        for place in (root, root / RAW):
            found = {name: path for name in SHA256 if (path := _either(place, name)) is not None}
            missing = [name for name in SHA256 if name not in found]
            if found and missing:
                raise Incomplete(place, missing)
            if found:
                return found
    return None


def _either(place: Path, name: str) -> Path | None:
    return next((path for path in (place / name, place / f"{name}.gz") if path.is_file()), None)


def read_checked(path: Path, sha256: str) -> bytes:
    """The uncompressed content of `path`; UserError, naming the file and what is wrong, unless it has that `sha256`."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            content = file.read()
    except EOFError as error:
        raise UserError(f"{path}: truncated (the gzip stream ends early)") from error
    except (zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: corrupt ({error})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    decode_idx(content, path)  # says more precisely what is wrong than a digest does
    got = hashlib.sha256(content).hexdigest()
    if got != sha256:
        raise UserError(f"{path}: corrupt (sha256 of the uncompressed content must be {sha256}, got {got})")
    return content


def decode_idx(content: bytes, path: Path) -> Tensor:
    """An IDX file of bytes as a uint8 tensor; its magic number must fit the ``idx1`` or ``idx3`` in its name."""
    dims = 3 if "idx3" in path.name else 1
    header = 4 + 4 * dims
    magic = content[:4]
    if magic != bytes([0, 0, 8, dims]):
        raise UserError(
            f"{path}: not an IDX file of bytes in {dims} dims (magic must be 0000080{dims}, got {magic.hex()})"
        )
    if len(content) < header:
        raise UserError(f"{path}: truncated (the header has {header} bytes, got {len(content)})")
    shape: Sequence[int] = struct.unpack(f">{dims}I", content[4:header])
    if len(content) - header != prod(shape):
        what = "truncated" if len(content) - header < prod(shape) else "too long"
        raise UserError(f"{path}: {what} (must hold {prod(shape)} bytes after the header, got {len(content) - header})")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).reshape(shape)


def fetch(folder: Path) -> dict[str, Path]:
    """Download what `folder` lacks of the four files; each appears there only once its content is checked."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, digest in SHA256.items():
        if (present := _either(folder, name)) is not None:
            files[name] = present
            continue
        target = folder / f"{name}.gz"
        handle, temporary = tempfile.mkstemp(prefix=name, suffix=".gz", dir=folder)
        try:
            with os.fdopen(handle, "wb") as file, urllib.request.urlopen(URL + target.name, timeout=60) as answer:
                while block := answer.read(1 << 20):
                    file.write(block)
            read_checked(Path(temporary), digest)
            Path(temporary).chmod(0o644)  # mkstemp made it the owner's alone
            os.replace(temporary, target)
        except (OSError, http.client.HTTPException) as error:
            raise UserError(f"{URL}{target.name}: cannot be downloaded ({error}); {HOW_TO_GET}") from error
        finally:
            Path(temporary).unlink(missing_ok=True)
        files[name] = target
    return files
