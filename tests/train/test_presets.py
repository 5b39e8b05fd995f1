"""Presets, the lengths of a schedule's parts, and settings that cannot work."""

import pytest

from acdc_kernels.policy.patterns import Pattern
from acdc_kernels.train import presets
from acdc_kernels.train.errors import UserError
from acdc_kernels.train.presets import PRESETS, SCHEDULES, make_config, phase_lengths

# kind of each epoch: d dense, c compressed
EPOCHS = {
    ("acdc", 4): "dcdc",
    ("acdc", 5): "dcddc",
    ("acdc", 10): "dcdcdcddcc",
    ("acdc", 20): "ddcdcdcdcdcdcdcddccc",
    ("prune-once", 2): "dc",
    ("prune-once", 20): "ddcccccccccccccccccc",
    ("prune-late", 3): "ddc",
    ("prune-late", 20): "dddddddddddddddddccc",
    ("dense", 3): "ddd",
}


@pytest.mark.parametrize(("schedule", "epochs"), EPOCHS)
def test_phases_epoch_by_epoch(schedule, epochs):
    built = make_config("demo", schedule=schedule, epochs=epochs, threads=1).build_schedule(steps_per_epoch=7)
    assert built.total_steps == 7 * epochs
    assert "".join(built.at(7 * epoch).kind[0] for epoch in range(epochs)) == EPOCHS[schedule, epochs]
    assert all(built.at(7 * epoch).kind == built.at(7 * epoch + 6).kind for epoch in range(epochs))


@pytest.mark.parametrize("epochs", [4, 7, 16, 33, 100, 200])
def test_the_baselines_share_warmup_and_last_phase_with_acdc(epochs):
    acdc, once, late = (phase_lengths(name, epochs) for name in ("acdc", "prune-once", "prune-late"))
    assert once["warmup"] == acdc["warmup"]
    assert late["final_compressed"] == acdc["final_compressed"]


def test_100_epochs_are_the_papers_resnet50_run():
    assert phase_lengths("acdc", 100) == {
        "total": 100,
        "warmup": 10,
        "compressed": 5,
        "dense": 5,
        "final_dense": 10,
        "final_compressed": 15,
    }


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_preset_works_with_every_schedule(preset, schedule):
    config = make_config(preset, schedule=schedule, threads=2)
    assert config.build_schedule(10).total_steps == 10 * config.epochs
    assert (config.sparsity, config.kernels) == ((0.0, "dense") if schedule == "dense" else (0.9, "auto"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "acdc", "epochs": 3}, "epochs: must be at least 4 for schedule 'acdc', got 3"),
        ({"schedule": "prune-once", "epochs": 1}, "epochs: must be at least 2 for schedule 'prune-once', got 1"),
        ({"schedule": "prune-late", "epochs": 2}, "epochs: must be at least 3 for schedule 'prune-late', got 2"),
        ({"epochs": 0}, "epochs: must be at least 1, got 0"),
        ({"batch_size": 0}, "batch-size: must be at least 1, got 0"),
        ({"lr": -0.1}, "lr: must be positive and finite, got -0.1"),
        ({"lr": float("nan")}, "lr: must be positive and finite, got nan"),
        ({"sparsity": 1.0}, r"sparsity: must be in \[0, 1\), got 1.0"),
        ({"sparsity": -0.1}, r"sparsity: must be in \[0, 1\), got -0.1"),
        ({"scope": "row"}, "scope: must be one of global, layer, got 'row'"),
        ({"optimizer": "lion"}, "optimizer: must be one of sgd, adamw, got 'lion'"),
        ({"optimizer": "adamw"}, "lr: must be given with optimizer 'adamw', as preset 'demo' has one for 'sgd' only"),
        ({"precision": "fp8"}, "precision: must be one of fp32, bf16, got 'fp8'"),
        ({"kernels": "fast"}, "kernels: must be one of auto, model, dense, sparse, fp16, got 'fast'"),
        *(
            (
                {"kernels": kernels, "precision": "bf16"},
                f"kernels: must be auto, model or dense with precision 'bf16', got '{kernels}': under autocast all",
            )
            for kernels in ("sparse", "fp16")
        ),
        ({"pattern": "zigzag"}, "pattern must be .*'unstructured'.*, got 'zigzag'"),
        ({"seed": -1}, r"seed: must be in \[0, 2\*\*31\), got -1"),
        ({"threads": 0}, "threads: must be at least 1, got 0"),
        ({"schedule": "cyclic"}, "schedule: must be one of acdc, dense, prune-once, prune-late, got 'cyclic'"),
    ],
)
def test_impossible_settings(changes, message):
    with pytest.raises(UserError, match=message):
        make_config("demo", **{"threads": 1, **changes})


def test_mixed_precision_goes_with_dense_products():
    for changes in ({}, {"kernels": "model"}, {"kernels": "sparse", "schedule": "dense"}):
        assert make_config("demo", threads=1, precision="bf16", **changes).precision == "bf16"


def test_unknown_preset():
    with pytest.raises(
        UserError,
        match=r"preset: must be one of demo, fashion-mnist-mlp, fashion-mnist, python-text, .*, got 'imagenet'",
    ):
        make_config("imagenet", threads=1)


def test_arguments_and_augmentation_go_with_the_presets_own_data_and_model():
    own = make_config("python-text", threads=1)
    assert (own.data_args, own.model_args, own.optimizer) == ('{"characters": 600000}', "{}", "adamw")
    other = make_config("python-text", threads=1, dataset="digits", model="cnn")
    assert (other.data_args, other.model_args) == ("{}", "{}")
    assert make_config("python-text", threads=1, data_args='{"block": 8}').data_args == '{"block": 8}'
    assert make_config("cifar10-resnet20", threads=1).augment
    assert make_config("cifar10-resnet20", threads=1, model="wrn-16-4").augment
    assert not make_config("cifar10-resnet20", threads=1, dataset="digits").augment


def test_json_arguments_have_one_spelling():
    one, same = (
        make_config("demo", threads=1, model_args=text) for text in ('{"b": 1,"a": [2]}', '{ "a":[2], "b":1 }')
    )
    assert one == same
    for name, option in (("model_args", "model-args"), ("data_args", "data-args")):
        with pytest.raises(UserError, match=f"{option}: must be a JSON object, got 'x=1'"):
            make_config("demo", threads=1, **{name: "x=1"})


# settings of the paper's runs, as its code states them: epochs, batch, learning rate, momentum, weight decay, warm-up
PAPER = {
    "cifar10-resnet20": (200, 128, 0.1, 0.9, 5e-4, 1.0),
    "cifar100-wrn-28-10": (200, 128, 0.08, 0.9, 5e-4, 1.0),
    "mobilenet": (100, 256, 0.256, 0.875, 3.0517578125e-05, 5.0),
}


@pytest.mark.parametrize("name", PAPER)
def test_settings_of_the_papers_runs(name):
    p = PRESETS[name]
    assert (p.epochs, p.batch_size, p.lr, p.momentum, p.weight_decay, p.lr_warmup) == PAPER[name]
    assert p.augment


@pytest.mark.parametrize(
    ("changes", "folder"),
    [
        ({}, "demo-acdc-0.9-s0"),
        ({"schedule": "dense", "seed": 3}, "demo-dense-s3"),
        ({"model": "mlp-64", "sparsity": 0.95}, "demo-mlp-64-acdc-0.95-s0"),
        ({"model": "my.models:tiny", "precision": "bf16"}, "demo-my.models-tiny-bf16-acdc-0.9-s0"),
        ({"kernels": "dense"}, "demo-dense-kernels-acdc-0.9-s0"),
        ({"kernels": "sparse", "schedule": "dense"}, "demo-dense-s0"),
        ({"dataset": "fashion-mnist", "optimizer": "adamw", "lr": 1e-3}, "demo-fashion-mnist-adamw-acdc-0.9-s0"),
    ],
)
def test_the_folder_tells_what_differs_from_the_preset(changes, folder):
    assert make_config("demo", threads=1, **changes).default_folder == f"runs/{folder}"


@pytest.fixture
def half(monkeypatch):
    """A pattern that fixes its own sparsity."""

    class Half(Pattern):
        def resolve_sparsity(self, sparsity):
            if sparsity not in (None, 0.5):
                raise ValueError(f"sparsity must be 0.5 or None for pattern 'half', got {sparsity}")
            return 0.5

    known = presets.parse_pattern
    monkeypatch.setattr(presets, "parse_pattern", lambda text: Half(text, 0.5) if text == "half" else known(text))


def test_a_pattern_brings_its_sparsity(half):
    assert make_config("demo", threads=1, pattern="half").sparsity == 0.5
    assert make_config("demo", threads=1, pattern="half", sparsity=0.5).sparsity == 0.5
    dense = make_config("demo", threads=1, pattern="half", schedule="dense")
    assert (dense.sparsity, dense.pattern) == (0.0, "unstructured")
    with pytest.raises(UserError, match=r"sparsity must be 0\.5 or None for pattern 'half', got 0\.9"):
        make_config("demo", threads=1, pattern="half", sparsity=0.9)
