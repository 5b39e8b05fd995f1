"""CIFAR and folders of images: augmentation that repeats, and reading through torchvision where it can be imported."""

import importlib
import re
from pathlib import Path

import pytest
import torch

from acdc_kernels.train import augment, data, vision
from acdc_kernels.train.errors import UserError

from .conftest import cifar10_files, pixels


def test_random_numbers_depend_on_seed_epoch_and_sample_alone():
    indices = torch.arange(1000)
    bits = augment.random_bits(3, 5, indices, 4)
    assert torch.equal(bits[[7, 3]], augment.random_bits(3, 5, torch.tensor([7, 3]), 4))
    assert torch.equal(bits[:, :2], augment.random_bits(3, 5, indices, 2))
    assert bits.min() >= 0
    assert bits.max() < 2**31
    for other in (augment.random_bits(4, 5, indices, 4), augment.random_bits(3, 6, indices, 4)):
        assert (other != bits).all()
    assert len(bits.unique()) == bits.numel()


def test_random_numbers_are_spread_evenly():
    bits = augment.random_bits(0, 0, torch.arange(90_000), 2)
    for draws in bits.unbind(1):
        for modulus in (2, 9):
            counts = torch.bincount(draws % modulus, minlength=modulus)
            assert (counts / 90_000 * modulus - 1).abs().max() < 0.05
    assert torch.corrcoef(bits.T.double())[0, 1].abs() < 0.02


def test_crop_and_flip_pixel_by_pixel():
    images = pixels(64, 6, 5, 3) | 1  # no zero, so that padding can be told from pixels
    indices = torch.arange(100, 164)
    made = augment.crop_and_flip(images, 1, 2, indices, padding=2)
    draws = augment.random_bits(1, 2, indices, 3)
    seen = set()
    for image, out, (down, right, mirror) in zip(images, made, draws.tolist(), strict=True):
        top, left, flip = down % 5 - 2, right % 5 - 2, mirror % 2
        seen.add((top, left, flip))
        for row in range(6):
            for column in range(5):
                from_row, from_column = row + top, (4 - column if flip else column) + left
                inside = 0 <= from_row < 6 and 0 <= from_column < 5
                wanted = image[from_row, from_column] if inside else torch.zeros(3, dtype=torch.uint8)
                assert torch.equal(out[row, column], wanted)
    assert len(seen) > 30


def small(augmented=True, seed=0):
    images, labels = (pixels(40, 8, 8, 3), pixels(10, 8, 8, 3, seed=1)), (torch.arange(40) % 5, torch.arange(10) % 5)
    return vision.cifar("cifar10", "a test", 5, images, labels, 0.25, seed, augmented)


def test_small_images_are_normalised_channels_last():
    dataset = small(augmented=False)
    inputs, targets = next(dataset.train.batches(torch.arange(30), 30, 0))
    assert (inputs.shape, inputs.dtype, targets.shape) == ((30, 3, 8, 8), torch.float32, (30,))
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    assert tuple(dataset.example.shape) == (1, 3, 8, 8)
    torch.testing.assert_close(inputs.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(inputs.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [30, 10, 10]


def test_an_augmented_epoch_repeats_itself_whatever_the_batches():
    train = small().train
    order = data.epoch_order(30, 0, 1)
    whole = torch.cat([inputs for inputs, _ in train.batches(order, 30, 1)])
    assert torch.equal(whole, torch.cat([inputs for inputs, _ in train.batches(order, 7, 1)]))
    assert torch.equal(whole[12:], torch.cat([inputs for inputs, _ in train.batches(order[12:], 4, 1)]))  # resumed
    assert not torch.equal(whole, next(train.batches(order, 30, 2))[0])
    assert not torch.equal(whole, next(small(seed=1).train.batches(order, 30, 1))[0])
    plain = next(train.batches(order, 30, None))[0]
    assert torch.equal(plain, next(small(augmented=False).train.batches(order, 30, 1))[0])
    assert not torch.equal(whole, plain)
    assert whole.is_contiguous(memory_format=torch.channels_last)


def test_random_crops_fit_and_repeat():
    crops = [vision.random_crop(60, 90, 0, 1, index) for index in range(500)]
    assert crops == [vision.random_crop(60, 90, 0, 1, index) for index in range(500)]
    for top, left, rows, columns, _ in crops:
        assert 0 <= top <= 60 - rows
        assert 0 <= left <= 90 - columns
        assert 0.06 < rows * columns / 5400 <= 1
        assert 0.7 < columns / rows < 1.4
    assert 200 < sum(flip for *_, flip in crops) < 300
    assert len(set(crops)) > 490
    # nothing of allowed aspect and area fits: the largest centred crop
    assert vision.random_crop(10, 1000, 0, 0, 0)[:4] == (0, 493, 10, 13)
    assert vision.random_crop(1000, 10, 0, 0, 0)[:4] == (493, 0, 13, 10)


@pytest.mark.parametrize(
    ("error", "version", "message"),
    [
        (
            RuntimeError("operator torchvision::nms does not exist"),
            "2.13.0+cpu",
            "built for torch 2.13.0: pip install torchvision; for this cpu build, from the index that torch came from .importing it said: operator torchvision::nms does not exist",
        ),
        (ModuleNotFoundError("No module named 'torchvision'"), "2.11.0", "built for torch 2.11.0: pip install torchvision .importing"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["cifar10", "cifar100", "imagefolder"])
def test_without_torchvision_it_says_what_to_install(monkeypatch, tmp_path, name, error, version, message):
    def fails(module):
        assert module == "torchvision.datasets"
        raise error

    monkeypatch.setattr(importlib, "import_module", fails)
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(UserError, match=f"cifar10, cifar100 and imagefolder need the torchvision that was {message}"):
        data.load(name, validation=0.1, seed=0, folder=tmp_path)


def test_cifar10_through_torchvision(torchvision, tmp_path, monkeypatch):
    contents = cifar10_files(tmp_path, monkeypatch, torchvision)
    found = data.load("cifar10", validation=0.25, seed=0, folder=tmp_path, augment=True)
    assert [len(part) for part in (found.train, found.validation, found.test)] == [30, 10, 8]
    assert (found.classes, found.source, tuple(found.example.shape)) == (10, str(tmp_path), (1, 3, 32, 32))
    inputs, targets = next(found.test.batches(torch.arange(8), 8, None))
    assert targets.tolist() == list(range(8))
    mean, std = vision.channel_statistics(found.train.inputs)
    wanted = contents["test_batch"].view(8, 3, 32, 32) / 255
    torch.testing.assert_close(inputs * std[:, None, None] + mean[:, None, None], wanted, atol=1e-5, rtol=0)
    batches = list(found.train.batches(data.epoch_order(30, 0, 0), 8, 0))
    assert [inputs.shape[0] for inputs, _ in batches] == [8, 8, 8, 6]

    broken = tmp_path / torchvision.datasets.CIFAR10.base_folder / "data_batch_3"
    broken.write_bytes(broken.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"cifar10 cannot be read from .*corrupted.*--download fetches it"):
        data.load("cifar10", validation=0.25, seed=0, folder=tmp_path)


def test_missing_cifar_says_how_to_get_it(torchvision, tmp_path):
    with pytest.raises(UserError, match=r"cifar100 cannot be read from .*nothing.*--download fetches it"):
        data.load("cifar100", validation=0.1, seed=0, folder=tmp_path / "nothing")


def test_the_fingerprint_of_a_folder_is_of_names_not_of_places():
    def mark(place, *names):
        samples = [(str(place / "train" / name), 0) for name in names]
        return vision.fingerprint(place, samples, [(str(place / "val" / "ant" / "1.png"), 0)])

    here = mark(Path("images"), "ant/1.png", "ant/2.png")
    assert re.fullmatch(r"2 images in train/, 1 in val/ \(sha256 of their names [0-9a-f]{16}\)", here)
    assert mark(Path("/moved/elsewhere"), "ant/1.png", "ant/2.png") == here
    assert len({here, mark(Path("images"), "ant/1.png", "ant/3.png"), mark(Path("images"), "ant/2.png")}) == 3


def image_folder(folder, torchvision, classes=("ant", "bee")):
    """Eight images of 40x30 pixels a class to train on and three to test on, each of one colour, as PNG."""
    to_image = importlib.import_module("torchvision.transforms.functional").to_pil_image
    for part, count in (("train", 8), ("val", 3)):
        for label, name in enumerate(classes):
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                gradient = torch.linspace(0, 1, 40).expand(3, 30, 40) * (label + 1) / 2
                to_image(gradient * (i + 1) / 8).save(folder / part / name / f"{i}.png")
    return folder


def test_a_folder_of_images(torchvision, tmp_path):
    image_folder(tmp_path, torchvision)
    settings = {"validation": 0.25, "seed": 0, "folder": tmp_path, "augment": True}
    by_workers = [
        data.load("imagefolder", data_args=f'{{"size": 16, "workers": {workers}}}', **settings) for workers in (0, 2)
    ]
    one = by_workers[0]
    assert [len(part) for part in (one.train, one.validation, one.test)] == [12, 4, 6]
    assert (one.classes, one.source, tuple(one.example.shape)) == (2, str(tmp_path), (1, 3, 16, 16))
    assert one.fingerprint.startswith("16 images in train/, 6 in val/ (sha256 of their names ")
    order = data.epoch_order(12, 0, 3)
    state = torch.get_rng_state()
    runs = [list(found.train.batches(order, 5, 3)) for found in (*by_workers, one)]
    assert torch.equal(state, torch.get_rng_state())  # training's random numbers are left alone
    inputs = [torch.cat([batch for batch, _ in run]) for run in runs]
    assert inputs[0].shape == (12, 3, 16, 16)
    assert all(batch.is_contiguous(memory_format=torch.channels_last) for batch, _ in runs[0])
    assert torch.equal(inputs[0], inputs[1])
    assert torch.equal(inputs[0], inputs[2])
    assert torch.equal(inputs[0][5:], torch.cat([batch for batch, _ in one.train.batches(order[5:], 5, 3)]))
    assert not torch.equal(inputs[0], torch.cat([batch for batch, _ in one.train.batches(order, 5, 4)]))
    labels = torch.cat([labels for _, labels in runs[0]])
    assert labels.tolist() == [one.train.samples[i][1] for i in order.tolist()]


def test_evaluation_takes_the_centre_of_a_folders_images(torchvision, tmp_path):
    image_folder(tmp_path, torchvision)
    found = data.load(
        "imagefolder", validation=0, seed=0, folder=tmp_path, data_args='{"size": 20, "resize": 30, "workers": 0}'
    )
    inputs, labels = next(found.test.batches(torch.arange(6), 6, None))
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    mean, std = (torch.tensor(values)[:, None, None] for values in (vision.IMAGENET_MEAN, vision.IMAGENET_STD))
    gradient = torch.linspace(0, 1, 40)[10:30].expand(3, 20, 20)  # 30 pixels high already: 40 wide stays
    for i, image in enumerate(inputs):
        torch.testing.assert_close(
            image * std + mean, gradient * (i // 3 + 1) / 2 * (i % 3 + 1) / 8, atol=0.005, rtol=0
        )


def test_folders_that_cannot_serve(torchvision, tmp_path):
    with pytest.raises(UserError, match="data-dir: imagefolder needs a folder that holds train/CLASS/ and val/CLASS/"):
        data.load("imagefolder", validation=0.1, seed=0)
    with pytest.raises(UserError, match="must hold train/CLASS/ and val/CLASS/ with images"):
        data.load("imagefolder", validation=0.1, seed=0, folder=tmp_path)
    image_folder(tmp_path, torchvision)
    with pytest.raises(UserError, match=r"data-args: resize must be at least size .32., got 30"):
        data.load("imagefolder", validation=0, seed=0, folder=tmp_path, data_args='{"size": 32, "resize": 30}')
    broken = tmp_path / "train" / "ant" / "3.png"
    broken.write_bytes(b"not an image")
    found = data.load("imagefolder", validation=0, seed=0, folder=tmp_path, data_args='{"size": 8, "workers": 0}')
    with pytest.raises(UserError, match=r"ant/3.png: cannot be read as an image"):
        list(found.train.batches(torch.arange(16), 4, 0))
    (tmp_path / "val" / "bee").rename(tmp_path / "val" / "wasp")
    with pytest.raises(UserError, match="train/ and val/ must hold the same classes, got bee, wasp in one of them"):
        data.load("imagefolder", validation=0, seed=0, folder=tmp_path)
