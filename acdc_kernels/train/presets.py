"""What a run is made of: presets, the lengths of a schedule's phases, and the frozen configuration of one run."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

from .._sparsifier_products import KERNELS
from ..policy import schedules
from ..policy.patterns import parse_pattern
from ..policy.schedules import Schedule
from ..policy.scopes import SCOPES
from .errors import UserError
from .json_args import json_object

SCHEDULES = ("acdc", "dense", "prune-once", "prune-late")
OPTIMIZERS = ("sgd", "adamw")
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Preset:
    """A data set, a model and hyper-parameters that work together; every schedule uses the same ones."""

    name: str
    summary: str
    dataset: str
    model: str
    epochs: int
    batch_size: int
    lr: float
    model_args: str = "{}"  # keyword arguments of a model by import path, a JSON object
    data_args: str = "{}"  # see `data.load`
    momentum: float = 0.9
    weight_decay: float = 5e-4
    lr_warmup: float = 1.0  # epochs of linear warm-up before the cosine
    sparsity: float = 0.9
    scope: str = "global"
    validation: float = 1 / 12  # fraction of the training samples that is held out
    optimizer: str = "sgd"
    pattern: str = "unstructured"
    precision: str = "fp32"  # bf16: autocast around forward pass and loss
    kernels: str = "auto"  # see `Sparsifier`
    augment: bool = False


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "demo", "MLP 2048 wide on scikit-learn's 8x8 digits", "digits", "mlp-2048", 40, 64, 0.04, validation=1 / 6
        ),
        Preset("fashion-mnist-mlp", "MLP 2048 wide on Fashion-MNIST", "fashion-mnist", "mlp-2048", 12, 256, 0.05),
        Preset("fashion-mnist", "CNN of 241,184 weights on Fashion-MNIST", "fashion-mnist", "cnn", 14, 128, 0.05),
        Preset(
            "python-text",
            "transformer on the source of Python's library, by the character",
            "python-text",
            "transformer-2-128",
            12,
            16,
            0.003,
            data_args='{"characters": 600000}',
            weight_decay=0.1,
            validation=1 / 16,
            optimizer="adamw",
        ),
        # the paper's learning rates, momentum, weight decay and epochs; its runs on CIFAR divide the learning rate by
        # ten three times, where the trainer's falls as a cosine
        Preset(
            "cifar10-resnet20",
            "ResNet-20 on CIFAR-10 (a cosine, not the paper's steps)",
            "cifar10",
            "resnet-20",
            200,
            128,
            0.1,
            validation=0.1,
            augment=True,
        ),
        Preset(
            "cifar100-wrn-28-10",
            "WideResNet-28-10 on CIFAR-100 (a cosine, not the paper's steps)",
            "cifar100",
            "wrn-28-10",
            200,
            128,
            0.08,
            validation=0.1,
            augment=True,
        ),
        Preset(
            "mobilenet",
            "MobileNetV1 on a folder of images, with the paper's settings for ImageNet",
            "imagefolder",
            "mobilenet",
            100,
            256,
            0.256,
            momentum=0.875,
            weight_decay=2**-15,
            lr_warmup=5.0,
            validation=0.02,
            augment=True,
        ),
    )
}


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides the bits of a run, but for the choices that `kernels` "auto" and "fp16" measure.

    Two runs with equal configurations and equal plans end with equal weights.
    """

    preset: str
    dataset: str
    model: str
    model_args: str
    data_args: str
    schedule: str
    phases: dict[str, int]  # keyword arguments of the schedule, in epochs
    sparsity: float
    scope: str
    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    lr_warmup: float
    validation: float
    optimizer: str
    pattern: str
    precision: str
    kernels: str
    augment: bool
    seed: int
    threads: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def default_folder(self) -> str:
        """``runs/PRESET-SCHEDULE-SPARSITY-sSEED``, with what differs from the preset's own choices after the preset."""
        preset = PRESETS[self.preset]
        changed = [
            re.sub(r"[^A-Za-z0-9._]+", "-", value)
            for name in ("dataset", "model", "optimizer", "pattern", "precision")
            if (value := getattr(self, name)) != getattr(preset, name)
        ]
        if self.kernels != preset.kernels and self.schedule != "dense":
            changed.append(f"{self.kernels}-kernels")
        sparsity = [] if self.schedule == "dense" else [f"{self.sparsity:g}"]
        return "runs/" + "-".join([self.preset, *changed, self.schedule, *sparsity, f"s{self.seed}"])

    def build_schedule(self, steps_per_epoch: int) -> Schedule:
        """The schedule object, in optimizer steps."""
        make = schedules.dense if self.schedule == "dense" else schedules.acdc
        return make(**self.phases, steps_per_unit=steps_per_epoch)


def phase_lengths(schedule: str, epochs: int) -> dict[str, int]:
    """Lengths in epochs of the parts of `schedule`, in the proportions of the paper's 100-epoch ResNet50 run.

    | schedule   | phases                                                                          |
    |------------|---------------------------------------------------------------------------------|
    | acdc       | dense warm-up, compressed and dense in turn, a last dense, a last compressed     |
    | dense      | dense throughout                                                                |
    | prune-once | the same warm-up, then compressed to the end: pruned once, early                 |
    | prune-late | dense until AC/DC's last compressed phase would begin: pruned once, late         |

    Raises UserError where `epochs` is too small for the parts.
    """
    if schedule not in SCHEDULES:
        raise UserError(f"schedule: must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
    least = {"acdc": 4, "dense": 1, "prune-once": 2, "prune-late": 3}[schedule]
    if epochs < least:
        raise UserError(f"epochs: must be at least {least} for schedule {schedule!r}, got {epochs}")
    if schedule == "dense":
        return {"total": epochs}
    warmup = max(1, round(0.10 * epochs))
    cycle = max(1, round(0.05 * epochs))
    final_dense = max(1, round(0.10 * epochs))
    final_compressed = max(1, ceil(0.15 * epochs))
    if schedule == "prune-once":
        cycle, final_dense, final_compressed = 1, 0, epochs - warmup
    if schedule == "prune-late":
        cycle, final_dense = 1, epochs - warmup - final_compressed
    return {
        "total": epochs,
        "warmup": warmup,
        "compressed": cycle,
        "dense": cycle,
        "final_dense": final_dense,
        "final_compressed": final_compressed,
    }


def make_config(preset: str, *, schedule: str = "acdc", seed: int = 0, threads: int, **changes: Any) -> RunConfig:
    """The configuration of `preset` with `changes` (None: the preset's own value).

    The preset's `data_args` and `augment` belong to its data set, its `model_args` to its model: with another, they are
    empty unless given. A pattern other than the preset's brings its own sparsity unless one is given; a dense run has
    neither, and dense kernels. Raises UserError for bad values.
    """
    if preset not in PRESETS:
        raise UserError(f"preset: must be one of {', '.join(PRESETS)}, got {preset!r}")
    base, given = asdict(PRESETS[preset]), {key: value for key, value in changes.items() if value is not None}
    settings = base | given
    settings["preset"] = settings.pop("name")
    del settings["summary"]
    if settings["dataset"] != base["dataset"]:
        settings |= {"data_args": "{}", "augment": False} | given
    if settings["model"] != base["model"]:
        settings |= {"model_args": "{}"} | given
    for name in ("model_args", "data_args"):  # one spelling, so that configurations compare
        settings[name] = json.dumps(json_object(name.replace("_", "-"), settings[name]), sort_keys=True)
    _check(settings, seed, threads)
    if settings["optimizer"] != base["optimizer"] and "lr" not in given:
        raise UserError(
            f"lr: must be given with optimizer {settings['optimizer']!r}, as preset {preset!r} has one for "
            f"{base['optimizer']!r} only"
        )
    phases = phase_lengths(schedule, settings["epochs"])
    if schedule == "dense":
        settings |= {"sparsity": 0.0, "pattern": "unstructured", "kernels": "dense"}
    else:
        if settings["kernels"] in ("sparse", "fp16") and settings["precision"] != "fp32":
            raise UserError(
                f"kernels: must be auto, model or dense with precision {settings['precision']!r}, got "
                f"{settings['kernels']!r}: under autocast all products are dense"
            )
        own = settings["pattern"] != base["pattern"] and "sparsity" not in given
        settings["sparsity"] = _sparsity(settings["pattern"], None if own else settings["sparsity"])
    return RunConfig(schedule=schedule, phases=phases, seed=seed, threads=threads, **settings)


def _sparsity(pattern: str, sparsity: float | None) -> float:
    try:
        return parse_pattern(pattern).resolve_sparsity(sparsity)
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error


def _check(settings: dict[str, Any], seed: int, threads: int) -> None:
    def must(ok: bool, name: str, what: str, got: object) -> None:
        if not ok:
            raise UserError(f"{name}: must be {what}, got {got!r}")

    must(settings["epochs"] >= 1, "epochs", "at least 1", settings["epochs"])
    must(settings["batch_size"] >= 1, "batch-size", "at least 1", settings["batch_size"])
    must(0 < settings["lr"] < float("inf"), "lr", "positive and finite", settings["lr"])
    must(0 <= settings["sparsity"] < 1, "sparsity", "in [0, 1)", settings["sparsity"])
    must(settings["scope"] in SCOPES, "scope", f"one of {', '.join(SCOPES)}", settings["scope"])
    must(settings["optimizer"] in OPTIMIZERS, "optimizer", f"one of {', '.join(OPTIMIZERS)}", settings["optimizer"])
    must(settings["precision"] in PRECISIONS, "precision", f"one of {', '.join(PRECISIONS)}", settings["precision"])
    must(settings["kernels"] in KERNELS, "kernels", f"one of {', '.join(KERNELS)}", settings["kernels"])
    must(0 <= seed < 2**31, "seed", "in [0, 2**31)", seed)
    must(threads >= 1, "threads", "at least 1", threads)
