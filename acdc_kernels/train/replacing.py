"""Files written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def temporary_of(target: Path) -> Path:
    """What `target` is written as until it is whole."""
    return target.with_name(f".{target.name}.tmp")


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A path to write to; on success it takes the target's place at once, on failure the target is untouched."""
    temporary = temporary_of(target)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
