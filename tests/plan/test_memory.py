"""The file of measured times: whatever is in it, or in its way, no run ends for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from acdc_kernels.plan import Memory

ENTRY = {"forward": {"forward: dense": 2.0, "forward: sparse": 1.0}}


def test_round_trip(tmp_path):
    memory = Memory(tmp_path / "a" / "b" / "plans.json")
    assert memory.get("x") == {}
    memory.put("x", ENTRY)
    memory.put("x", {"whole": {"dense": 1.0}})
    memory.save()
    assert Memory(memory.path).get("x") == {**ENTRY, "whole": {"dense": 1.0}}
    assert [p.name for p in memory.path.parent.iterdir()] == ["plans.json"]


CORRUPT = {
    "empty": "",
    "no json": "{",
    "no object": "[1, 2]",
    "no entries": '{"format": 1}',
    "entries of another kind": '{"format": 1, "entries": [3]}',
    "of the future": json.dumps({"format": 99, "entries": {"x": ENTRY}}),
    "binary": b"\xff\xfe\x00",
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("case", CORRUPT)
def test_what_cannot_be_read_is_ignored_and_replaced(case, tmp_path):
    path = tmp_path / "plans.json"
    content = CORRUPT[case]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    memory = Memory(path)
    assert memory.entries == {}
    memory.put("y", ENTRY)
    memory.save()
    assert Memory(path).get("y") == ENTRY


BAD_ENTRIES = [
    3,
    None,
    [],
    {"forward": 3},
    {"f": {"a": "1"}},
    {"f": {"a": 0.0}},
    {"f": {"a": -1.0}},
    {"f": {"a": True}},
]


@pytest.mark.parametrize("entry", BAD_ENTRIES, ids=repr)
def test_an_entry_that_cannot_be_is_ignored_alone(entry, tmp_path):
    path = tmp_path / "plans.json"
    path.write_text(json.dumps({"format": 1, "entries": {"bad": entry, "good": ENTRY}}))
    assert list(Memory(path).entries) == ["good"]


def test_infinities_are_ignored(tmp_path):
    path = tmp_path / "plans.json"
    path.write_text('{"format": 1, "entries": {"bad": {"f": {"a": Infinity, "b": NaN}}}}')
    assert Memory(path).entries == {}


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "plans.json", Path("/proc/acdc/plans.json")):
        memory = Memory(path)
        memory.put("x", ENTRY)
        memory.save()
        assert memory.get("x") == ENTRY
        assert not path.exists()


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "plans.json"
    memory = Memory(path)
    memory.put("x", ENTRY)
    memory.save()

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    memory.put("y", ENTRY)
    memory.save()
    assert list(Memory(path).entries) == ["x"]
    assert [p.name for p in tmp_path.iterdir()] == ["plans.json"]


def test_the_oldest_entries_go(tmp_path, monkeypatch):
    monkeypatch.setattr(Memory, "LARGEST", 3)
    memory = Memory(tmp_path / "plans.json")
    for key in "abcde":
        memory.put(key, ENTRY)
    memory.save()
    assert list(Memory(memory.path).entries) == ["c", "d", "e"]


def test_what_was_measured_again_is_not_old(tmp_path, monkeypatch):
    monkeypatch.setattr(Memory, "LARGEST", 3)
    path = tmp_path / "plans.json"
    for keys in ("a", "b", "c", "ad"):
        memory = Memory(path)
        for key in keys:
            memory.put(key, ENTRY)
        memory.save()
    assert list(Memory(path).entries) == ["c", "a", "d"]


def test_what_others_have_written_meanwhile_stays(tmp_path):
    path = tmp_path / "plans.json"
    one, other = Memory(path), Memory(path)
    assert one.entries == other.entries == {}
    for memory, group in ((one, "forward"), (other, "whole")):
        memory.put("x", {group: {"dense": 1.0}})
        memory.save()
    assert Memory(path).get("x") == {"forward": {"dense": 1.0}, "whole": {"dense": 1.0}}


def test_nothing_is_written_where_nothing_was_put(tmp_path):
    path = tmp_path / "plans.json"
    path.write_text("mine")
    memory = Memory(path)
    memory.get("x")
    memory.save()
    assert path.read_text() == "mine"


def test_writers_at_the_same_time_leave_a_whole_file(tmp_path):
    path = tmp_path / "plans.json"
    program = (
        "import sys; from pathlib import Path; from acdc_kernels.plan import Memory\n"
        "for i in range(30):\n"
        "    memory = Memory(Path(sys.argv[1])); memory.put(f'{sys.argv[2]} {i}', {'f': {'a': 1.0}}); memory.save()\n"
        "    assert Memory(memory.path).entries\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, str(path), str(i)]) for i in range(3)]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0]
    assert {f"{i} 29" for i in range(3)} & Memory(path).entries.keys()  # whoever was last; what it overtook may be lost
    assert [p.name for p in tmp_path.iterdir()] == ["plans.json"]


def test_where_it_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("ACDC_PLAN_CACHE", "0")
    assert Memory.of_user().path is None
    monkeypatch.setenv("ACDC_PLAN_CACHE", str(tmp_path))
    assert Memory.of_user().path == tmp_path / "plans.json"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ACDC_PLAN_CACHE", "~/plans")
    assert Memory.of_user().path == tmp_path / "home" / "plans" / "plans.json"
    monkeypatch.delenv("ACDC_PLAN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert Memory.of_user().path == tmp_path / "xdg" / "acdc-kernels" / "plans.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Memory.of_user().path == tmp_path / "home" / ".cache" / "acdc-kernels" / "plans.json"
    assert not list(tmp_path.iterdir())
