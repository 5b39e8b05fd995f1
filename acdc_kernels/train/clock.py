"""Wall clock by kind of work, and the request to stop that Ctrl-C makes."""

from __future__ import annotations

import signal
import statistics

KINDS = ("dense", "compressed", "flip", "planning", "evaluation")


class Clock:
    """The duration of every dense step, compressed step, flip, planning and evaluation of a run, in seconds.

    Planning is the choice of kernels for a compressed phase; the flip that it belongs to is counted without it.
    """

    def __init__(self, seconds: dict[str, list[float]] | None = None) -> None:
        self.seconds = seconds or {kind: [] for kind in KINDS}

    def add(self, kind: str, seconds: float) -> None:
        self.seconds[kind].append(seconds)

    def summary(self) -> dict[str, dict[str, float | int | None]]:
        """For each kind: how often, seconds in all, and the median in milliseconds (None if it never happened)."""

        def facts(times: list[float]) -> dict[str, float | int | None]:
            median = 1e3 * statistics.median(times) if times else None
            return {"count": len(times), "seconds": sum(times), "median_ms": median}

        return {kind: facts(times) for kind, times in self.seconds.items()}


class StopRequest:
    """Within the ``with`` block, the first SIGINT or SIGTERM only sets `signal`; a second one acts as usual."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __enter__(self) -> StopRequest:
        self._usual = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _note(self, number: int, _frame: object) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, usual in self._usual.items():
            signal.signal(number, usual)
