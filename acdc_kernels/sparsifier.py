"""The conductor: schedule x pattern x scope -> masks -> layers and optimizer."""

from __future__ import annotations

import copy
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.utils.hooks import RemovableHandle

from . import nn as layers
from ._sparsifier_checks import (
    check_bare,
    check_choice,
    check_group,
    check_held,
    check_one,
    check_shards,
    check_tie_rule,
    check_types,
    check_unmasked,
)
from ._sparsifier_products import KERNELS, Products
from ._sparsifier_state import VERSION, check_state, kinds
from .nn import Snapshot, find_weights, named_tensors, unwrap, wrap
from .ops import topk_mask_with_nan_count
from .ops.distributed import disagreeing, is_sharded, local_part, shard_group_of
from .ops.topk_mask.paper_code import paper_code_masks
from .plan import PlanRow
from .policy.patterns import parse_pattern
from .policy.schedules import Phase, Schedule
from .policy.scopes import Exempt, budget, check_scope, competing

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Sparsifier"]

PhaseHook = Callable[["Sparsifier", Phase, Phase], None]


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

    The weights of Linear and convolution layers compete for the budget if they require a gradient and belong to the
    optimizer (``acdc_kernels.nn.COVERAGE`` has every module type); biases, embeddings and normalisation never do. Of n
    competing weights exactly ``n - round(sparsity * n)`` are kept, in whole blocks for block patterns; ties go to the
    lowest (parameter order, logical row-major index). A parameter that layers share counts once. The class of each
    layer that could take a sparse product becomes a subclass of its own; to its user the model stays what it was.

    Args:
        model: any module; one in DistributedDataParallel, or sharded by FSDP2, on every process alike.
        optimizer: a ``MaskedSGD`` or ``MaskedAdamW`` over the model's parameters.
        schedule: from ``acdc_kernels.schedules``; its steps are optimizer updates, counted from 0.
        sparsity: the share of competing weights that are zero in a compressed phase, in [0, 1). None: 0.9, or what the
            pattern fixes.
        pattern: which shapes of zeros are allowed: ``"unstructured"``, zeros anywhere; ``"n:m"`` (as ``"2:4"``), n of m
            consecutive weights along the input axis; ``"2:4-transposable"``, along both axes; ``"block:RxC"``, whole
            blocks of R outputs by C inputs. See ``topk_mask``. Layers that can't take it are in ``uncovered()``.
        scope: ``"global"``: all weights compete for one budget; ``"layer"``: each parameter has the same sparsity, and
            the model's first and last layer are exempt.
        exempt: what never competes: a name or glob of layers or parameters (``"head"``, ``"blocks.*.proj"``), a
            predicate ``(layer name, layer) -> bool``, or an iterable of these.
        reset_momentum: whether a dense phase that follows a compressed one starts with zero momentum.
        kernels: what computes the products of linear layers (see below) in compressed phases: ``"auto"``: sparse
            kernels where they are measured to be faster; ``"model"``: where a cost model expects them to be, without
            timing; ``"sparse"``: sparse kernels wherever a layer can have them; ``"fp16"``: as auto, with forwards in
            half precision to choose from, in which inputs and weights beyond 65504 are infinite; ``"dense"``: never.
        storage: ``"dense"``: parameters stay whole.
        tie_rule: ``"lowest_index"``; or ``"reference"``, the masks of the paper's published code, which keeps only what
            is strictly greater than the k-th largest |w| + 1e-4 (unstructured only; copies the weights).
        process_group: the processes that hold replicas of the model: at each flip they check that their masks agree,
            and take rank 0's plan. None: no check. Not for sharded models, whose processes agree by construction.
        dense_snapshot: where the dense twin waits during a compressed phase: ``"disk"`` (a temporary file),
            ``"memory"`` (a copy of the model), or the path of a file to write and leave there. A schedule that starts
            compressed writes it at once.

    At the start of each compressed phase the layers' products are planned, for each of forward, input gradient and
    weight gradient apart: dense and sparse kernels are timed on the shapes of most calls in the last eight dense steps
    and in the first step, within 1% of the phase, and a sparse one is used only if it is clearly faster; ``plan()``
    tells which, and why. Times are remembered in ``$ACDC_PLAN_CACHE`` (a folder; "0": not at all; by default
    ``~/.cache/acdc-kernels``), where there is time to read and to write the file. Sparse kernels are for
    ``nn.Linear`` in float32 on CPUs, with patterns ``"unstructured"`` and ``"block:4x1"``. They give the gradients of
    masked weights as +0.0, where dense products compute them; a norm of all gradients notices. The plan is part of
    the state: inside a phase it is restored and never timed again; between phases, bits depend on what is measured,
    unless ``kernels`` is ``"model"``, ``"sparse"`` or ``"dense"`` or torch's deterministic algorithms are on, which let
    the cost model decide. In eager mode and compiled models alike; double backward needs ``"dense"``. Don't write to
    masked weights through ``.data`` in a compressed phase: nothing can notice that.

    The constructor applies the phase of step 0. To resume, make model, optimizer and sparsifier as at the start, then
    load the state of each, in any order.

    Attributes:
        model, optimizer, schedule, sparsity: as given; ``sparsity`` as a number.

    Raises:
        TypeError: ``optimizer`` has no masks; ``model``, ``schedule`` or ``exempt`` is of another type.
        ValueError: a setting is out of range or not available; an exempt name matches no layer; nothing is prunable;
            competing weights are on several devices, of several dtypes, or masked already; the model has a sparsifier
            already; no layer can have the ``kernels`` that were named; a weight that phase 0 would threshold holds NaN.
            Nothing was changed then.
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
        process_group: ProcessGroup | None = None,
        dense_snapshot: str | os.PathLike[str] = "disk",
    ) -> None:
        check_types(model, optimizer, schedule)
        check_choice("kernels", kernels, KERNELS, "there are no others")
        check_choice("storage", storage, ("dense",), "compact storage is not in this version")
        check_choice("tie_rule", tie_rule, ("lowest_index", "reference"), "there are no others")
        parsed = parse_pattern(pattern)
        check_tie_rule(tie_rule, parsed)
        check_group(process_group)
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.sparsity = parsed.resolve_sparsity(sparsity)
        self._pattern, self._scope = parsed, check_scope(scope)
        self._reset_momentum, self._tie_rule, self._group = bool(reset_momentum), tie_rule, process_group
        check_bare(model)

        weights = find_weights(model, [p for group in optimizer.param_groups for p in group["params"]])
        chosen, self._uncovered = competing(weights, scope, parsed, exempt)
        if not chosen:
            found = "; ".join(f"{name} ({reason})" for name, reason in self._uncovered.items())
            raise ValueError(f"Sparsifier: model must have a weight to prune, got {found or 'no Linear or Conv layer'}")
        parameters = dict(model.named_parameters())
        self._weights: dict[str, Parameter] = {weight.name: parameters[weight.name] for weight in chosen}
        self._keep = budget(scope, [p.numel() for p in self._weights.values()], self.sparsity, parsed)
        check_one("device", {name: p.device for name, p in self._weights.items()})
        check_one("dtype", {name: p.dtype for name, p in self._weights.items()})
        check_unmasked(self._weights, optimizer)

        if self.sharded:  # what can't be done with shards is refused now, not at the first flip
            check_shards(process_group, tie_rule)
            topk_mask_with_nan_count(list(self._weights.values()), self._keep, parsed.text)
        self._removed = False
        self._hooks: OrderedDict[int, PhaseHook] = OrderedDict()  # a handle refers to it weakly
        self._snapshot = Snapshot(dense_snapshot)
        self._step = 0
        replaceable = [weight for weight in chosen if weight.treatment == "sparse"]
        named: dict[int, tuple[str, nn.Module, str]] = {}
        for weight in replaceable:
            for name, layer in weight.layers:
                named.setdefault(id(layer), (name, layer, weight.name))
        self._layers = [layer for _, layer, _ in named.values()]
        try:
            for layer in self._layers:
                wrap(layer)
            places = {name: (layer, self._weights[weight]) for name, layer, weight in named.values()}
            self._products = Products(places, optimizer.masks, schedule, parsed.text, kernels, process_group)
            self._begin(schedule.at(0))
            self._products.begin(self._phase, 0)
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
        """The share of competing weights that are exactly zero now, counted in the weights themselves.

        Of a sharded model: over all processes, which must all call it.
        """
        self._check_weights("achieved_sparsity")
        weights = list(self._weights.values())
        nonzero = torch.stack([torch.count_nonzero(local_part(p.detach())) for p in weights]).sum()
        if self.sharded:
            torch.distributed.all_reduce(nonzero, group=shard_group_of(weights))
        return 1 - int(nonzero) / sum(p.numel() for p in weights)

    @property
    def sharded(self) -> bool:
        """Whether the competing weights are DTensors, of which this process holds shards."""
        return any(is_sharded(p) for p in self._weights.values())

    def uncovered(self) -> dict[str, str]:
        """Weights that don't compete: parameter name -> reason (exempt, frozen, an Embedding's, ...).

        Parameters of fewer than two dimensions and normalisation are not listed.
        """
        return dict(self._uncovered)

    def register_phase_hook(self, hook: PhaseHook) -> RemovableHandle:
        """Has ``hook(sparsifier, old_phase, new_phase)`` called whenever ``step()`` has begun another phase.

        Weights, masks and momentum are those of the new phase by then. Hooks run in the order they were registered;
        loading a state calls none. Returns a handle whose ``remove()`` takes the hook off again.
        """
        handle = RemovableHandle(self._hooks)
        self._hooks[handle.id] = hook
        return handle

    def step(self) -> None:
        """Counts one optimizer update and begins the next phase if it is due.

        Call it once after every ``optimizer.step()``, not after every micro-batch. An update that a GradScaler skips
        counts as well, as it does for learning-rate schedulers.

        Raises ValueError, naming the weights, if a compressed phase is due and a competing weight holds NaN or the
        processes of ``process_group`` would mask it differently; nothing was changed then. Raises RuntimeError after
        ``remove()``.
        """
        self._check_present("step")
        before = self._phase
        if self._step + 1 > before.last_step:
            phase = self.schedule.at(self._step + 1)
            if phase.index != before.index:
                self._begin(phase)
        self._step += 1
        if self._phase is before:
            self._products.step(before, self._step)
        else:
            self._products.begin(self._phase, self._step)
            for hook in tuple(self._hooks.values()):
                hook(self, before, self._phase)

    def plan(self) -> list[PlanRow]:
        """Which kernel computes each product of each layer in the latest compressed phase, why, and the times taken.

        Three rows a layer: forward, input gradient, weight gradient. Empty before the first compressed phase, and in
        one with which training begins until its first update is done. A layer whose latest training forward couldn't go
        by the plan (autocast, a mask changed in place) is dense there, with that reason.
        """
        return self._products.rows

    @property
    def planning_seconds(self) -> float:
        """Spent on planning by this object: at most 1% of compressed phases. Building indexes belongs to the flips.

        Not part of the state, which two runs of the same bits have in common.
        """
        return self._products.seconds

    @property
    def compiling_seconds(self) -> float:
        """Spent by this object on compiling the kernels that a plan times on a GPU: beside ``planning_seconds``.

        At most about a minute a plan; compiled kernels are kept by Triton, on disk too.
        """
        return self._products.compiling

    def dense_twin(self) -> nn.Module:
        """A plain copy of the model with the parameters and buffers of the end of the most recent dense phase.

        In a dense phase: of now. Where training starts compressed: of before the first pruning. The copy is the
        caller's; its layers have their own classes again, and its device, dtype and training mode are the model's. Of a
        model in DistributedDataParallel it is a copy of the module inside.

        Raises RuntimeError after ``remove()``, and for a model sharded by FSDP2, which can't be copied.
        """
        self._check_present("dense_twin")
        if self.sharded:
            raise RuntimeError(
                "Sparsifier.dense_twin: the model must not be sharded, got DTensors, which can't be copied yet; save a "
                "distributed checkpoint at the end of the last dense phase (see register_phase_hook)"
            )
        replicated = isinstance(self.model, nn.parallel.DistributedDataParallel)
        twin = unwrap(copy.deepcopy(self.model.module if replicated else self.model))
        if self._phase.kind == "compressed":
            saved, prefix = self._snapshot.load(), "module." if replicated else ""
            for name, tensor in named_tensors(twin).items():
                if prefix + name in saved:  # a buffer may have come into being since
                    tensor.copy_(saved[prefix + name])
        return twin

    def recalibrate(self, loader: Iterable[Any], model: nn.Module | None = None) -> int:
        """Measures the running statistics of batch normalisation anew over ``loader``, and returns how many there are.

        A flip changes the weights at once, and the running statistics only as training goes on; the pair's accuracy
        gains when they are measured with the weights that are kept. Each batch (an input, or a tuple that begins with
        one) counts the same, as in ``torch.optim.swa_utils.update_bn``. model: another than the sparsifier's own, for
        example the dense twin.

        Raises ValueError for an empty loader; nothing was changed then.
        """
        return layers.recalibrate(self.model if model is None else model, loader)

    def remove(self) -> None:
        """Takes the sparsifier off: the layers get their own classes back, and its masks leave the optimizer.

        Weights keep their values: a model in a compressed phase is sparse until it is trained further. So do masks that
        are not the sparsifier's. Removing twice does nothing more.
        """
        if not self._removed:
            self._removed = True
            self._products.end()
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
            "version": VERSION,
            "step": self._step,
            "schedule": self.schedule.to_dict(),
            "settings": self._settings(),
            "parameters": kinds(self._local_weights()),
            "masks": dict(self.masks),
            "dense_twin": self._saved_twin() if self._phase.kind == "compressed" else {},
            "plan": self._products.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resumes at the step, with the masks, plan and dense twin, that ``state`` holds: nothing is decided anew.

        Schedule, settings and competing weights must be those of the run that saved it; ``kernels``, ``storage`` and
        ``dense_snapshot`` may differ (with other ``kernels`` the plan is made anew). The model's and the optimizer's
        state can be loaded before or after.

        Raises ValueError, naming every difference, before anything is changed; RuntimeError after ``remove()``.
        """
        self._check_present("load_state_dict")
        self._check_weights("load_state_dict")
        phase = self._check_state("Sparsifier.load_state_dict", state)
        self._products.end()
        if phase.kind == "compressed":
            self._snapshot.save(state["dense_twin"])
            self.optimizer.masks.update({p: state["masks"][name].to(p.device) for name, p in self._weights.items()})
        else:
            self._unmask()
        self._step, self._phase = state["step"], phase
        self._products.load_state_dict(state["plan"], phase, self._step)

    def check_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises what ``load_state_dict(state)`` would, and changes nothing."""
        self._check_present("check_state_dict")
        self._check_weights("check_state_dict")
        self._check_state("Sparsifier.check_state_dict", state)

    def __repr__(self) -> str:
        phase, n = self._phase, sum(p.numel() for p in self._weights.values())
        return (
            f"Sparsifier(step {self._step} of {self.schedule.total_steps}, {phase.kind} phase {phase.index} "
            f"(steps {phase.first_step} to {phase.last_step}), {n:,} weights of {len(self._weights)} parameters, "
            f"sparsity={self.sparsity}, pattern={self._pattern.text!r}, scope={self._scope!r})"
        )

    def _check_weights(self, method: str) -> None:
        check_held(method, self._weights, self.model, self.optimizer)

    def _begin(self, phase: Phase) -> None:
        if phase.index > 0:
            self._check_weights("step")
        if phase.kind == "compressed":
            bits = self._threshold(phase)
            self._snapshot.save(named_tensors(self.model))
            self.optimizer.masks.update(dict(zip(self._weights.values(), bits, strict=True)))
        elif phase.index > 0:
            self._products.end()
            self._unmask()
            if self._reset_momentum:
                self.optimizer.reset_momentum()
        self._phase = phase

    def _threshold(self, phase: Phase) -> list[Tensor]:
        weights = list(self._weights.values())
        bits, nan_counts = topk_mask_with_nan_count(weights, self._keep, self._pattern.text)
        if self._group is not None:  # so that all processes raise, and none waits for another
            torch.distributed.all_reduce(nan_counts, torch.distributed.ReduceOp.MAX, self._group)
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
        if self._tie_rule == "reference":
            bits = paper_code_masks(weights, self.sparsity, self._scope)
        if self._group is not None and (unlike := disagreeing(bits, self._group)):
            names = list(self._weights)
            raise ValueError(
                f"Sparsifier: weights must be the same on every process where compressed phase {phase.index} begins "
                f"(step {phase.first_step}), got different masks for {', '.join(names[i] for i in unlike)}"
            )
        return bits

    def _saved_twin(self) -> dict[str, Tensor]:
        """What a state keeps of the dense twin: the buffers that modules make for themselves are left out."""
        kept = named_tensors(self.model, persistent=True)
        return {name: tensor for name, tensor in self._snapshot.load().items() if name in kept}

    def _unwrap(self) -> None:
        for layer in self._layers:
            unwrap(layer)

    def _unmask(self) -> None:
        for p in self._weights.values():
            self.optimizer.masks.pop(p, None)

    def _local_weights(self) -> dict[str, Tensor]:
        return {name: local_part(p) for name, p in self._weights.items()}

    def _settings(self) -> dict[str, Any]:
        return {
            "sparsity": self.sparsity,
            "pattern": self._pattern.text,
            "scope": self._scope,
            "reset_momentum": self._reset_momentum,
            "tie_rule": self._tie_rule,
        }

    def _check_state(self, where: str, state: Mapping[str, Any]) -> Phase:
        keep = self._keep
        if keep is None:
            keep = [self._pattern.kept(p.numel(), self.sparsity) for p in self._weights.values()]
        if self.sharded or self._tie_rule == "reference":
            keep = None  # not known here
        phase = check_state(where, state, self.schedule, self._settings(), self._local_weights(), self.model, keep)
        if lines := self._products.differences(state["plan"], phase):
            raise ValueError(f"{where}: state must be of this run, but {'; '.join(lines)}")
        return phase

    def _check_present(self, method: str) -> None:
        if self._removed:
            raise RuntimeError(f"Sparsifier.{method}: this sparsifier was removed; make a new one")
