"""A model's parameters and buffers at one moment, kept on disk or in memory."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..ops.distributed import local_part

__all__ = ["Snapshot", "named_tensors"]

_PREFIX, _IN_USE = "acdc-kernels-", "in-use"


def named_tensors(model: nn.Module, persistent: bool = False) -> dict[str, Tensor]:
    """Every parameter and buffer by name, detached, not copied: shared ones once, non-persistent buffers too.

    Of a DTensor it is this process's shard. persistent: only what a ``state_dict`` would hold.
    """
    named = (*model.named_parameters(), *model.named_buffers())
    fleeting = set()
    for prefix, module in model.named_modules() if persistent else ():
        fleeting.update(f"{prefix}.{name}".lstrip(".") for name in module._non_persistent_buffers_set)
    return {name: local_part(tensor.detach()) for name, tensor in named if name not in fleeting}


class Snapshot:
    """Holds the latest set of named tensors it was given.

    where: ``"disk"``, a temporary file that goes when the snapshot does (one that a killed process has left, when the
    next is made); ``"memory"``; or the path of a file, which stays. A file is replaced in one step, so that a failed or
    interrupted ``save`` leaves the previous one whole.

    Raises ValueError if the path is a folder's, or in a folder that doesn't exist.
    """

    def __init__(self, where: str | os.PathLike[str] = "disk") -> None:
        self._memory: dict[str, Tensor] | None = None
        self._path: Path | None = None
        self._delete: weakref.finalize | None = None
        if where == "disk":
            folder, lock = _temporary_folder()
            self._delete = weakref.finalize(self, _delete_folder, folder, lock, os.getpid())
            self._path = Path(folder, "dense.pt")
        elif where != "memory":
            self._path = Path(where)
            if self._path.is_dir() or not self._path.absolute().parent.is_dir():
                raise ValueError(
                    "dense_snapshot must be 'disk', 'memory' or the path of a file in an existing folder, "
                    f"got {os.fspath(where)!r}"
                )

    def save(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes the place of what was held before."""
        if self._path is None:
            self._memory = {name: tensor.clone() for name, tensor in tensors.items()}
            return
        partial = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        try:
            torch.save(dict(tensors), partial)
            os.replace(partial, self._path)
        finally:
            partial.unlink(missing_ok=True)

    def load(self) -> dict[str, Tensor]:
        """What ``save`` was given last; from disk as memory-mapped CPU tensors, read only as they are used."""
        if self._path is None:
            return dict(self._memory or {})
        return torch.load(self._path, map_location="cpu", weights_only=True, mmap=True)

    def discard(self) -> None:
        """Lets go of the tensors: frees the memory or deletes the temporary file; a file of the user's own stays."""
        self._memory = None
        if self._delete is not None:
            self._delete()


def _temporary_folder() -> tuple[str, int]:
    """A new folder, and the descriptor whose lock says that it is in use; deletes those that nobody uses any more."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_IN_USE}"):
        if (lock := _take(left)) is not None:
            shutil.rmtree(left.parent, ignore_errors=True)
            os.close(lock)
    while True:
        folder = tempfile.mkdtemp(prefix=_PREFIX)
        lock = _take(Path(folder, _IN_USE), os.O_CREAT)
        if lock is not None and os.fstat(lock).st_nlink:
            return folder, lock
        # another process took it for one that was left


def _take(path: Path, flags: int = 0) -> int | None:
    """A descriptor that holds the file's lock, for as long as it is open; None if another one does."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
    except OSError:  # gone already, or another user's
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _delete_folder(folder: str, lock: int, owner: int) -> None:
    # A forked child runs its copy of the finalizer when it exits; the folder is still its parent's.
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
