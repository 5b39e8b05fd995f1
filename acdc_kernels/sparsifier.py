"""The conductor: schedule x pattern x scope -> masks -> layers and optimizer."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, MutableMapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from .formats.mask_bits import check_bits
from .nn import Snapshot, find_weights, is_wrapped, named_tensors, unwrap, wrap
from .ops import topk_mask_with_nan_count, unpack_mask
from .policy.patterns import parse_pattern
from .policy.schedules import Phase, Schedule
from .policy.scopes import Exempt, budget, check_scope, competing

__all__ = ["Sparsifier"]

_STATE_VERSION = 1


class Sparsifier:
    """Runs AC/DC (Peste et al. 2021, arXiv 2106.12379) on a model and its optimizer: you train, it flips the phases.

    At the first step of a compressed phase the weights of largest magnitude are kept; the others, and their momentum,
    become +0.0 and stay exactly that until the phase ends. At the first step of a dense phase they come back from zero,
    and all momentum restarts from zero. Training that ends compressed yields a pair: ``model`` itself is sparse, and
    ``dense_twin()`` is dense::

        optimizer = acdc.MaskedSGD(model.parameters(), lr=0.1, momentum=0.9)
        schedule = acdc.schedules.acdc(total=30, warmup=5, compressed=3, dense=3, final_dense=4, final_compressed=6,
                                       steps_per_unit=len(loader))
        sparsifier = acdc.Sparsifier(model, optimizer, schedule, sparsity=0.9)
        for epoch in range(30):
            for x, y in loader:
                optimizer.zero_grad()
                loss(model(x), y).backward()
                optimizer.step()
                sparsifier.step()                        # once after every optimizer.step()
        dense = sparsifier.dense_twin()

    The weights of Linear, Conv1d, Conv2d and Conv3d layers compete for the budget if they require a gradient and belong
    to the optimizer; biases and normalisation never do. Of n competing weights exactly ``n - round(sparsity * n)`` are
    kept; ties go to the lowest (parameter order, logical row-major index). A parameter that layers share counts once.
    The class of each competing layer becomes a subclass of its own; to its user the model stays what it was.

    Args:
        model: any module.
        optimizer: a ``MaskedSGD`` over the model's parameters.
        schedule: from ``acdc_kernels.schedules``; its steps are optimizer updates, counted from 0.
        sparsity: the share of competing weights that are zero in a compressed phase, in [0, 1). None: 0.9.
        pattern: which shapes of zeros are allowed: ``"unstructured"``, zeros anywhere.
        scope: ``"global"``: all weights compete for one budget; ``"layer"``: each parameter has the same sparsity, and
            the model's first and last layer are exempt.
        exempt: what never competes: a name or glob of layers or parameters (``"head"``, ``"blocks.*.proj"``), a
            predicate ``(layer name, layer) -> bool``, or an iterable of these.
        reset_momentum: whether a dense phase that follows a compressed one starts with zero momentum.
        kernels: ``"auto"`` or ``"dense"``: dense products with masked weights, in this version.
        storage: ``"dense"``: parameters stay whole.
        tie_rule: ``"lowest_index"``.
        process_group: None: one process.
        dense_snapshot: where the dense twin waits during a compressed phase: ``"disk"`` (a temporary file),
            ``"memory"`` (a copy of the model), or the path of a file to write and leave there.

    The constructor applies the phase of step 0. To resume, make model, optimizer and sparsifier as at the start, then
    load the state of each, in any order.

    Attributes:
        model, optimizer, schedule, sparsity: as given; ``sparsity`` as a number.

    Raises:
        TypeError: ``optimizer`` has no masks; ``model``, ``schedule`` or ``exempt`` is of another type.
        ValueError: a setting is out of range or not available; an exempt name matches no layer; nothing is prunable;
            competing weights are on several devices, of several dtypes, or masked already; the model has a sparsifier
            already; a weight that phase 0 would threshold holds NaN. Nothing was changed then.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        sparsity: float | None = None,
        pattern: str = "unstructured",
        scope: str = "global",
        exempt: Exempt = (),
        reset_momentum: bool = True,
        kernels: str = "auto",
        storage: str = "dense",
        tie_rule: str = "lowest_index",
        process_group: None = None,
        dense_snapshot: str | os.PathLike[str] = "disk",
    ) -> None:
        _check_types(model, optimizer, schedule)
        _check_choice("kernels", kernels, ("auto", "dense"), "sparse products are not in this version")
        _check_choice("storage", storage, ("dense",), "compact storage is not in this version")
        _check_choice("tie_rule", tie_rule, ("lowest_index",), "other rules are not in this version")
        if process_group is not None:
            raise ValueError(
                f"Sparsifier: process_group must be None, got {process_group!r}: one process only in this version"
            )
        parsed = parse_pattern(pattern)
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.sparsity = parsed.resolve_sparsity(sparsity)
        self._pattern, self._scope = parsed, check_scope(scope)
        self._reset_momentum, self._tie_rule = bool(reset_momentum), tie_rule
        if any(is_wrapped(layer) for layer in model.modules()):
            raise ValueError(
                "Sparsifier: model must not have a sparsifier already; remove() that one first, or for a copy of its "
                "model call acdc_kernels.nn.unwrap(copy)"
            )

        weights = find_weights(model, [p for group in optimizer.param_groups for p in group["params"]])
        chosen, self._uncovered = competing(weights, scope, parsed, exempt)
        if not chosen:
            found = "; ".join(f"{name} ({reason})" for name, reason in self._uncovered.items())
            raise ValueError(f"Sparsifier: model must have a weight to prune, got {found or 'no Linear or Conv layer'}")
        parameters = dict(model.named_parameters())
        self._weights: dict[str, Parameter] = {weight.name: parameters[weight.name] for weight in chosen}
        self._keep = budget(scope, [p.numel() for p in self._weights.values()], self.sparsity)
        _check_one("device", {name: p.device for name, p in self._weights.items()})
        _check_one("dtype", {name: p.dtype for name, p in self._weights.items()})
        if masked := [name for name, p in self._weights.items() if p in optimizer.masks]:
            raise ValueError(
                f"Sparsifier: optimizer.masks must not hold weights that compete, got {', '.join(masked)}; exempt them "
                "or delete their masks (when resuming, load the optimizer's state after making the sparsifier)"
            )

        self._removed = False
        self._snapshot = Snapshot(dense_snapshot)
        self._step = 0
        self._layers = list({id(layer): layer for weight in chosen for _, layer in weight.layers}.values())
        try:
            for layer in self._layers:
                wrap(layer)
            self._begin(schedule.at(0))
        except BaseException:
            self._unwrap()
            raise

    @property
    def phase(self) -> Phase:
        """The phase that the next ``optimizer.step()`` belongs to; after the last one, the schedule's last phase."""
        return self._phase

    @property
    def step_count(self) -> int:
        """How many times ``step()`` has been called: the number of optimizer updates so far."""
        return self._step

    @property
    def masks(self) -> Mapping[str, Tensor]:
        """Parameter name -> mask bits (see ``unpack_mask``): every competing weight's in a compressed phase, else none.

        Read-only, and of now: ask again when another phase has begun.
        """
        masks = self.optimizer.masks
        return MappingProxyType({name: masks[p] for name, p in self._weights.items() if p in masks})

    def achieved_sparsity(self) -> float:
        """The share of competing weights that are exactly zero now, counted in the weights themselves."""
        nonzero = torch.stack([torch.count_nonzero(p.detach()) for p in self._weights.values()]).sum()
        return 1 - int(nonzero) / sum(p.numel() for p in self._weights.values())

    def uncovered(self) -> dict[str, str]:
        """Weights of Linear and Conv layers that don't compete: parameter name -> reason (exempt, frozen, ...)."""
        return dict(self._uncovered)

    def step(self) -> None:
        """Counts one optimizer update and begins the next phase if it is due.

        Call it once after every ``optimizer.step()``, not after every micro-batch. An update that a GradScaler skips
        counts as well, as it does for learning-rate schedulers.

        Raises ValueError, naming the weights, if a compressed phase is due and a competing weight holds NaN; nothing
        was changed then. Raises RuntimeError after ``remove()``.
        """
        self._check_present("step")
        if self._step + 1 > self._phase.last_step:
            phase = self.schedule.at(self._step + 1)
            if phase.index != self._phase.index:
                self._begin(phase)
        self._step += 1

    def dense_twin(self) -> nn.Module:
        """A plain copy of the model with the parameters and buffers of the end of the most recent dense phase.

        In a dense phase: of now. Where training starts compressed: of before the first pruning. The copy is the
        caller's; its layers have their own classes again, and its device, dtype and training mode are the model's.

        Raises RuntimeError after ``remove()``.
        """
        self._check_present("dense_twin")
        twin = unwrap(copy.deepcopy(self.model))
        if self._phase.kind == "compressed":
            saved = self._snapshot.load()
            for name, tensor in named_tensors(twin).items():
                tensor.copy_(saved[name])
        return twin

    def remove(self) -> None:
        """Takes the sparsifier off: the layers get their own classes back, and its masks leave the optimizer.

        Weights keep their values: a model in a compressed phase is sparse until it is trained further. So do masks that
        are not the sparsifier's. Removing twice does nothing more.
        """
        if not self._removed:
            self._removed = True
            self._unwrap()
            self._unmask()
            self._snapshot.discard()

    def state_dict(self) -> dict[str, Any]:
        """Everything that resuming needs beside the model's and the optimizer's state, as tensors and plain data.

        ``torch.load(..., weights_only=True)`` reads it. In a compressed phase it holds the dense twin's tensors, read
        from disk only when they are used. Raises RuntimeError after ``remove()``.
        """
        self._check_present("state_dict")
        return {
            "version": _STATE_VERSION,
            "step": self._step,
            "schedule": self.schedule.to_dict(),
            "settings": self._settings(),
            "parameters": _shapes(self._weights),
            "masks": dict(self.masks),
            "dense_twin": self._snapshot.load() if self._phase.kind == "compressed" else {},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resumes at the step, with the masks and the dense twin, that ``state`` holds: nothing is thresholded anew.

        Schedule, settings and competing weights must be those of the run that saved it; ``kernels``, ``storage`` and
        ``dense_snapshot`` may differ. The model's and the optimizer's state can be loaded before or after.

        Raises ValueError, naming every difference, before anything is changed; RuntimeError after ``remove()``.
        """
        self._check_present("load_state_dict")
        phase = self._check_state(state)
        if phase.kind == "compressed":
            self._snapshot.save(state["dense_twin"])
            self.optimizer.masks.update({p: state["masks"][name].to(p.device) for name, p in self._weights.items()})
        else:
            self._unmask()
        self._step, self._phase = state["step"], phase

    def __repr__(self) -> str:
        phase, n = self._phase, sum(p.numel() for p in self._weights.values())
        return (
            f"Sparsifier(step {self._step} of {self.schedule.total_steps}, {phase.kind} phase {phase.index} "
            f"(steps {phase.first_step} to {phase.last_step}), {n:,} weights of {len(self._weights)} parameters, "
            f"sparsity={self.sparsity}, pattern={self._pattern.text!r}, scope={self._scope!r})"
        )

    def _begin(self, phase: Phase) -> None:
        if phase.kind == "compressed":
            bits = self._threshold(phase)
            self._snapshot.save(named_tensors(self.model))
            self.optimizer.masks.update(dict(zip(self._weights.values(), bits, strict=True)))
        elif phase.index > 0:
            self._unmask()
            if self._reset_momentum:
                self.optimizer.reset_momentum()
        self._phase = phase

    def _threshold(self, phase: Phase) -> list[Tensor]:
        bits, nan_counts = topk_mask_with_nan_count(list(self._weights.values()), self._keep, self._pattern.text)
        bad = [
            f"{name} ({count:,} of {p.numel():,})"
            for (name, p), count in zip(self._weights.items(), nan_counts.tolist(), strict=True)
            if count
        ]
        if bad:
            raise ValueError(
                f"Sparsifier: weights must not be NaN where compressed phase {phase.index} begins (step "
                f"{phase.first_step}), got NaN in {', '.join(bad)}"
            )
        return bits

    def _unwrap(self) -> None:
        for layer in self._layers:
            unwrap(layer)

    def _unmask(self) -> None:
        for p in self._weights.values():
            self.optimizer.masks.pop(p, None)

    def _settings(self) -> dict[str, Any]:
        return {
            "sparsity": self.sparsity,
            "pattern": self._pattern.text,
            "scope": self._scope,
            "reset_momentum": self._reset_momentum,
            "tie_rule": self._tie_rule,
        }

    def _check_present(self, method: str) -> None:
        if self._removed:
            raise RuntimeError(f"Sparsifier.{method}: this sparsifier was removed; make a new one")

    def _check_state(self, state: Mapping[str, Any]) -> Phase:
        """The phase of ``state``, or a ValueError with everything in it that doesn't fit."""
        where = "Sparsifier.load_state_dict"
        version = state.get("version") if isinstance(state, Mapping) else None
        if version != _STATE_VERSION:
            raise ValueError(f"{where}: state must be of version {_STATE_VERSION}, got {version!r}")
        parts = ("schedule", "settings", "parameters", "masks", "dense_twin")
        if missing := [part for part in parts if not isinstance(state.get(part), Mapping)]:
            raise ValueError(f"{where}: state must hold the mappings {', '.join(parts)}; it lacks {', '.join(missing)}")
        differences = [
            *_differences("schedule", self.schedule.to_dict(), state["schedule"]),
            *_differences("settings", self._settings(), state["settings"]),
            *_differences("parameters", _shapes(self._weights), state["parameters"]),
        ]
        step = state.get("step")
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            differences.append(f"step must be an int of at least 0, got {step!r}")
        if differences:
            raise ValueError(f"{where}: state must be of this run, but {'; '.join(differences)}")
        phase = self.schedule.at(step)
        compressed = phase.kind == "compressed"
        twin = named_tensors(self.model) if compressed else {}
        differences = [
            *_differences("masks", dict.fromkeys(self._weights if compressed else ()), dict.fromkeys(state["masks"])),
            *_differences("dense_twin", _shapes(twin), _shapes(state["dense_twin"])),
        ]
        if differences:
            raise ValueError(f"{where}: state must be of this run in {phase}, but {'; '.join(differences)}")
        self._check_masks(where, state["masks"])
        return phase

    def _check_masks(self, where: str, masks: Mapping[str, Tensor]) -> None:
        kept = []
        for name, bits in masks.items():
            check_bits(f"{where}: masks[{name!r}]", bits, self._weights[name].numel())
            kept.append(int(unpack_mask(bits, self._weights[name].shape).sum()))
        if kept and (sum(kept) if isinstance(self._keep, int) else kept) != self._keep:
            raise ValueError(f"{where}: masks must keep {self._keep} weights, got {kept}")


def _check_types(model: object, optimizer: object, schedule: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"Sparsifier: model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(getattr(optimizer, "masks", None), MutableMapping):
        raise TypeError(
            f"Sparsifier: optimizer must be one with masks, got {type(optimizer).__name__}; "
            "use acdc_kernels.MaskedSGD, a drop-in for torch.optim.SGD"
        )
    if not isinstance(schedule, Schedule):
        raise TypeError(
            f"Sparsifier: schedule must be made by acdc_kernels.schedules.acdc or dense, got {type(schedule).__name__}"
        )


def _check_choice(name: str, value: object, choices: tuple[str, ...], why: str) -> None:
    if value not in choices:
        raise ValueError(f"Sparsifier: {name} must be {' or '.join(map(repr, choices))}, got {value!r}: {why}")


def _check_one(what: str, values: dict[str, object]) -> None:
    first = {value: name for name, value in reversed(values.items())}
    if len(first) > 1:
        found = ", ".join(f"{value} ({name})" for value, name in first.items())
        raise ValueError(f"Sparsifier: competing weights must share one {what}, got {found}; exempt the others")


def _shapes(tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(t.shape) if isinstance(t, Tensor) else t for name, t in tensors.items()}


def _differences(what: str, here: Mapping[str, Any], saved: Mapping[str, Any]) -> list[str]:
    """A line for each key whose value isn't the same on both sides."""
    lines = [f"{what} has no {key} here" for key in saved if key not in here]
    for key, value in here.items():
        if key not in saved:
            lines.append(f"{what} has no {key} in the state")
        elif value != saved[key]:
            lines.append(f"{what}'s {key} is {value!r} here and {saved[key]!r} in the state")
    return lines
