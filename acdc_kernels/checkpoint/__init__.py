"""Checkpoints that restore a run bit for bit: one file, replaced in one step, with nothing executable in it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from .._version import __version__
from . import generators
from .archive import FORMAT, read, replace
from .parts import check_plain, checker, describe, has_state, own, restore

__all__ = ["load_checkpoint", "save_checkpoint"]


def save_checkpoint(path: str | os.PathLike[str], /, **parts: Any) -> None:
    """Write the state of `parts` and of the random number generators to one file, whole or not at all.

    A part is an object with ``state_dict()`` (model, optimizer, sparsifier, LR schedule, GradScaler, weight average,
    ...) or plain data: None, bool, int, float, str, bytes, tensors, and lists, tuples and dicts of these::

        acdc.save_checkpoint("last.pt", model=model, optimizer=optimizer, sparsifier=sparsifier, epoch=epoch)

    The generators are torch's CPU generator, those of all CUDA devices if CUDA is in use, Python's ``random``, and
    numpy's global one if numpy is imported. Generators of the caller's own, and the position in the data, go along as
    parts if the rest of the run depends on them.

    The file is written beside `path`, synced to disk, and takes the place of `path` in one step: after a crash, a kill
    or a full disk `path` holds the previous checkpoint, whole. What a killed process left beside it goes with the next
    save. Tensors are written one after another: no second copy of the model is made in memory. A symbolic link is
    followed. Of several processes, one should save.

    The format is ``torch.save``'s (``torch.load(path, weights_only=True)`` reads it): ``{"format", "acdc_kernels",
    "torch", "parts", "about", "rng"}``, with a BLAKE2b digest of the file in the archive's comment.

    Raises:
        TypeError: a part holds what can't be read back as plain data (the place is named): an object, also as an
            attribute of a tensor, an int of more than 2039 bits, a tensor without memory of its own, a list in itself;
            nothing was written.
        OSError: the file cannot be written; `path` is as it was, and nothing is left beside it.
    """
    states, about = {}, {}
    for name, part in parts.items():
        states[name] = part.state_dict() if has_state(part) else part
        check_plain(name, states[name])
        about[name] = describe(part)
    content = {
        "format": FORMAT,
        "acdc_kernels": __version__,
        "torch": str(torch.__version__),
        "parts": states,
        "about": about,
        "rng": generators.state(),
    }
    replace(Path(os.path.realpath(path)), content)


def load_checkpoint(path: str | os.PathLike[str], /, **parts: Any) -> dict[str, Any]:
    """Restore `parts` and the random number generators from `path`; returns the plain data that was saved, by name.

    `parts` are objects with ``load_state_dict``, made as at the start of the run, under the names they were saved by:
    all of those, and no other. Training then continues bit for bit as if it had never stopped::

        epoch = acdc.load_checkpoint("last.pt", model=model, optimizer=optimizer, sparsifier=sparsifier)["epoch"]

    Everything is checked before anything is changed: the file's digest and format; the names of the parts; of a module,
    its tensors' names, shapes and dtypes; of an optimizer, its groups, their hyper-parameters' names, the shapes of
    their parameters, its ``state_dtype``, and whether it takes masks; of an LR schedule or GradScaler, the names of its
    entries; then, of any part with a method ``check_state_dict(state)``, such as a Sparsifier or a masked optimizer,
    whatever that raises ValueError or TypeError for.
    Other parts are asked first to load theirs, in the order they were saved: if one refuses, no later one is changed.

    The file is memory-mapped and its tensors copied part by part: no tensor of the run refers to it afterwards.

    Raises:
        TypeError: a part has no ``load_state_dict``.
        ValueError: the file is not a whole checkpoint (truncated, damaged, another kind), is of a format that this
            version doesn't read (both are named), holds executable content (which is not executed), or doesn't fit
            `parts`: every difference is named.
        OSError: the file cannot be read.
    """
    for name, part in parts.items():
        if not callable(getattr(part, "load_state_dict", None)):
            raise TypeError(
                f"load_checkpoint: {name} must be an object with load_state_dict, got {type(part).__name__}; plain "
                "data is returned, not passed"
            )
    content = read(Path(path))
    states, about = content["parts"], content["about"]
    saved = [name for name in states if about[name]["kind"] != "data"]
    differences = [f"it holds no part {name!r}" for name in parts if name not in states]
    differences += [f"its part {name!r} was not asked for" for name in saved if name not in parts]
    differences += [f"its part {name!r} is plain data" for name in parts if name in states and name not in saved]
    checkers = {name: checker(parts[name]) for name in saved if name in parts}
    for name, differing in checkers.items():
        if differing is not None:
            differences += differing(name, parts[name], states[name], about[name])
    differences += generators.differences(content["rng"])
    if differences:
        raise ValueError(f"load_checkpoint: {path} must be a checkpoint of this run, but {'; '.join(differences)}")
    for name in sorted(checkers, key=lambda name: checkers[name] is not None):
        restore(f"load_checkpoint: {path}: {name}", parts[name], states.pop(name))
    generators.set_state(content["rng"])
    return own(states)
