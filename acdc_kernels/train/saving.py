"""What a run saves on the clock beside what it saves in FLOPs, from the times and FLOPs of its report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TRAINING = ("dense", "compressed", "flip", "planning")  # the clock's kinds that are training


@dataclass(frozen=True)
class Saving:
    """A compressed step against a dense step of the same run; savings are fractions of the dense step.

    step_ratio: median compressed step / median dense step, optimizer included, flips and planning apart.
    theoretical: 1 - the FLOPs of a compressed step, mean over the compressed epochs.
    """

    step_ratio: float
    theoretical: float

    @property
    def realized(self) -> float:
        return 1 - self.step_ratio

    @property
    def share(self) -> float | None:
        """realized / theoretical; None where FLOPs save nothing."""
        return self.realized / self.theoretical if self.theoretical > 0 else None


def saving(report: Mapping[str, Any]) -> Saving | None:
    """The saving of a run; None if it had no dense or no compressed step."""
    dense, compressed = (report["time"][kind]["median_ms"] for kind in ("dense", "compressed"))
    if not dense or not compressed or report["flops"]["compressed_step"] is None:
        return None
    return Saving(compressed / dense, 1 - report["flops"]["compressed_step"])


def training_seconds(report: Mapping[str, Any]) -> float:
    """Wall clock of all steps, flips and planning, without evaluation."""
    return sum(report["time"][kind]["seconds"] for kind in TRAINING if kind in report["time"])


def planning_share(report: Mapping[str, Any]) -> float | None:
    """Seconds spent planning as a fraction of those in compressed steps; None if there were none of these."""
    compressed = report["time"]["compressed"]["seconds"]
    return report["time"]["planning"]["seconds"] / compressed if "planning" in report["time"] and compressed else None
