"""A model's parameters and buffers at one moment, kept on disk or in memory."""

from __future__ import annotations

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


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name, detached, not copied: shared ones once, non-persistent buffers too.

    Of a DTensor it is this process's shard.
    """
    named = (*model.named_parameters(), *model.named_buffers())
    return {name: local_part(tensor.detach()) for name, tensor in named}


class Snapshot:
    """Holds the latest set of named tensors it was given.

    where: ``"disk"``, a temporary file that goes when the snapshot does; ``"memory"``; or the path of a file, which
    stays. A file is replaced in one step, so that a failed or interrupted ``save`` leaves the previous one whole.

    Raises ValueError if the path is a folder's, or in a folder that doesn't exist.
    """

    def __init__(self, where: str | os.PathLike[str] = "disk") -> None:
        self._memory: dict[str, Tensor] | None = None
        self._path: Path | None = None
        self._delete: weakref.finalize | None = None
        if where == "disk":
            folder = tempfile.mkdtemp(prefix="acdc-kernels-")
            self._delete = weakref.finalize(self, _delete_folder, folder, os.getpid())
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


def _delete_folder(folder: str, owner: int) -> None:
    # A forked child runs its copy of the finalizer when it exits; the folder is still its parent's.
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
