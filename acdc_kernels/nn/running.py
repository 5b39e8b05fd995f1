"""What products share that compute with the kept weights of a parameter: what they run by, and whether they may.

The parameter stays whole, and somebody may write to it, to its mask, or hand in other inputs than the plan was made
for: such a product then computes as the layer itself does.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter

from ..formats.topology import Topology
from ..ops.values.contract import gather_values_op
from .product import DENSE, FORWARD, INPUT_GRADIENT, MASK_CHANGED, WEIGHT_GRADIENT, Product, version_of

__all__ = ["Run", "RunningProduct"]


@dataclass(frozen=True)
class Run:
    """What a forward and its backward go by, whatever happens to the product in between."""

    topology: Topology
    forward: str
    sparse_input: bool
    sparse_weight: bool

    def __post_init__(self) -> None:
        t = self.topology  # once, not at every call
        object.__setattr__(self, "where", (list(t.index), list(t.meta), t.format))
        object.__setattr__(self, "sparse_forward", self.forward != DENSE)

    @classmethod
    def of(cls, topology: Topology, chosen: Mapping[str, str]) -> Run:
        return cls(topology, chosen[FORWARD], chosen[INPUT_GRADIENT] != DENSE, chosen[WEIGHT_GRADIENT] != DENSE)


class RunningProduct(Product):
    """A product that gathers kept weights; a subclass brings the arithmetic and the shapes of its layer.

    run: what it computes by; None: dense. generation: another one for each start and stop, by which an opaque op knows
    the run of its forward. gathered: the version of the weight, and its values, that the latest forward of an opaque
    op has kept for its backward.
    """

    def __init__(self, weight: Parameter) -> None:
        super().__init__(weight)
        self.run: Run | None = None
        self.generation = 0
        self.gathered: tuple[tuple[int, int], Tensor] | None = None
        self._samples_range = (0, 0)
        self._favours: Callable[[int], bool] | None = None
        self._favoured: dict[int, bool] = {}
        self._within: tuple[int, int] | None = None  # the version of the weight that is known to keep to its mask
        self._outside: tuple[int, int] | None = None  # the one that is known not to

    @abstractmethod
    def note_input(self, x: Tensor, input_gradient: bool) -> None:
        """Called in each training forward while observing."""

    @abstractmethod
    def _samples(self, x: Tensor, bias: Tensor | None) -> int | None:
        """How many samples x has; None if x or the bias doesn't fit: of that torch tells in its own words."""

    def start(
        self, topology: Topology, chosen: Mapping[str, str], samples: int, favours: Callable[[int], bool] | None
    ) -> None:
        self.observing, self.aside = False, None
        self.run = Run.of(topology, chosen)
        self._samples_range = ((samples + 1) // 2, 2 * samples) if samples else (1, 2**63)
        self._favours, self._favoured = favours, {}
        self.generation += 1
        self._within = self._outside = None

    def stop(self) -> None:
        self.run = self._favours = self.gathered = self._within = self._outside = None
        self.generation += 1

    @property
    def topology(self) -> Topology | None:
        return None if self.run is None else self.run.topology

    def mask_changed(self) -> bool:
        return self.run is not None and self.run.topology.outlived_mask()

    def weight_is_masked(self) -> None:
        self._within, self._outside = version_of(self.weight), None

    def run_for(self, x: Tensor, bias: Tensor | None) -> Run | str | None:
        """What to compute x by, which has nothing that ``obstacle`` names; None or a reason: the dense product."""
        run = self.run
        if run is None:
            return None
        if run.topology.outlived_mask():
            return MASK_CHANGED
        samples = self._samples(x, bias)
        if samples is None:
            return None
        low, high = self._samples_range
        if not low <= samples <= high:
            if samples not in self._favoured:
                self._favoured[samples] = samples > 0 and self._favours is not None and self._favours(samples)
            if not self._favoured[samples]:
                return None
        version = version_of(self.weight)
        if version != self._within and not self._keeps_to_mask(version):
            return "the weight was written to outside of its mask"
        return run

    def _keeps_to_mask(self, version: tuple[int, int]) -> bool:
        """Whether the weight, which somebody has written to, is zero outside of the mask still."""
        weight, run = self.weight.detach(), self.run
        if version == self._outside or weight.dtype != torch.float32 or not weight.is_cpu:
            return False
        with torch.no_grad():
            kept = torch.count_nonzero(gather_values_op(weight, *run.where))
            within = bool(torch.count_nonzero(weight) == kept)
        if within:
            self._within = version
        else:
            self._outside = version
        return within
