"""What a save leaves behind, above all one that fails: a whole checkpoint, and nothing else."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import resource
import stat

import pytest

from acdc_kernels import load_checkpoint, save_checkpoint
from acdc_kernels.checkpoint import archive

from .conftest import Run


def assert_untouched(path, run):
    other = Run(seed=1)
    assert load_checkpoint(path, **other.parts()) == {"epoch": 3}
    assert other.bits() == run
    assert [file.name for file in path.parent.iterdir()] == [path.name]


class FullDisk(io.BufferedRandom):
    """A file that takes `room` bytes."""

    room = 0

    def write(self, data):
        if self.tell() + len(data) > FullDisk.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


@pytest.mark.parametrize("room", [0, 1, 500, 10_000, 20_000, -100, -1])
def test_a_full_disk_leaves_the_previous_checkpoint(saved, monkeypatch, room):
    path, run = saved
    bits, FullDisk.room = run.bits(), room if room >= 0 else path.stat().st_size + room
    monkeypatch.setattr(archive.os, "fdopen", lambda descriptor, mode: FullDisk(io.FileIO(descriptor, "r+b")))
    with pytest.raises(
        OSError, match="save_checkpoint: No space left on device; what was there before is untouched"
    ) as full:
        save_checkpoint(path, **run.parts(), epoch=3)
    assert (full.value.errno, full.value.filename) == (errno.ENOSPC, str(path))
    monkeypatch.undo()
    assert_untouched(path, bits)


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(
    "failure", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()], ids=["error", "interrupt"]
)
def test_a_failure_on_the_way_leaves_the_previous_checkpoint(saved, monkeypatch, call, failure):
    path, run = saved
    bits = run.bits()

    def fail(*_):
        raise failure

    monkeypatch.setattr(archive.os, call, fail)
    with pytest.raises(type(failure)):
        save_checkpoint(path, **run.parts(), epoch=4)
    monkeypatch.undo()
    assert_untouched(path, bits)


def test_an_interrupt_inside_torch_leaves_the_previous_checkpoint(saved, monkeypatch):
    path, run = saved
    bits = run.bits()

    class Interrupted(io.BufferedRandom):
        def write(self, data):
            raise KeyboardInterrupt

    monkeypatch.setattr(archive.os, "fdopen", lambda descriptor, mode: Interrupted(io.FileIO(descriptor, "r+b")))
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, **run.parts(), epoch=4)
    monkeypatch.undo()
    assert_untouched(path, bits)


def test_a_file_size_limit_leaves_the_previous_checkpoint(saved):
    """A write that the system itself refuses: Python ignores the signal that would end the process."""
    path, run = saved
    bits = run.bits()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(
            OSError, match=r"save_checkpoint: File too large; what was there before is untouched.*last\.pt"
        ):
            save_checkpoint(path, **run.parts(), epoch=4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_untouched(path, bits)


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path):
    dead, living, other = (tmp_path / name for name in (".last.pt.0a.tmp", ".last.pt.1b.tmp", ".first.pt.2c.tmp"))
    for file in (dead, living, other):
        file.touch()
    with living.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        save_checkpoint(tmp_path / "last.pt")
    assert sorted(file.name for file in tmp_path.iterdir()) == [other.name, living.name, "last.pt"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_the_mode_is_as_the_umask_says(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        save_checkpoint(tmp_path / "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == mode


def test_a_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "last.pt").symlink_to(tmp_path / "real" / "there.pt")
    save_checkpoint(tmp_path / "last.pt", step=1)
    save_checkpoint(tmp_path / "last.pt", step=2)
    assert (tmp_path / "last.pt").is_symlink()
    assert load_checkpoint(tmp_path / "real" / "there.pt") == {"step": 2}


@pytest.mark.parametrize(
    ("path", "kind", "message"),
    [("", IsADirectoryError, "must be a file's"), ("none/x", FileNotFoundError, "the folder does not exist.*none")],
)
def test_a_path_that_cannot_be(tmp_path, path, kind, message):
    with pytest.raises(kind, match=message):
        save_checkpoint(tmp_path / path)
    assert list(tmp_path.iterdir()) == []
