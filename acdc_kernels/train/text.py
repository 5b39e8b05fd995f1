"""``python-text``: the standard library's own source, one character after another."""

from __future__ import annotations

import hashlib
import platform
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .errors import UserError
from .splits import Dataset

VOCABULARY = "\n" + "".join(map(chr, range(32, 127)))  # its characters are numbered from 0; every other one is UNKNOWN
UNKNOWN = len(VOCABULARY)
LEFT_OUT = frozenset(  # folders: tests, tables and generated text, and what isn't the standard library
    {"test", "tests", "idlelib", "lib2to3", "turtledemo", "encodings", "pydoc_data", "__pycache__"}
    | {"site-packages", "dist-packages"}
)
TEST_SHARE = 0.1
ARGUMENTS = {"block": 1, "characters": 1}


@dataclass(frozen=True)
class TextSplit:
    """Sequences of `block` characters and the `block` that follow each of them, one further on.

    `tokens` (uint8 [n]) is cut from its beginning; the windows don't overlap, and what is left at the end isn't used.
    """

    tokens: Tensor
    block: int

    def __len__(self) -> int:
        return max(0, (len(self.tokens) - 1) // self.block)

    def batches(self, order: Tensor, size: int, epoch: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        for indices in order.split(size):
            windows = self.tokens[indices[:, None] * self.block + torch.arange(self.block + 1)].long()
            yield windows[:, :-1], windows[:, 1:]


def load(
    validation: float, seed: int, block: int = 128, characters: int | None = None, root: Path | None = None
) -> Dataset:
    """The text of the Python that runs, in sequences of `block` characters.

    The files: every ``*.py`` below the standard library's folder (None: ``sysconfig.get_path("stdlib")``), except below
    folders named in `LEFT_OUT` and ``_sysconfigdata*`` (which says how a machine built Python), in the order of their
    paths. About a tenth of the files is for testing, by a hash of the path; a share `validation` of the others is held
    out, by a hash of `seed` and path. So no file is in two parts, and the test files of a Python version are always the
    same. `characters` is the most to use of the whole: each part is then cut to its share of it, of files drawn by
    a hash of their paths.

    Classes: newline is 0, the 95 printable ASCII characters follow in order, and every other character is 96.
    """
    root = Path(sysconfig.get_path("stdlib")) if root is None else root
    texts = read(root)
    names: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for name in sorted(texts):
        if share("test", name) < TEST_SHARE:
            names["test"].append(name)
        else:
            names["validation" if share(f"validation {seed}", name) < validation else "train"].append(name)
    shares = {"train": (1 - TEST_SHARE) * (1 - validation), "validation": (1 - TEST_SHARE) * validation}
    shares["test"] = TEST_SHARE
    parts = {
        part: "".join(_drawn(texts, chosen, None if characters is None else round(shares[part] * characters)))
        for part, chosen in names.items()
    }
    splits = {part: TextSplit(encode(content), block) for part, content in parts.items()}
    short = [part for part, split in splits.items() if not len(split) and (part != "validation" or validation > 0)]
    if short:
        raise UserError(
            f"python-text: {len(texts)} files below {root} leave {' and '.join(short)} without a sequence of {block} "
            "characters; it needs Python's library as source files, a larger characters or a smaller block"
        )
    digest = hashlib.sha256("".join(texts[name] for name in sorted(texts)).encode()).hexdigest()
    source = (
        f"standard library of Python {platform.python_version()} (sha256 of the text {digest[:16]}), "
        f"{sum(map(len, parts.values())):,} of {sum(map(len, texts.values())):,} characters"
    )
    example = torch.zeros(1, block, dtype=torch.int64)
    return Dataset("python-text", source, UNKNOWN + 1, **splits, example=example, unit="characters", fingerprint=source)


def read(root: Path) -> dict[str, str]:
    """The text of each file that is used, by its path below `root`; bytes that aren't UTF-8 become U+FFFD."""
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    return {
        name: path.read_text(encoding="utf-8", errors="replace")
        for name, path in files.items()
        if LEFT_OUT.isdisjoint(name.split("/")[:-1]) and not path.name.startswith("_sysconfigdata")
    }


def share(purpose: str, name: str) -> float:
    """A number in [0, 1) that depends on `purpose` and `name` alone."""
    return int.from_bytes(hashlib.sha256(f"{purpose}\0{name}".encode()).digest()[:6], "big") / 2**48


def _drawn(texts: dict[str, str], names: Sequence[str], characters: int | None) -> list[str]:
    """The texts of `names` in order, or of as many as hold `characters`, drawn by a hash; the last drawn is cut."""
    if characters is None:
        return [texts[name] for name in names]
    kept: dict[str, str] = {}
    for name in sorted(names, key=lambda name: share("draw", name)):
        kept[name] = texts[name][:characters]
        characters -= len(kept[name])
    return [kept[name] for name in names]


def encode(text: str) -> Tensor:
    """The classes of `text`'s characters, uint8 [len(text)]."""
    if not text:
        return torch.empty(0, dtype=torch.uint8)
    codes = torch.frombuffer(bytearray(text.encode("utf-32-le", "surrogatepass")), dtype=torch.int32)
    known = (codes >= 32) & (codes < 127)
    classes = torch.where(known, codes - 31, torch.where(codes == 10, 0, UNKNOWN))
    return classes.to(torch.uint8)
