"""Data sets: where they are found, that they are what they claim, and what is said when they are not."""

import gzip
import re

import pytest
import torch

from acdc_kernels.train import data, fashion_mnist
from acdc_kernels.train.errors import UserError

from .conftest import idx, lay

IMAGES = "train-images-idx3-ubyte"


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("below", [".", "FashionMNIST/raw"])
def test_both_layouts_zipped_or_not(miniature, tmp_path, zipped, below):
    lay(miniature, tmp_path / below, zipped)
    source, (images, labels, test_images, test_labels) = fashion_mnist.load(tmp_path)
    assert source == str(tmp_path / below)
    assert (images.shape, images.dtype, test_images.shape) == ((48, 1, 28, 28), torch.float32, (16, 1, 28, 28))
    assert labels.tolist() == [i % 10 for i in range(48)]
    assert test_labels.dtype == torch.int64
    assert images[0, 0, 0, 0] == miniature[IMAGES][16] / 255


def test_default_folders_are_searched_in_order(miniature, tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "DEFAULT_FOLDERS", (tmp_path / "first", tmp_path / "second"))
    lay(miniature, tmp_path / "second")
    assert fashion_mnist.load()[0] == str(tmp_path / "second")
    lay(miniature, tmp_path / "first")
    assert fashion_mnist.load()[0] == str(tmp_path / "first")


def _flip_pixel(content: bytes) -> bytes:
    return content[:100] + bytes([content[100] ^ 1]) + content[101:]


# what is done to the uncompressed training images, what the message says
BAD_CONTENT = {
    "wrong magic": (lambda c: b"\x00\x00\x09\x03" + c[4:], r"not an IDX file .*magic must be 00000803, got 00000903"),
    "labels in place of images": (
        lambda c: idx(torch.zeros(48, dtype=torch.uint8)),
        "magic must be 00000803, got 00000801",
    ),
    "empty": (lambda c: b"", "not an IDX file"),
    "cut in the header": (lambda c: c[:9], "truncated .the header has 16 bytes, got 9"),
    "cut in the pixels": (
        lambda c: c[:-1],
        f"truncated .must hold {48 * 784} bytes after the header, got {48 * 784 - 1}",
    ),
    "a byte too many": (lambda c: c + b"\x00", "too long"),
    "one bit flipped": (
        _flip_pixel,
        "corrupt .sha256 of the uncompressed content must be [0-9a-f]{64}, got [0-9a-f]{64}",
    ),
}


@pytest.mark.parametrize("case", BAD_CONTENT)
@pytest.mark.parametrize("zipped", [True, False])
def test_bad_content_names_the_file(miniature, tmp_path, case, zipped):
    damage, message = BAD_CONTENT[case]
    lay({**miniature, IMAGES: damage(miniature[IMAGES])}, tmp_path, zipped)
    with pytest.raises(UserError, match=f"{re.escape(str(tmp_path / IMAGES))}.*{message}"):
        fashion_mnist.load(tmp_path)


def _corrupt(packed: bytes) -> bytes:
    middle = len(packed) // 2
    return packed[:middle] + bytes(64) + packed[middle + 64 :]


BAD_GZIP = {
    "stream cut": (lambda z: z[: len(z) // 2], "truncated .the gzip stream ends early"),
    "stream corrupt": (_corrupt, "corrupt"),
    "not gzip": (lambda z: b"<html>404</html>", "corrupt"),
}


@pytest.mark.parametrize("case", BAD_GZIP)
def test_bad_gzip_names_the_file(miniature, tmp_path, case):
    damage, message = BAD_GZIP[case]
    path = lay(miniature, tmp_path) / f"{IMAGES}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=f"{re.escape(str(path))}: {message}"):
        fashion_mnist.load(tmp_path)


def test_a_missing_file_is_named(miniature, tmp_path):
    lay(miniature, tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match="incomplete, lacks t10k-labels-idx1-ubyte"):
        fashion_mnist.load(tmp_path)


def test_a_missing_folder_says_how_to_get_the_data(miniature, tmp_path):
    with pytest.raises(
        UserError, match=r"is not in .*nothing-here: get it with `apt-get install dataset-fashion-mnist`"
    ):
        fashion_mnist.load(tmp_path / "nothing-here")
    with pytest.raises(UserError, match=r"is not in /nowhere: .*--download"):
        fashion_mnist.load()


def test_a_named_folder_is_never_replaced_by_a_default_one(miniature, tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "DEFAULT_FOLDERS", (lay(miniature, tmp_path / "default"),))
    with pytest.raises(UserError, match=r"is not in .*named"):
        fashion_mnist.load(tmp_path / "named")


def test_download_checks_before_a_file_appears(miniature, tmp_path, monkeypatch):
    server = lay(miniature, tmp_path / "server")
    monkeypatch.setattr(fashion_mnist, "URL", server.as_uri() + "/")
    broken = server / "t10k-images-idx3-ubyte.gz"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-100])
    with pytest.raises(UserError, match="truncated"):
        fashion_mnist.load(tmp_path / "here", download=True)
    raw = tmp_path / "here" / "FashionMNIST" / "raw"
    assert sorted(path.name for path in raw.iterdir()) == [f"{IMAGES}.gz", "train-labels-idx1-ubyte.gz"]

    broken.write_bytes(whole)
    with pytest.raises(UserError, match="incomplete, lacks t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte"):
        fashion_mnist.load(tmp_path / "here")
    (server / f"{IMAGES}.gz").unlink()  # what is there already is not fetched again
    assert fashion_mnist.load(tmp_path / "here", download=True)[0] == str(raw)
    assert fashion_mnist.load(tmp_path / "here")[0] == str(raw)


def test_a_download_that_fails_says_so(miniature, tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "URL", (tmp_path / "no-server").as_uri() + "/")
    with pytest.raises(UserError, match="cannot be downloaded"):
        fashion_mnist.load(tmp_path / "here", download=True)
    assert not any((tmp_path / "here" / "FashionMNIST" / "raw").iterdir())


def test_the_real_files():
    files = fashion_mnist.find()
    if files is None:
        pytest.skip("Fashion-MNIST is not installed (apt-get install dataset-fashion-mnist)")
    for name, digest in fashion_mnist.SHA256.items():
        content = fashion_mnist.read_checked(files[name], digest)
        shape = fashion_mnist.decode_idx(content, files[name]).shape
        assert shape[0] == (60_000 if name.startswith("train") else 10_000)


def test_digits_split():
    digits = data.load("digits", validation=0.25, seed=3)
    assert [len(part) for part in (digits.train, digits.validation, digits.test)] == [1078, 359, 360]
    assert (tuple(digits.example.shape), digits.classes, digits.unit) == ((1, 1, 8, 8), 10, "images")
    assert abs(digits.train.inputs.mean()) < 1e-5
    assert abs(digits.train.inputs.std() - 1) < 1e-5
    assert sorted(set(digits.test.targets.tolist())) == list(range(10))


def test_the_validation_split_depends_on_the_seed_and_the_test_set_does_not():
    one, same, other = (data.load("digits", validation=0.2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.validation.inputs, same.validation.inputs)
    assert not torch.equal(one.validation.targets, other.validation.targets)
    assert torch.equal(one.test.targets, other.test.targets)


def test_the_order_of_an_epoch_is_a_pure_function():
    orders = {(seed, epoch): data.epoch_order(100, seed, epoch) for seed in range(3) for epoch in range(3)}
    assert all(sorted(order.tolist()) == list(range(100)) for order in orders.values())
    assert len({tuple(order.tolist()) for order in orders.values()}) == 9
    assert torch.equal(orders[1, 2], data.epoch_order(100, 1, 2))


@pytest.mark.parametrize(
    ("name", "asked", "message"),
    [
        (
            "cifar",
            {},
            "data: must be one of digits, fashion-mnist, cifar10, cifar100, imagefolder, python-text, got 'cifar'",
        ),
        ("digits", {"folder": "x"}, "data-dir: must be left out for digits .it comes with scikit-learn"),
        ("python-text", {"folder": "x"}, "data-dir: must be left out for python-text .it comes with Python"),
        ("digits", {"augment": True}, "augment: only for cifar10, cifar100 and imagefolder, got digits"),
        ("python-text", {"data_args": "[1]"}, r"data-args: must be a JSON object, got '\[1\]'"),
        ("python-text", {"data_args": "{block: 3}"}, "data-args: must be a JSON object, got '{block: 3}' .Expecting"),
        ("python-text", {"data_args": '{"blocks": 3}'}, "data-args: python-text takes block, characters, got 'blocks'"),
        ("digits", {"data_args": '{"block": 3}'}, "data-args: digits takes none, got 'block'"),
        ("python-text", {"data_args": '{"block": 0}'}, "block must be a whole number, at least 1, got 0"),
        ("imagefolder", {"data_args": '{"workers": 1.5}'}, "workers must be a whole number, at least 0, got 1.5"),
        ("imagefolder", {"data_args": '{"size": true}'}, "size must be a whole number, at least 1, got True"),
    ],
)
def test_bad_requests(name, asked, message):
    with pytest.raises(UserError, match=message):
        data.load(name, validation=0.1, seed=0, **asked)


def test_zipped_by_another_packer(miniature, tmp_path):
    """The compressed bytes may differ from upstream's; the content decides."""
    lay(miniature, tmp_path)
    path = tmp_path / f"{IMAGES}.gz"
    path.write_bytes(gzip.compress(miniature[IMAGES], compresslevel=1))
    assert len(fashion_mnist.load(tmp_path)[1][0]) == 48


def test_batches_follow_the_order():
    inputs, targets = torch.arange(10.0)[:, None], torch.arange(10)
    doubled = data.TensorSplit(inputs, targets, lambda x, indices, epoch: x * 2 if epoch == 1 else x + indices[:, None])
    order = torch.tensor([3, 1, 4, 9, 5])
    for epoch in (1, None):
        batches = list(doubled.batches(order, 2, epoch))
        assert [batch.tolist() for _, batch in batches] == [[3, 1], [4, 9], [5]]
        assert torch.cat([batch for batch, _ in batches]).flatten().tolist() == [6, 2, 8, 18, 10]
