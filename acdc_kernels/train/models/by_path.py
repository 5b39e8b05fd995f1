"""Any model by import path: ``torchvision.models:resnet18``, ``transformers:GPT2LMHeadModel``, ``my_nets:Net``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..data import Dataset
from ..errors import UserError
from ..json_args import json_object


def is_path(name: str) -> bool:
    """Whether a model's name is an import path."""
    return ":" in name


def build(path: str, model_args: str, dataset: Dataset) -> nn.Module:
    """The model that the callable at `path` returns for `model_args`, checked on two samples of `dataset`'s shape.

    A dict named ``config`` is turned into the callable's ``config_class`` where it has one, as models of transformers
    do. A model may return its logits, or an object with ``.logits``. The current folder is searched for modules too,
    after all others.
    """
    make, keywords = find(path), json_object("model-args", model_args)
    config_class = getattr(make, "config_class", None)
    try:
        if config_class is not None and isinstance(keywords.get("config"), dict):
            keywords["config"] = config_class(**keywords["config"])
        model = make(**keywords)
    except Exception as error:  # whatever a stranger's constructor raises
        raise UserError(f"model: {path} failed with {model_args}: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"model: {path} must return a torch.nn.Module, got {type(model).__name__}")
    model.register_forward_hook(_take_logits)
    _check_output(path, model, dataset)
    return model


def find(path: str) -> Callable[..., Any]:
    """The callable at ``package.module:callable``; the part after the colon may have dots."""
    module_name, _, attribute = path.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), *attribute.split("."))):
        raise UserError(f"model: an import path must be package.module:callable, got {path!r}")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # an import runs a stranger's code
        raise UserError(
            f"model: {module_name!r} cannot be imported ({type(error).__name__}: {error}), asked for by {path!r}"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UserError(f"model: {getattr(found, '__name__', found)!r} has no {part!r}, asked for by {path!r}")
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"model: {path!r} must be callable, got {type(found).__name__}")
    return found


def _take_logits(model: nn.Module, inputs: tuple[Any, ...], output: Any) -> Tensor:
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise TypeError(f"output must be a tensor or have .logits, got {type(output).__name__}")
    return logits


def _check_output(path: str, model: nn.Module, dataset: Dataset) -> None:
    inputs = torch.cat([dataset.example, dataset.example])
    wanted = (*inputs.shape, dataset.classes) if dataset.unit == "characters" else (len(inputs), dataset.classes)
    training = model.training
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=()):
            output = model.eval()(inputs)
    except Exception as error:  # a stranger's forward pass
        raise UserError(
            f"model: {path} failed on {dataset.name}'s inputs {list(inputs.shape)} {inputs.dtype}: "
            f"{type(error).__name__}: {error}"
        ) from error
    finally:
        model.train(training)
    if tuple(output.shape) != wanted:
        meaning = "[B, T, classes]" if dataset.unit == "characters" else "[B, classes]"
        raise UserError(
            f"model: {path} must return logits {meaning} = {list(wanted)} for {dataset.name}, "
            f"got {list(output.shape)}; --model-args may set the number of classes"
        )
