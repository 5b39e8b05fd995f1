"""The file of a checkpoint: torch.save's archive under a digest, written whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import os
import re
import secrets
from pathlib import Path
from typing import IO, Any

import torch

from .._version import __version__

FORMAT = 1
# A checkpoint is a zip archive; its comment holds the format and a digest of all bytes before the digest.
_SEAL = b"acdc-kernels checkpoint %d blake2b "
_SEALED = re.compile(rb"acdc-kernels checkpoint (\d+) blake2b ([0-9a-f]{64})\Z")
_CHUNK = 1 << 20


def replace(target: Path, content: dict[str, Any]) -> None:
    """Write `content` beside `target`, sync it, and put it in the place of `target` in one step.

    Raises OSError, naming `target`, if that fails; `target` is untouched then, and nothing is left beside it.
    """
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "save_checkpoint: the path must be a file's, is a folder's", str(target))
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "save_checkpoint: the folder does not exist", str(target.parent))
    try:
        _sweep(target)
        temporary, file = _temporary(target)
        try:
            with file:
                sink = _Sink(file)
                try:
                    torch.save(content, sink)
                finally:
                    sink.reraise()
                _seal(file)
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, target)  # while the lock is held
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        what = f"save_checkpoint: {error.strerror or error}; what was there before is untouched"
        raise OSError(error.errno, what, str(target)) from error
    _sync_folder(target.parent)


class _Sink:
    """Takes torch.save's bytes; what goes wrong is kept, as torch would replace it by an error about positions."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._failure = file, None

    def write(self, data: bytes | memoryview) -> int:
        if self._failure is None:
            try:
                self._file.write(data)
            except BaseException as failure:  # an interrupt too must not cross torch's C++
                self._failure = failure
        return len(data)

    def flush(self) -> None:
        """Nothing to do: the file is flushed once, at the end."""

    def reraise(self) -> None:
        if self._failure is not None:
            raise self._failure


def _seal(file: IO[bytes]) -> None:
    """Make format and digest the comment of the zip archive in `file`."""
    seal = _SEAL % FORMAT
    file.seek(-2, os.SEEK_END)
    if file.read(2) != b"\0\0":
        raise RuntimeError("save_checkpoint: torch.save must end its archive with an empty comment")
    file.seek(-2, os.SEEK_END)
    file.write((len(seal) + 64).to_bytes(2, "little") + seal)
    end = file.tell()
    file.write(_digest(file, end))


def _digest(file: IO[bytes], end: int) -> bytes:
    """BLAKE2b of the first `end` bytes, as 64 hexadecimal digits; `file` is then at `end`."""
    file.seek(0)
    digest = hashlib.blake2b(digest_size=32)
    while end > 0 and (chunk := file.read(min(_CHUNK, end))):
        digest.update(chunk)
        end -= len(chunk)
    return digest.hexdigest().encode()


def _temporary(target: Path) -> tuple[Path, IO[bytes]]:
    """A new file beside `target`, locked for as long as it is open, with the mode that the umask gives."""
    while True:
        path = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "w+b")
        _lock(file.fileno())
        if os.fstat(file.fileno()).st_nlink:
            return path, file
        file.close()  # swept away by another process before it was locked


def _sweep(target: Path) -> None:
    """Delete what writers of `target` that were killed have left: nobody holds its lock any more."""
    for left in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        try:
            descriptor = os.open(left, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue  # gone already, or another user's
        try:
            if _lock(descriptor):
                left.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems can't sync a folder
            raise
    finally:
        os.close(descriptor)


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, its tensors mapped from the file; nothing in it is executed.

    Raises ValueError, naming `path`, if it is no whole checkpoint of format `FORMAT`, OSError if it can't be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - len(_SEAL) - 96))
        seal = _SEALED.search(file.read())
        if seal is None:
            raise ValueError(f"load_checkpoint: {path} is not a checkpoint of acdc-kernels, or is truncated")
        if (found := int(seal[1])) != FORMAT:
            raise ValueError(
                f"load_checkpoint: {path} is of format {found}, but this version of acdc-kernels ({__version__}) reads "
                f"format {FORMAT}"
            )
        if _digest(file, size - 64) != seal[2]:
            raise ValueError(f"load_checkpoint: {path} is damaged: its bytes don't match its digest")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch.load raises whatever the content provokes
        raise ValueError(f"load_checkpoint: {path} cannot be read ({error})") from error
    wanted = {"parts": dict, "about": dict, "rng": dict}
    if (
        not isinstance(content, dict)
        or any(not isinstance(content.get(key), kind) for key, kind in wanted.items())
        or content["parts"].keys() != content["about"].keys()
        or any(not isinstance(about, dict) or "kind" not in about for about in content["about"].values())
    ):
        raise ValueError(f"load_checkpoint: {path} is not a checkpoint of acdc-kernels: it must hold parts and rng")
    return content
