"""Models by import path: found, called, adapted, and what is said when they don't fit."""

import copy
import importlib
import pickle
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from acdc_kernels.train.errors import UserError
from acdc_kernels.train.flops import FlopRule
from acdc_kernels.train.models import build_model, by_path

from .conftest import characters, images

HERE = "strangers"
DIGITS = images(1, 8, 8)


class Net(nn.Module):
    def __init__(self, classes=10, dropout=0.0):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(64, classes))

    def forward(self, x):
        return self.body(x)

    @classmethod
    def made(cls, classes):
        return cls(classes)


class WithLogits(Net):
    def forward(self, x):
        return SimpleNamespace(logits=self.body(x), loss=None)


class WithTuple(Net):
    def forward(self, x):
        return self.body(x), None


class Broken(Net):
    def forward(self, x):
        return x @ torch.zeros(3, 3)


class Config:
    def __init__(self, vocabulary):
        self.vocabulary = vocabulary


class Configured(nn.Module):
    config_class = Config

    def __init__(self, config):
        super().__init__()
        self.embed = nn.Embedding(config.vocabulary, config.vocabulary)

    def forward(self, x):
        return SimpleNamespace(logits=self.embed(x))


def refuses():
    raise RuntimeError("no such weights")


@pytest.fixture(autouse=True)
def strangers(monkeypatch):
    """This very module, under a name that can be imported."""
    monkeypatch.setitem(sys.modules, HERE, sys.modules[__name__])


@pytest.mark.parametrize("path", ["Net", "Net.made", "WithLogits"])
def test_a_model_by_path_gives_logits_and_keeps_its_names(path):
    model = build_model(f"{HERE}:{path}", DIGITS, 3, '{"classes": 10}')
    assert model(torch.zeros(5, 1, 8, 8)).shape == (5, 10)
    assert list(model.state_dict()) == ["body.2.weight", "body.2.bias"]
    assert model.training


def test_the_seed_decides_its_weights_and_the_check_draws_nothing():
    one, same, other = (build_model(f"{HERE}:Net", DIGITS, seed, '{"dropout": 0.5}') for seed in (1, 1, 2))
    assert torch.equal(one.body[2].weight, same.body[2].weight)
    assert not torch.equal(one.body[2].weight, other.body[2].weight)
    torch.manual_seed(1)
    Net(dropout=0.5)
    after_building = torch.rand(1)
    build_model(f"{HERE}:Net", DIGITS, 1, '{"dropout": 0.5}')
    assert torch.equal(torch.rand(1), after_building)


def test_the_adapter_is_kept_by_copies():
    model = build_model(f"{HERE}:WithLogits", DIGITS, 0)
    x = torch.ones(2, 1, 8, 8)
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    assert pickle.loads(pickle.dumps(by_path._take_logits)) is by_path._take_logits


def test_a_config_is_made_by_its_class():
    model = build_model(f"{HERE}:Configured", characters(6), 0, '{"config": {"vocabulary": 97}}')
    assert model(torch.zeros(2, 6, dtype=torch.int64)).shape == (2, 6, 97)


def test_the_current_folder_is_searched_last(tmp_path, monkeypatch):
    (tmp_path / "my_own_nets.py").write_text(
        "import torch\ndef net():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    (tmp_path / "json.py").write_text("raise SystemExit('shadowed')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    assert build_model("my_own_nets:net", DIGITS, 0)(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    assert "shadowed" not in (importlib.import_module("json").__doc__ or "shadowed")
    sys.modules.pop("my_own_nets")


@pytest.mark.parametrize(
    ("path", "arguments", "message"),
    [
        ("no.such:Net", "{}", "'no.such' cannot be imported .ModuleNotFoundError: No module named 'no'., asked for by"),
        (f"{HERE}:Nets", "{}", "has no 'Nets', asked for by 'strangers:Nets'"),
        (f"{HERE}:Net.nothing", "{}", "'Net' has no 'nothing'"),
        (f"{HERE}:HERE", "{}", "'strangers:HERE' must be callable, got str"),
        (f"{HERE}:", "{}", "an import path must be package.module:callable, got 'strangers:'"),
        (":Net", "{}", "an import path must be package.module:callable, got ':Net'"),
        (f"{HERE}:a:b", "{}", "an import path must be package.module:callable"),
        (f"{HERE}:Net", "[3]", r"model-args: must be a JSON object, got '\[3\]'"),
        (f"{HERE}:Net", "{classes: 3}", "model-args: must be a JSON object, got '{classes: 3}' .Expecting"),
        (f"{HERE}:Net", '{"width": 3}', "failed with .*: TypeError: .*unexpected keyword argument 'width'"),
        (f"{HERE}:Configured", '{"config": {"words": 3}}', "TypeError: .*unexpected keyword argument 'words'"),
        (f"{HERE}:refuses", "{}", "strangers:refuses failed with {}: RuntimeError: no such weights"),
        (f"{HERE}:Config", '{"vocabulary": 3}', "must return a torch.nn.Module, got Config"),
        (f"{HERE}:WithTuple", "{}", "TypeError: output must be a tensor or have .logits, got tuple"),
        (f"{HERE}:Broken", "{}", r"failed on images's inputs \[2, 1, 8, 8\] torch.float32: RuntimeError"),
        (f"{HERE}:Net", '{"classes": 1000}', r"must return logits \[B, classes\] = \[2, 10\] for images, got \[2, 1000\]; --model-args may"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(path, arguments, message):
    with pytest.raises(UserError, match=message):
        build_model(path, DIGITS, 0, arguments)


def test_text_needs_logits_at_every_position():
    arguments = '{"config": {"vocabulary": 50}}'
    with pytest.raises(UserError, match=r"\[B, T, classes\] = \[2, 6, 97\] for characters, got \[2, 6, 50\]"):
        build_model(f"{HERE}:Configured", characters(6), 0, arguments)


def test_gpt2_of_transformers_with_random_weights():
    pytest.importorskip("transformers", reason="transformers is not installed (pip install transformers)")
    config = (
        '{"config": {"n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 97, "n_positions": 16, "use_cache": false}}'
    )
    one, same = (build_model("transformers:GPT2LMHeadModel", characters(16), seed, config) for seed in (4, 4))
    x = torch.randint(97, (3, 16))
    assert one.train()(x).shape == (3, 16, 97)
    assert torch.equal(one.eval()(x), same.eval()(x))
    with pytest.raises(TypeError, match=r"no rule for layer '.*' of type NewGELUActivation"):
        FlopRule.of(one, characters(16).example)
    rule = FlopRule.of(one, characters(16).example, strict=False)
    assert rule.weights == 2 * 12 * 32**2 + 32 * 97
    # bias of qkv, out, up and down; two norms a block and one more; scores and values
    assert rule.fixed == 2 * (9 * 32 * 16) + 5 * 2 * 32 * 16 + 2 * 4 * 16**2 * 32
    assert rule.rule.endswith("for products outside of its layers; other work of NewGELUActivation is left out")


def test_resnet18_of_torchvision(torchvision):
    model = build_model("torchvision.models:resnet18", images(3, 32, 32), 0, '{"num_classes": 10}')
    assert sum(p.numel() for p in model.parameters()) == 11_689_512 - 990 * 513
    rule = FlopRule.of(model, torch.zeros(1, 3, 224, 224))
    assert rule.dense_forward / 2 == pytest.approx(1.81e9, rel=0.02)  # multiply-adds, as torchvision states
