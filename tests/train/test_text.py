"""The standard library as text: which files, which parts, which numbers."""

import sys

import pytest
import torch

from acdc_kernels.train import data, text
from acdc_kernels.train.errors import UserError


def decode(tokens):
    return "".join((text.VOCABULARY + "\N{REPLACEMENT CHARACTER}")[i] for i in tokens.tolist())


def test_characters_are_numbered():
    assert text.encode("\n !~\t\r\u00e9\U0001f600").tolist() == [0, 1, 2, 95, 96, 96, 96, 96]
    everything = text.VOCABULARY
    assert text.encode(everything).tolist() == list(range(96))
    assert decode(text.encode(everything)) == everything
    assert text.encode("").dtype == text.encode("a").dtype == torch.uint8


def test_windows_follow_one_another_and_do_not_overlap():
    split = text.TextSplit(text.encode("abcdefghijk"), 3)
    assert len(split) == 3
    batches = list(split.batches(torch.tensor([2, 0, 1]), 2, epoch=0))
    assert [[decode(row) for row in inputs] for inputs, _ in batches] == [["ghi", "abc"], ["def"]]
    assert [[decode(row) for row in targets] for _, targets in batches] == [["hij", "bcd"], ["efg"]]
    assert batches[0][0].dtype == torch.int64
    # the tenth character is the target of the ninth; three whole windows need ten
    assert [len(text.TextSplit(text.encode("x" * n), 3)) for n in (0, 1, 3, 4, 9, 10)] == [0, 0, 0, 1, 2, 3]


def library(folder, files=40):
    """A library of `files` modules of 50 letters each, and what must be left out."""
    for i in range(files):
        module = folder / ("package" if i % 2 else ".") / f"m{i}.py"
        module.parent.mkdir(exist_ok=True, parents=True)
        module.write_text(f"m{i:02}" + "x" * 46 + "\n")
    for name in ("test/a.py", "package/tests/b.py", "site-packages/c.py", "_sysconfigdata_linux.py", "package/d.txt"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text("must be left out")
    return folder


def modules(split):
    return set(decode(split.tokens).split("\n")[:-1])


def test_whole_files_go_to_one_part(tmp_path):
    root = library(tmp_path)
    one = text.load(0.25, 3, block=10, root=root)
    parts = [modules(split) for split in (one.train, one.validation, one.test)]
    assert set.union(*parts) == {f"m{i:02}" + "x" * 46 for i in range(40)}
    assert sum(map(len, parts)) == 40
    assert all(parts)
    assert (one.classes, one.unit, tuple(one.example.shape), one.example.dtype) == (
        97,
        "characters",
        (1, 10),
        torch.int64,
    )
    other = text.load(0.25, 4, block=10, root=root)
    assert modules(other.test) == parts[2]
    assert modules(other.validation) != parts[1]


def test_files_are_parted_by_their_names_not_by_their_place(tmp_path):
    some = text.load(0.25, 0, block=10, root=library(tmp_path / "some", 20))
    more = text.load(0.25, 0, block=10, root=library(tmp_path / "more", 40))
    for part in ("train", "validation", "test"):
        assert modules(getattr(some, part)) < modules(getattr(more, part))


def test_the_source_tells_the_version_and_the_text(tmp_path):
    version = ".".join(map(str, sys.version_info[:3]))
    one = text.load(0.25, 0, block=10, root=library(tmp_path / "one"))
    assert one.source.startswith(f"standard library of Python {version} (sha256 of the text ")
    assert one.source.endswith("), 2,000 of 2,000 characters")
    assert text.load(0.25, 7, block=10, root=tmp_path / "one").source == one.source
    (tmp_path / "one" / "m0.py").write_text("changed\n")
    other = text.load(0.25, 0, block=10, root=tmp_path / "one")
    assert other.source != one.source
    assert (one.fingerprint, other.fingerprint) == (one.source, other.source)


def test_a_number_of_characters_cuts_each_part_to_its_share(tmp_path):
    root = library(tmp_path, 100)
    whole, cut = (text.load(0.2, 0, block=10, characters=characters, root=root) for characters in (None, 1000))
    assert [len(part.tokens) for part in (cut.train, cut.validation, cut.test)] == [720, 180, 100]
    assert cut.source.endswith("1,000 of 5,000 characters")
    letters = decode(cut.train.tokens)
    assert letters.count("m") == 15  # 14 files and a part of one more
    names = {name for name in letters.replace("x", "").split("\n") if name}
    names = {name[:3] for name in "".join(names).replace("m", " m").split()}
    assert names <= {name[:3] for name in modules(whole.train)}


@pytest.mark.parametrize(
    ("files", "settings", "message"),
    [
        (0, {}, "0 files below .* leave train and validation and test without a sequence of 128 characters"),
        (40, {"block": 4000}, "40 files below .* leave train and validation and test"),
        (40, {"block": 40, "characters": 100}, "leave validation and test without a sequence of 40 characters"),
    ],
)
def test_too_little_text(tmp_path, files, settings, message):
    with pytest.raises(UserError, match=message):
        text.load(0.2, 0, root=library(tmp_path, files), **settings)


def test_the_real_library():
    found = data.load("python-text", validation=0.1, seed=0, data_args='{"block": 64, "characters": 100000}')
    assert [len(part) for part in (found.train, found.validation, found.test)] == [1265, 140, 156]
    assert "import " in decode(found.train.tokens)
    inputs, targets = next(found.test.batches(torch.arange(3), 2, None))
    assert (inputs.shape, targets.shape) == ((2, 64), (2, 64))
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
