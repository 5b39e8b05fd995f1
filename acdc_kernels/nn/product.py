"""What all products share that can stand in a wrapped layer's place ``product``, and what the plan asks of them.

A product *observes* (computes as the layer itself does, and notes what the plan must know), or it *runs* (in a
compressed phase, by the kernels that the plan has chosen). In between the place is empty: the layer's own forward runs.
"""

from __future__ import annotations

import itertools
import weakref
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import Parameter

__all__ = [
    "DENSE",
    "FORWARD",
    "FP16",
    "INPUT_GRADIENT",
    "KINDS",
    "MASK_CHANGED",
    "PRODUCTS",
    "SEMI",
    "SPARSE",
    "WEIGHT_GRADIENT",
    "Calls",
    "Observation",
    "Product",
    "Trial",
    "Work",
    "config_of",
    "is_kernel",
    "named",
]

FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT = PRODUCTS = ("forward", "input gradient", "weight gradient")
MASK_CHANGED = "its mask was changed in place in this phase"
KINDS = DENSE, SPARSE, FP16, SEMI = "dense", "sparse", "sparse fp16", "sparse 2:4"
# and "sparse <config>": the sparse kernel in one of the ways that it can go about it, not the default for the shape


def named(config: str) -> str:
    """The kernel that goes about it by ``config``; empty: by its default for the shape."""
    return f"{SPARSE} {config}" if config else SPARSE


def config_of(kernel: str) -> str:
    """The ``config`` in a kernel's name; empty: none."""
    return kernel.removeprefix(SPARSE).removeprefix(" ") if kernel != DENSE else ""


def is_kernel(kernel: str) -> bool:
    """Whether this can be the name of a kernel; which configs there are, its product knows."""
    return kernel == DENSE or (kernel.startswith(SPARSE) and kernel == named(config_of(kernel)))


@dataclass(frozen=True)
class Observation:
    """What training forwards were seen to do.

    samples: of one call, the most frequent number. input_gradient: whether the input needs one. obstacle: why sparse
    kernels can't take the inputs of most calls; empty: they can. dtype: what most of those calls compute in, as torch
    names it ("bfloat16"); empty: the weight's own.
    """

    samples: int
    input_gradient: bool
    obstacle: str = ""
    dtype: str = ""


class Calls:
    """Counts what training forwards were seen to do: those of the first step, and those of the latest observation.

    The first step weighs in because the latest observation may be one step, of the short last batch of an epoch.
    """

    def __init__(self) -> None:
        self.first: Counter[tuple[int, str, str]] = Counter()  # (samples, obstacle, dtype)
        self.latest: Counter[tuple[int, str, str]] = Counter()
        self.input_gradient = False

    def note(self, samples: int, input_gradient: bool, obstacle: str, dtype: str = "") -> None:
        self.latest[samples, obstacle, dtype] += 1
        self.input_gradient |= input_gradient

    def taken(self) -> None:
        """What was noted until now has been asked for."""
        if not self.first:
            self.first, self.latest = self.latest, Counter()

    def observed(self) -> Observation | None:
        """What most calls did; None if there were none. Of equally frequent sizes the largest counts."""
        counts = self.first + self.latest
        if not counts:
            return None
        kinds: Counter[tuple[str, str]] = Counter()
        for (_, obstacle, dtype), count in counts.items():
            kinds[obstacle, dtype] += count
        usual = max(kinds, key=lambda kind: (kinds[kind], kind[0] == "", kind))
        times = {samples: count for (samples, *kind), count in counts.items() if tuple(kind) == usual}
        return Observation(max(times, key=lambda n: (times[n], n)), self.input_gradient, *usual)

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        counts = {
            name: [[n, why, count, *([dtype] if dtype else [])] for (n, why, dtype), count in calls.items()]
            for name, calls in (("first", self.first), ("latest", self.latest))
        }
        return {**counts, "input_gradient": self.input_gradient}

    @classmethod
    def from_dict(cls, state: object) -> Calls:
        """From what ``to_dict`` gave. Raises ValueError, naming what is wrong."""
        calls = cls()
        if not isinstance(state, Mapping) or state.keys() != calls.to_dict().keys():
            raise ValueError(f"must have the keys {', '.join(calls.to_dict())}, got {state!r}")
        for name, counts in (("first", calls.first), ("latest", calls.latest)):
            try:
                for samples, obstacle, count, *dtype in state[name]:
                    (of,) = dtype or ("",)
                    counts[samples, obstacle, of] = count
            except (TypeError, ValueError):
                counts[0, "", ""] = 0
            for (samples, obstacle, dtype), count in counts.items():
                numbers = type(samples) is type(count) is int and samples > 0 and count > 0
                if not (numbers and isinstance(obstacle, str) and isinstance(dtype, str)):
                    raise ValueError(
                        f"{name} must hold [samples, obstacle, count] of calls, a dtype after them where it is not the"
                        f" weight's, got {state[name]!r}"
                    )
        if not isinstance(state["input_gradient"], bool):
            raise ValueError(f"input_gradient must be a bool, got {state['input_gradient']!r}")
        calls.input_gradient = state["input_gradient"]
        return calls


@dataclass(frozen=True)
class Work:
    """What a kernel does for one product, for the cost model.

    kind: the kind of arithmetic, a key of the model's rates. flops: of that kind. moved: bytes to and from memory.
    cached: bytes that multiprocessors of a GPU read from its L2 cache, where that is what limits them.
    """

    kind: str
    flops: float
    moved: float
    cached: float = 0.0


class Trial(Protocol):
    """One layer with its mask and its number of samples, as the plan sees it; nothing in it is of a kind of layer.

    key: what times depend on, beside the machine. computed: the products that a step computes.
    """

    key: str
    computed: tuple[str, ...]

    def kernels(self, product: str) -> tuple[str, ...]:
        """The kernels that could compute it, ``"dense"`` first."""

    def work(self, product: str, kernel: str) -> Work: ...

    def run(self, product: str, kernel: str, forward: str) -> Callable[[], object]:
        """Computes the product once, beside a forward by kernel ``forward``."""

    def step(self, chosen: Mapping[str, str]) -> Callable[[], object]:
        """The layer's forward and backward as training runs them, through autograd."""


class Product(ABC):
    """The callable in ``layer.product``; a subclass brings what runs.

    ``handle``, an int64 tensor without dimensions, tells an opaque op of a compiled model which product it is; it is no
    int, which a graph would be compiled for, so that layers which are compiled one by one share their graph.
    ``compiled`` says whether such an op has run. ``aside`` says why the latest training forward was dense since it
    runs, but for the number of samples; empty: it wasn't; None: there was none. ``vouch`` tells, where it is known,
    whether nobody has written to the weight since an update under its mask did. A copy of a layer, whose weights may
    leave the mask, gets no product: copying one, or pickling it, gives None.
    """

    _handles: ClassVar[itertools.count[int]] = itertools.count()
    _by_handle: ClassVar[weakref.WeakValueDictionary[int, Product]] = weakref.WeakValueDictionary()

    def __init__(self, weight: Parameter) -> None:
        self.weight = weight
        number = next(self._handles)
        self.handle = torch.tensor(number, dtype=torch.int64, device="cpu")
        self._by_handle[number] = self
        self.compiled = False
        self.observing = True
        self.vouch: Callable[[], bool] | None = None
        self.aside: str | None = None
        self.calls = Calls()

    @classmethod
    def of(cls, handle: Tensor) -> Product | None:
        """The product with that handle, if it still exists."""
        return cls._by_handle.get(int(handle))

    @staticmethod
    @abstractmethod
    def refusal(layer: nn.Module, weight: Parameter, pattern: str) -> str | None:
        """Why the layer can never have a sparse product with masks of ``pattern``; None if it can."""

    @staticmethod
    @abstractmethod
    def missing(fp16: bool, pattern: str = "unstructured", device_type: str = "cpu") -> str | None:
        """Why kernels (with ``fp16``: those of half precision) can't run here, on such a device; None if they can."""

    def unknown(self, product: str, kernel: str, pattern: str) -> str | None:
        """Why a plan of elsewhere names a sparse kernel that there isn't here, for ``product``; None if there is."""
        return None if kernel in (SPARSE, FP16) else f"there is no kernel {kernel!r} here"

    @abstractmethod
    def build(self, bits: Tensor, pattern: str) -> Any:
        """The topology of a mask."""

    @abstractmethod
    def trial(
        self,
        layer: nn.Module,
        pattern: str,
        bits: Tensor,
        seen: Observation,
        topology: Callable[[], Any],
        fp16: bool,
    ) -> Trial:
        """The layer for the plan; ``topology()`` is asked for when a kernel is to be run."""

    @abstractmethod
    def start(
        self, topology: Any, chosen: Mapping[str, str], samples: int, favours: Callable[[int], bool] | None
    ) -> None:
        """Runs by ``chosen`` (product -> kernel) until ``stop``.

        samples: that the plan was made for; ``favours(n)`` is asked whether to go by it for n far from that. 0: any n.
        """

    @abstractmethod
    def stop(self) -> None:
        """Lets go of the topology; until the next start the product is dense."""

    @property
    @abstractmethod
    def topology(self) -> Any:
        """What it runs by; None while it is dense."""

    @abstractmethod
    def mask_changed(self) -> bool:
        """Whether it runs by a mask that was changed in place since it started."""

    @abstractmethod
    def weight_is_masked(self) -> None:
        """Called where the weight, as it is now, is known to keep to its mask; else the product has to look."""

    def start_observing(self) -> None:
        """From now on, until ``observing`` is taken away, the layer's own product, and notes of the inputs."""
        self.observing = True
        self.calls.latest.clear()

    def note(self, samples: int, input_gradient: bool, obstacle: str, dtype: str = "") -> None:
        """Called in each training forward while observing."""
        self.calls.note(samples, input_gradient, obstacle, dtype)

    def observed(self) -> Observation | None:
        """What was noted; None if the layer wasn't run in training."""
        return self.calls.observed()

    def __deepcopy__(self, memo: Any) -> None:
        return None

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _no_product, ()


def _no_product() -> None:
    return None


def version_of(weight: Tensor) -> tuple[int, int]:
    """Changes whenever somebody writes to the weight or gives it other memory (but for writes through ``.data``)."""
    return weight._version, weight.data_ptr()
