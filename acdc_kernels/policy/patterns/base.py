"""What every pattern tells the conductor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Pattern:
    """Which shapes of zeros a mask may have.

    text: as users write it, for example "unstructured".
    default_sparsity: the share of zeros when none is asked for.
    """

    text: str
    default_sparsity: float
    unit: int = 1
    fixed: bool = False
    structured: bool = False

    def kept(self, numel: int, sparsity: float) -> int:
        return numel - round(sparsity * numel)

    def covers(self, shape: Sequence[int]) -> str | None:
        """None if a weight of this shape can have the pattern, else the reason why not."""
        return None if all(shape) else "it has no elements"

    def resolve_sparsity(self, sparsity: float | None) -> float:
        """The sparsity to use: ``default_sparsity`` for None. Raises ValueError outside [0, 1)."""
        if sparsity is None:
            return self.default_sparsity
        if not 0 <= sparsity < 1:
            raise ValueError(f"sparsity must be in [0, 1), got {sparsity}")
        return float(sparsity)
