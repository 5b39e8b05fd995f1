"""What every pattern tells the conductor."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

LARGEST = 1 << 27  # number in a pattern: more than any axis has, and R * C stays within 64 bits


@dataclass(frozen=True)
class Pattern:
    """Which shapes of zeros a mask may have.

    Shapes are those of weights, ``[C_out, C_in, *kernel]``: dim 0 is the output axis, dim 1 the input axis.

    text: as users write it, for example "unstructured".
    default_sparsity: the share of zeros when none is asked for.
    unit: how many weights are kept or pruned together.
    fixed: the pattern itself decides how many weights are kept, so there is no budget to give.
    structured: it matters which axis of a weight is which.
    """

    text: str
    default_sparsity: float
    unit: int = 1
    fixed: bool = False
    structured: bool = False

    def misfit(self, shape: Sequence[int]) -> str | None:
        """None if the pattern divides a weight of this shape (one without elements too), else the reason why not."""
        return None

    def covers(self, shape: Sequence[int]) -> str | None:
        """None if a weight of this shape can have the pattern, else the reason why not."""
        return self.misfit(shape) if all(shape) else "it has no elements"

    def resolve_sparsity(self, sparsity: float | None) -> float:
        """The sparsity to use: ``default_sparsity`` for None.

        Raises ValueError outside [0, 1), and with a fixed pattern for any value but its own.
        """
        if sparsity is None:
            return self.default_sparsity
        if self.fixed and not abs(sparsity - self.default_sparsity) <= 1e-6:
            raise ValueError(
                f"sparsity must be {self.default_sparsity:g} or None with pattern {self.text!r}, got {sparsity}"
            )
        if not 0 <= sparsity < 1:
            raise ValueError(f"sparsity must be in [0, 1), got {sparsity}")
        return self.default_sparsity if self.fixed else float(sparsity)

    def kept(self, numel: int, sparsity: float) -> int:
        """How many of ``numel`` weights are kept: whole units, u - round(sparsity * u) of u = numel / unit."""
        units = numel // self.unit
        return (units - round(sparsity * units)) * self.unit


def numbers(match: re.Match[str]) -> tuple[int, ...]:
    """The numbers that the groups of ``match`` hold; ValueError if one is above LARGEST."""
    digits = [group.lstrip("0") or "0" for group in match.groups()]
    if any(len(d) > len(str(LARGEST)) or int(d) > LARGEST for d in digits):  # int refuses thousands of digits
        raise ValueError(f"pattern must have numbers of at most {LARGEST}, got {match.string!r}")
    return tuple(map(int, digits))


def axis_misfit(shape: Sequence[int], output: int, input_: int) -> str | None:
    """The reason why dim 0 is no multiple of ``output``, or dim 1 none of ``input_``; None if both are."""
    if len(shape) < 2:
        dims = "1 dimension" if len(shape) == 1 else "no dimensions"
        return f"it has {dims}: the pattern needs an output and an input axis"
    for name, size, factor in (("output", shape[0], output), ("input", shape[1], input_)):
        if size % factor:
            return f"its {name} axis ({size}) is not a multiple of {factor}"
    return None
