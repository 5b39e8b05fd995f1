"""What a checkpoint restores, and what it refuses."""

from __future__ import annotations

import collections
import functools
import io
import os
import random
import re
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from acdc_kernels import MaskedSGD, load_checkpoint, save_checkpoint
from acdc_kernels.checkpoint import archive

from .conftest import Run

# What is restored


def test_every_part_and_generator_comes_back(saved):
    path, run = saved
    bits, drawn = run.bits(), draw()
    other = Run(seed=1, updates=7)
    assert other.bits() != bits
    assert load_checkpoint(path, **other.parts()) == {"epoch": 3}
    assert other.bits() == bits
    assert draw() == drawn


def draw():
    return torch.rand(2).tolist(), random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn()


def test_a_gaussian_half_used_comes_back(tmp_path):
    random.gauss(0, 1), np.random.randn()  # each makes two and keeps one
    save_checkpoint(tmp_path / "x")
    drawn = random.gauss(0, 1), np.random.randn()
    load_checkpoint(tmp_path / "x")
    assert (random.gauss(0, 1), np.random.randn()) == drawn


PLAIN = {
    "none": None,
    "numbers": [True, 3, -(2**70), 0.1, float("inf"), -0.0],
    "texts": ("ä", b"\x00\xff"),
    "nested": {"a": [{"b": (1, [2])}], 3: {}},
    "torch": [torch.Size([2, 3]), torch.bfloat16, torch.device("cpu")],
    "tensors": {"strided": torch.arange(6.0).view(2, 3).T, "empty": torch.zeros(0, 3), "bool": torch.tensor([True])},
    "sparse": [torch.eye(3).to_sparse()],
    "largest": [2**2039 - 1, 1 - 2**2039],
    "counter": collections.Counter("aab"),
    "deep": functools.reduce(lambda inner, _: [inner], range(99), []),
    "parameter": nn.Parameter(torch.ones(2)),
}


def test_plain_data_comes_back(tmp_path):
    save_checkpoint(tmp_path / "x", **PLAIN)
    assert repr(load_checkpoint(tmp_path / "x")) == repr({**PLAIN, "parameter": torch.ones(2)})


def test_what_was_loaded_does_not_depend_on_the_file(saved):
    path, run = saved
    other = Run(seed=1)
    load_checkpoint(path, **other.parts())
    path.write_bytes(bytes(path.stat().st_size))
    assert other.bits() == run.bits()


def test_torch_and_zip_read_the_file(saved):
    path, run = saved
    content = torch.load(path, weights_only=True)
    assert (content["format"], sorted(content["parts"])) == (
        1,
        ["epoch", "lr_schedule", "model", "optimizer", "sparsifier"],
    )
    assert torch.equal(content["parts"]["model"]["0.weight"], run.model[0].weight)
    assert zipfile.ZipFile(path).testzip() is None


def test_grad_scaler_and_weight_average(tmp_path):
    model = nn.Linear(2, 2)
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    save_checkpoint(tmp_path / "x", average=average, scaler=scaler)
    others = torch.optim.swa_utils.AveragedModel(nn.Linear(2, 2)), torch.amp.GradScaler("cpu")
    load_checkpoint(tmp_path / "x", average=others[0], scaler=others[1])
    assert others[1].get_scale() == 8.0
    assert torch.equal(others[0].module.weight, model.weight)
    assert others[0].n_averaged == 1
    with pytest.raises(ValueError, match=r"scaler has scale, .* only there"):
        load_checkpoint(tmp_path / "x", average=average, scaler=torch.amp.GradScaler("cpu", enabled=False))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_generators_come_back(tmp_path):
    torch.rand(1, device="cuda")
    save_checkpoint(tmp_path / "x")
    drawn = torch.rand(3, device="cuda")
    load_checkpoint(tmp_path / "x")
    assert torch.equal(torch.rand(3, device="cuda"), drawn)


def test_generators_of_devices_that_are_not_here(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [torch.get_rng_state()] * 99)
    save_checkpoint(tmp_path / "x")
    with pytest.raises(ValueError, match=r"it holds the generators of 99 CUDA devices, and there are \d+ here"):
        load_checkpoint(tmp_path / "x")


# What is refused


def refused(path, match, run=None, parts=None):
    """`path` is refused with a message, and nothing has changed."""
    run = run or Run(seed=1)
    parts = run.parts() if parts is None else parts
    before = run.bits()
    with pytest.raises(ValueError, match=match) as refusal:
        load_checkpoint(path, **parts)
    assert str(path) in str(refusal.value)
    assert run.bits() == before


OTHERS = {
    "shapes": ({"hidden": 12}, [r"model's 0.weight is torch.float32 \[12, 8\] here and torch.float32 \[16, 8\] there", r"optimizer's parameter 0 of group 0 has shape \[12, 8\] here and \[16, 8\]"]),
    "dtype": ({"dtype": torch.float64}, [r"model's 3.bias is torch.float64 \[4\] here and torch.float32 \[4\] there"]),
    "sparsity": ({"sparsity": 0.5}, ["sparsity is 0.5 here and 0.8 in the state"]),
    "schedule": ({"warmup": 1}, ["schedule's warmup is 1 here and 2 in the state"]),
    "groups": ({"groups": 2}, ["optimizer has 2 parameter groups here and 1 there", "group 0 has 3 parameters here and 6"]),
    "optimizer": ({"optimizer": torch.optim.AdamW}, ["part 'sparsifier' was not asked for", "optimizer is AdamW here, but group 0 there has no amsgrad, betas", "AdamW here, which takes no masks, but has masks"]),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_another_run(saved, case):
    settings, messages = OTHERS[case]
    for message in messages:
        refused(saved[0], message, Run(seed=1, **settings))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sparsifier": None}, "its part 'sparsifier' was not asked for"),
        ({"average": nn.Linear(1, 1)}, "it holds no part 'average'"),
        ({"epoch": nn.Linear(1, 1)}, "its part 'epoch' is plain data"),
        ({"model": nn.Linear(8, 16)}, "model has weight, bias only here; model has 0.weight, .* only there"),
        ({"lr_schedule": "exponential"}, "lr_schedule has step_size only there"),
        ({"model": "optimizer"}, "model is an optimizer here and torch.nn.modules.container.Sequential there"),
        ({"optimizer": "model"}, "optimizer is a module here and acdc_kernels.optim.masked_sgd.MaskedSGD there"),
    ],
)
def test_other_parts(saved, change, message):
    run = Run(seed=1)
    known = {
        "exponential": torch.optim.lr_scheduler.ExponentialLR(run.optimizer, 0.9),
        "optimizer": run.optimizer,
        "model": run.model,
    }
    change = {name: known[part] if isinstance(part, str) else part for name, part in change.items()}
    parts = {name: part for name, part in (run.parts() | change).items() if part is not None}
    refused(saved[0], message, run, parts)


@pytest.mark.parametrize("here", [None, torch.float32], ids=str)
def test_another_dtype_of_state(tmp_path, here):
    run, there = Run(dtype=torch.bfloat16), None if here else torch.float32
    parameters = list(run.model.parameters())
    save_checkpoint(tmp_path / "x", optimizer=MaskedSGD(parameters, state_dtype=there))
    parts = {"optimizer": MaskedSGD(parameters, state_dtype=here)}
    refused(tmp_path / "x", f"optimizer's state_dtype is {here} here and {there} there", run, parts)


def test_state_of_another_shape(tmp_path):
    run = Run()
    run.optimizer.state[run.model[0].weight]["momentum_buffer"] = torch.ones(3)
    save_checkpoint(tmp_path / "x", **run.parts())
    message = r"optimizer: load_state_dict: momentum_buffer of parameter 0 must be .* \[16, 8\], got \[3\]"
    refused(tmp_path / "x", message, Run(seed=1))


def test_a_module_without_shapes_yet(tmp_path):
    model, lazy = nn.Linear(2, 3), nn.LazyLinear(3)
    save_checkpoint(tmp_path / "x", model=model, optimizer=MaskedSGD(model.parameters()))
    parts = {"model": lazy, "optimizer": MaskedSGD(lazy.parameters())}
    for message in (
        r"model's weight is uninitialized here and torch.float32 \[3, 2\] there",
        r"optimizer's parameter 0 of group 0 has shape uninitialized here and \[3, 2\] there",
    ):
        with pytest.raises(ValueError, match=message):
            load_checkpoint(tmp_path / "x", **parts)
    with pytest.raises(TypeError, match=r"model\['weight'\] must be plain data .*UninitializedParameter"):
        save_checkpoint(tmp_path / "x", **parts)


class Picky:
    """A part that judges a state on its own."""

    def state_dict(self):
        return {"colour": "red"}

    def load_state_dict(self, state):
        raise KeyError("colour must be blue")


class Careful(Picky):
    def check_state_dict(self, state):
        raise ValueError(f"colour must be blue, got {state['colour']}")


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Picky(), "picky refused its state .*colour must be blue"),
        (Careful(), "this run, but picky: colour must be blue, got red; .*0.weight"),
    ],
)
def test_a_part_that_refuses(tmp_path, part, message):
    run = Run()
    save_checkpoint(tmp_path / "x", picky=part, **run.parts())
    other = Run(seed=1, hidden=12 if isinstance(part, Careful) else 16)
    refused(tmp_path / "x", message, other, {**other.parts(), "picky": part})


def test_plain_data_is_not_passed(saved):
    with pytest.raises(
        TypeError, match="epoch must be an object with load_state_dict, got int; plain data is returned"
    ):
        load_checkpoint(saved[0], epoch=3)


@pytest.mark.parametrize("tenth", range(10))
def test_truncated(saved, tenth):
    path, _ = saved
    path.write_bytes(path.read_bytes()[: path.stat().st_size * tenth // 10])
    refused(path, "is not a checkpoint of acdc-kernels, or is truncated")


def test_flipped_bits(saved):
    path, _ = saved
    whole, run = path.read_bytes(), Run(seed=1)
    chance = random.Random(0)
    before = run.bits()
    for place in [*(chance.randrange(len(whole)) for _ in range(300)), *range(len(whole) - 130, len(whole))]:
        broken = bytearray(whole)
        broken[place] ^= 1 << chance.randrange(8)
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"is damaged|is not a checkpoint|is of format \d+"):
            load_checkpoint(path, **run.parts())
    assert run.bits() == before


def test_another_format(saved, monkeypatch):
    path, run = saved
    monkeypatch.setattr(archive, "FORMAT", 2)
    save_checkpoint(path, **run.parts())
    monkeypatch.undo()
    refused(path, r"is of format 2, but this version of acdc-kernels \(.+\) reads format 1")


@pytest.mark.parametrize("content", [b"", b"words", b"PK\x05\x06" + bytes(18)])
def test_no_checkpoint_at_all(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    refused(tmp_path / "x", "is not a checkpoint of acdc-kernels")


def sealed(path, content):
    """`content` as torch writes it, under a digest that is right."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    archive._seal(buffer)
    path.write_bytes(buffer.getvalue())


class Evil:
    """Unpickled by anything that executes content, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_content_is_never_executed(tmp_path):
    effect = tmp_path / "effect"
    sealed(tmp_path / "x", {"format": 1, "parts": {"model": Evil(effect)}, "about": {}, "rng": {}})
    torch.load(tmp_path / "x", weights_only=False)
    effect.rmdir()  # so it would have worked
    refused(tmp_path / "x", "cannot be read .*Weights only load failed")
    assert not effect.exists()


@pytest.mark.parametrize(
    "content", [3, {}, {"parts": 1, "about": {}, "rng": {}}, {"parts": {"a": 1}, "about": {}, "rng": {}}, {"parts": {"a": 1}, "about": {"a": {}}, "rng": {}}]
)  # fmt: skip
def test_a_sealed_file_of_another_shape(tmp_path, content):
    sealed(tmp_path / "x", content)
    refused(tmp_path / "x", "is not a checkpoint of acdc-kernels: it must hold parts and rng")


@pytest.mark.parametrize("rng", [{}, {"torch": torch.zeros(3, dtype=torch.uint8), "python": (3, (1,), None)}])
def test_generators_that_cannot_be_restored(tmp_path, rng):
    sealed(tmp_path / "x", {"parts": {}, "about": {}, "rng": rng})
    refused(tmp_path / "x", "its random number generators can't be restored", parts={})


def tagged(value, note):
    value.note = note
    return value


def circle():
    value = [{}]
    value[0]["x"] = value
    return value


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ([{"a": np.float64(1)}], r"x\[0\]\['a'\] must be plain data .*, got numpy.float64"),
        ({"f": print}, r"x\['f'\] must be plain data .*, got builtins.builtin_function_or_method"),
        (collections.defaultdict(list), "x must be plain data .*, got collections.defaultdict"),
        (tagged(torch.ones(1), print), r"x\.note must be plain data .*, got builtins.builtin_function_or_method"),
        (tagged(nn.Parameter(torch.ones(1)), [print]), r"x\.note\[0\] must be plain data"),
        (tagged(collections.OrderedDict(), print), r"x\.note must be plain data"),
        ([1 << 2039], r"x\[0\] must be an int of at most 2039 bits, got 2040"),
        ({1 << 2039: 0}, "a key of x must be an int of at most 2039 bits, got 2040"),
        ([torch.ones(3).to_mkldnn()], r"x\[0\] must be a strided or sparse tensor, got torch._mkldnn"),
        (torch._efficientzerotensor(4), "x must be a strided or sparse tensor, got one without memory"),
        (circle(), r"x\[0\]\['x'\] must be plain data, and must not hold itself"),
        (functools.reduce(lambda inner, _: [inner], range(100), []), r"x(\[0\]){100} must be nested at most 100 deep"),
        ({(1, 2): 3}, "a key of x must be plain data, got builtins.tuple"),
        ({1, 2}, "x must be plain data .*, got builtins.set"),
    ],
)
def test_what_is_no_plain_data(tmp_path, value, place):
    with pytest.raises(TypeError, match=place):
        save_checkpoint(tmp_path / "last.pt", x=value)
    assert list(tmp_path.iterdir()) == []


def test_loading_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "x"))):
        load_checkpoint(tmp_path / "x")


def test_masks_can_not_be_lost_silently(tmp_path):
    run = Run()
    save_checkpoint(tmp_path / "x", optimizer=run.optimizer)
    plain = torch.optim.SGD(run.model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="optimizer is SGD here, which takes no masks, but has masks there"):
        load_checkpoint(tmp_path / "x", optimizer=plain)
    load_checkpoint(tmp_path / "x", optimizer=MaskedSGD(run.model.parameters(), lr=0.5))
