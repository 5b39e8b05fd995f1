"""What products share that compute with the kept weights of a parameter: what they run by, and whether they may.

The parameter stays whole, and somebody may write to it, to its mask, or hand in other inputs than the plan was made
for: such a product then computes as the layer itself does.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter

from ..formats.topology import Topology
from ..ops.values.contract import gather_values_op
from .product import DENSE, FORWARD, INPUT_GRADIENT, MASK_CHANGED, WEIGHT_GRADIENT, Product, config_of, version_of

__all__ = ["Run", "RunningProduct"]

WRITTEN = "the weight was written to since the last update, perhaps outside of its mask"


@dataclass(frozen=True)
class Run:
    """What a forward and its backward go by, whatever happens to the product in between.

    The configs of sparse kernels are empty where there are none to choose from.
    """

    topology: Topology
    forward: str
    sparse_input: bool
    sparse_weight: bool
    input_config: str = ""
    weight_config: str = ""

    def __post_init__(self) -> None:
        t = self.topology  # once, not at every call
        object.__setattr__(self, "where", (list(t.index), list(t.meta), t.format))
        object.__setattr__(self, "sparse_forward", self.forward != DENSE)
        object.__setattr__(self, "forward_config", config_of(self.forward))

    @classmethod
    def of(cls, topology: Topology, chosen: Mapping[str, str]) -> Run:
        of_input, of_weight = chosen[INPUT_GRADIENT], chosen[WEIGHT_GRADIENT]
        sparse = of_input != DENSE, of_weight != DENSE
        return cls(topology, chosen[FORWARD], *sparse, config_of(of_input), config_of(of_weight))


class RunningProduct(Product):
    """A product that gathers kept weights; a subclass brings the arithmetic and the shapes of its layer.

    run: what it computes by; None: dense. generation: another one for each start and stop, by which an opaque op knows
    the run of its forward. gathered: the version of the weight, and its values, that the latest forward of an opaque
    op has kept for its backward. dtypes: of the weights that it takes.
    """

    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float32,)

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
        if self.weight.is_cuda:  # a flip may wait for the device, a step may not
            self._look(version_of(self.weight))

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
            return "the weight was written to outside of its mask" if self.weight.is_cpu else WRITTEN
        return run

    @classmethod
    def by_handle(cls, handle: Tensor, weight: Tensor) -> RunningProduct | None:
        """The product with that handle, if it exists still and this is its weight."""
        product = cls.of(handle)
        return product if isinstance(product, cls) and product.weight.data_ptr() == weight.data_ptr() else None

    def _gathered(self, weight: Tensor) -> Tensor:
        """The kept weights, in any order."""
        return gather_values_op(weight, *self.run.where)

    def _keeps_to_mask(self, version: tuple[int, int]) -> bool:
        """Whether the weight, which somebody has written to, is zero outside of the mask still.

        Of a weight on a GPU, where looking would wait for the device, ``vouch`` and ``weight_is_masked`` alone tell.
        """
        if version == self._outside:
            return False
        if self.vouch is not None and self.vouch():
            self._within = version
            return True
        return self.weight.is_cpu and self._look(version)

    def _look(self, version: tuple[int, int]) -> bool:
        weight = self.weight.detach()
        if weight.dtype not in self.dtypes:
            return False
        with torch.no_grad():
            within = bool(torch.count_nonzero(weight) == torch.count_nonzero(self._gathered(weight)))
        if within:
            self._within = version
        else:
            self._outside = version
        return within
