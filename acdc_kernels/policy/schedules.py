"""Schedules: which steps are dense and which are compressed.

A schedule is a pure, total function from a step number to a ``Phase``, so that resuming needs only the step number.
A new one is one function here that hands ``_schedule`` its arguments and the stretches of training it is made of;
``_NAMED`` lists it for ``from_dict``.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from operator import index
from typing import Any, Literal, NamedTuple, SupportsIndex

__all__ = ["Phase", "Schedule", "acdc", "dense", "from_dict"]

Kind = Literal["dense", "compressed"]


@dataclass(frozen=True)
class Phase:
    """An unbroken stretch of steps of one kind.

    kind: "dense" (every weight is trained) or "compressed" (only the kept weights are).
    index: 0 for the schedule's first phase, counting both kinds.
    first_step, last_step: both inclusive; steps count optimizer updates from 0.
    """

    kind: Kind
    index: int
    first_step: int
    last_step: int

    @property
    def steps(self) -> int:
        """How many steps the phase lasts."""
        return self.last_step - self.first_step + 1


@dataclass(frozen=True, repr=False)
class Schedule:
    """The phases of a training run of ``total_steps`` optimizer updates.

    Made by ``acdc`` or ``dense``. Two schedules are equal when the same function made them with the same arguments;
    printing one gives that call back, and ``to_dict`` / ``from_dict`` carry it through a checkpoint.
    """

    name: str
    arguments: tuple[tuple[str, int], ...]
    total_steps: int
    _segments: tuple[_Segment, ...] = field(compare=False)

    def at(self, step: int) -> Phase:
        """The phase that update number ``step`` (from 0) belongs to; at or past ``total_steps``, the last phase.

        Takes constant time, however long the training. Raises ValueError for a negative step.
        """
        step = index(step)
        if step < 0:
            raise ValueError(f"Schedule.at: step must be at least 0, got {step}")
        step = min(step, self.total_steps - 1)
        segment = next(s for s in reversed(self._segments) if s.first_step <= step)
        return segment.phase(segment.which(step))

    def phases(self) -> Iterator[Phase]:
        """Every phase in order: alternating kinds that cover each step from 0 to ``total_steps - 1`` once."""
        for segment in self._segments:
            for which in range(segment.count):
                yield segment.phase(which)

    def to_dict(self) -> dict[str, str | int]:
        """The call that made this schedule as plain data: ``{"name": "dense", "total": 90, "steps_per_unit": 1}``."""
        return {"name": self.name, **dict(self.arguments)}

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{key}={value}' for key, value in self.arguments)})"


def acdc(
    total: int,
    warmup: int,
    compressed: int,
    dense: int,
    final_dense: int,
    final_compressed: int,
    steps_per_unit: int = 1,
) -> Schedule:
    """AC/DC (Peste et al. 2021, arXiv 2106.12379): warm-up, a cycle, a final dense and a final compressed phase.

    The cycle starts compressed and alternates ``compressed`` and ``dense`` units; it is cut off where the final dense
    phase begins. Adjacent stretches of one kind are one phase (a cycle that ends dense and the final dense phase, for
    instance), and a stretch of length 0 is no phase at all.

    total: the whole training. warmup, final_dense, final_compressed: the lengths of its fixed parts. compressed,
    dense: the lengths within the cycle. All in units of ``steps_per_unit`` steps: with ``steps_per_unit=len(loader)``
    they are epochs.

    Raises ValueError if the fixed parts are longer than ``total``, if a length is negative, or if ``total``,
    ``compressed``, ``dense`` or ``steps_per_unit`` is below 1; TypeError for a length that is not an int.

    The paper's 100 epochs of ResNet50:

    >>> schedule = acdc(total=100, warmup=10, compressed=5, dense=5, final_dense=10, final_compressed=15)
    >>> schedule.at(12)
    Phase(kind='compressed', index=1, first_step=10, last_step=14)
    """
    arguments = _lengths(
        "acdc",
        at_least_1={"total", "compressed", "dense", "steps_per_unit"},
        total=total,
        warmup=warmup,
        compressed=compressed,
        dense=dense,
        final_dense=final_dense,
        final_compressed=final_compressed,
        steps_per_unit=steps_per_unit,
    )
    cycle = total - warmup - final_dense - final_compressed
    if cycle < 0:
        raise ValueError(
            f"acdc: warmup + final_dense + final_compressed must be at most total, "
            f"got {warmup} + {final_dense} + {final_compressed} > {total}"
        )
    return _schedule(
        "acdc",
        arguments,
        [
            _run("dense", warmup),
            _Stretch("compressed", compressed, dense, cycle),
            _run("dense", final_dense),
            _run("compressed", final_compressed),
        ],
    )


def dense(total: int, steps_per_unit: int = 1) -> Schedule:
    """One dense phase of ``total`` units of ``steps_per_unit`` steps: ordinary training, as a baseline.

    Raises ValueError if either is below 1.
    """
    arguments = _lengths("dense", at_least_1={"total", "steps_per_unit"}, total=total, steps_per_unit=steps_per_unit)
    return _schedule("dense", arguments, [_run("dense", total)])


_NAMED = {function.__name__: function for function in (acdc, dense)}


def from_dict(data: Mapping[str, Any]) -> Schedule:
    """The schedule that ``Schedule.to_dict`` described.

    Raises ValueError for an unknown name and for arguments that are missing or that the schedule doesn't have.
    """
    arguments = dict(data)
    name = arguments.pop("name", None)
    if name not in _NAMED:
        raise ValueError(f"from_dict: name must be one of {', '.join(map(repr, _NAMED))}, got {name!r}")
    function = _NAMED[name]
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise ValueError(f"from_dict: arguments don't fit {name!r}: {error}") from None
    return function(**arguments)


class _Stretch(NamedTuple):
    """``steps`` units that alternate from ``kind``: ``own`` of it, ``other`` of the other kind, ...; cut at the end."""

    kind: Kind
    own: int
    other: int
    steps: int


@dataclass(frozen=True)
class _Segment:
    """``count`` whole phases that alternate from ``kind``, with lengths ``own``, ``other``, ``own``, ... steps."""

    kind: Kind
    own: int
    other: int
    count: int
    first_step: int
    first_index: int

    def which(self, step: int) -> int:
        """The number, within this segment, of the phase that holds ``step``."""
        rounds, rest = divmod(step - self.first_step, self.own + self.other)
        return 2 * rounds + (rest >= self.own)

    def phase(self, which: int) -> Phase:
        rounds, odd = divmod(which, 2)
        first = self.first_step + rounds * (self.own + self.other) + odd * self.own
        kind, steps = (_OTHER[self.kind], self.other) if odd else (self.kind, self.own)
        return Phase(kind, self.first_index + which, first, first + steps - 1)


_OTHER: dict[Kind, Kind] = {"dense": "compressed", "compressed": "dense"}


def _run(kind: Kind, steps: int) -> _Stretch:
    return _Stretch(kind, steps, 1, steps)


def _schedule(name: str, arguments: dict[str, int], stretches: list[_Stretch]) -> Schedule:
    """Lays the stretches (lengths in units) one after another, merging neighbours of one kind."""
    unit = arguments["steps_per_unit"]
    parts: list[tuple[Kind, int, int, int]] = []  # kind, own, other, count
    for stretch in stretches:
        for kind, own, other, count in _parts(stretch):
            if parts and parts[-1][0] == kind and parts[-1][3] == count == 1:
                own += parts.pop()[1]
            parts.append((kind, own, other, count))
    segments: list[_Segment] = []
    first_step = first_index = 0
    for kind, own, other, count in parts:
        segments.append(_Segment(kind, own * unit, other * unit, count, first_step, first_index))
        first_index += count
        first_step = segments[-1].phase(count - 1).last_step + 1
    return Schedule(name, tuple(arguments.items()), first_step, tuple(segments))


def _parts(stretch: _Stretch) -> Iterator[tuple[Kind, int, int, int]]:
    """A stretch as (kind, own, other, count); its first and last phase stand alone, as only those can merge."""
    kind, own, other, steps = stretch
    if steps == 0:
        return
    if steps <= own:
        yield kind, steps, 1, 1
        return
    rounds, rest = divmod(steps - 1, own + other)
    ends_own = rest < own
    count = 2 * rounds + (1 if ends_own else 2)
    yield kind, own, 1, 1
    if count > 2:
        yield _OTHER[kind], other, own, count - 2
    yield (kind, rest + 1, 1, 1) if ends_own else (_OTHER[kind], rest + 1 - own, 1, 1)


def _lengths(function: str, at_least_1: set[str], **arguments: SupportsIndex) -> dict[str, int]:
    """The arguments as plain ints, or an error that names the one that isn't a length."""
    lengths: dict[str, int] = {}
    for key, value in arguments.items():
        try:
            lengths[key] = index(value)
        except TypeError:
            raise TypeError(f"{function}: {key} must be an int, got {value!r}") from None
        if lengths[key] < (least := int(key in at_least_1)):
            raise ValueError(f"{function}: {key} must be at least {least}, got {value}")
    return lengths
