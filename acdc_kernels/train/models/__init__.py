"""The models of the trainer: families by name, and any other by import path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ..data import Dataset
from ..errors import UserError
from ..json_args import json_object
from . import by_path, mobilenet, resnet, small, transformer, wide_resnet
from .names import BadName


@dataclass(frozen=True)
class Family:
    """How names of a family are spelt, the kind of data it takes, and what makes a model of the rest of a name."""

    spelling: str
    unit: str
    make: Callable[[str, Dataset], nn.Module]


FAMILIES = {
    "mlp": Family("mlp-WIDTH[-INPUTS]", "images", small.mlp),
    "cnn": Family("cnn", "images", small.cnn),
    "resnet": Family("resnet-DEPTH", "images", resnet.from_name),
    "wrn": Family("wrn-DEPTH-WIDTH", "images", wide_resnet.from_name),
    "mobilenet": Family("mobilenet[-cifar][-WIDTH]", "images", mobilenet.from_name),
    "transformer": Family("transformer-LAYERS-WIDTH", "characters", transformer.from_name),
}
MODEL_NAMES = ", ".join(family.spelling for family in FAMILIES.values())


def build_model(name: str, dataset: Dataset, seed: int, model_args: str = "{}") -> nn.Module:
    """A freshly initialised model for `dataset`; the seed decides its weights.

    `name` is one of a family (``mlp-1024``, ``resnet-20``, ``wrn-28-10``, ...) or the import path of a callable that
    returns a model (``package.module:callable``), called with the keyword arguments of the JSON object `model_args`.
    Logits are [B, classes], or [B, T, classes] for text. Raises UserError for a name that means nothing, for
    arguments that don't fit, and for a model whose output doesn't fit the data set.
    """
    torch.manual_seed(seed)
    if by_path.is_path(name):
        return by_path.build(name, model_args, dataset)
    if json_object("model-args", model_args):
        raise UserError(f"model-args: only for models by import path, got {model_args} for {name!r}")
    prefix, _, rest = name.partition("-")
    if prefix not in FAMILIES:
        raise UserError(f"model: must be one of {MODEL_NAMES}, or package.module:callable, got {name!r}")
    family = FAMILIES[prefix]
    if family.unit != dataset.unit:
        raise UserError(f"model: {family.spelling} takes {family.unit}, but {dataset.name} holds {dataset.unit}")
    try:
        return family.make(rest, dataset)
    except BadName as error:
        raise UserError(f"model: must be {family.spelling} ({error}), got {name!r}") from None
    except (RuntimeError, TypeError, OverflowError, MemoryError) as error:  # sizes that torch can't hold
        raise UserError(f"model: {name!r} cannot be built ({str(error).splitlines()[0]})") from error


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Weights of two or more dimensions decay; biases and normalisation parameters do not."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
