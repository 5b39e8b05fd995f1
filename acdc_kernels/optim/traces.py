"""Whether tensors are what they were when we last wrote to them, as far as torch counts writes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import is_

from torch import Tensor

MENDED_EVERY = 128


def _versions(column: Sequence[Tensor]) -> list[object]:
    """What tensors have that were made in inference mode equals nothing: they count no writes."""
    return [object() if t.is_inference() else t._version for t in column]


class Trace:
    """Versions and addresses of parameters, their states and their masks, column by column: parameters first."""

    __slots__ = ("addresses", "params", "versions")

    def __init__(self, columns: Sequence[Sequence[Tensor]]) -> None:
        self.params = columns[0]
        self.versions = [_versions(column) for column in columns]
        self.addresses = [[t.data_ptr() for t in column] for column in columns]

    def row(self, i: int) -> list[object]:
        return [column[i] for column in (*self.versions, *self.addresses)]


class Traces:
    """The traces that our last writes left. It holds parameters, but none of their states."""

    def __init__(self) -> None:
        self._of: dict[Tensor, tuple[Trace, int]] = {}  # the trace that a parameter is in, and where
        self.masked_before: set[Tensor] = set()  # the last step, since nothing was known of them
        self._asked = 0

    def forget(self, params: Iterable[Tensor] | None = None) -> None:
        """``params``; None: all."""
        if params is None:
            self._of.clear()
            return
        for p in params:
            if (at := self._of.pop(p, None)) is not None:
                at[0].params = ()  # its other rows stand, but it isn't all in one place any more

    def unchanged(self, now: Trace) -> list[bool]:
        """For each parameter of ``now``, whether nobody has written to its row since we did.

        Every 128th answer is no, so that what was written without being counted is mended some time.
        """
        self._asked += 1
        if self._asked % MENDED_EVERY == 0:
            self.masked_before.clear()
            return [False] * len(now.params)
        last = self._last(now)
        if last is not None and now.versions == last.versions and now.addresses == last.addresses:
            return [True] * len(now.params)
        found = [self._of.get(p) for p in now.params]
        return [at is not None and at[0].row(at[1]) == now.row(i) for i, at in enumerate(found)]

    def leave(
        self, columns: Sequence[Sequence[Tensor]], before: Trace | None = None, unknown: Sequence[int] = ()
    ) -> None:
        """Called after a write to ``columns``, with their trace ``before`` it if none of them has moved since.

        unknown: rows of which nothing is known after it.
        """
        now = before
        if now is None:
            now = Trace(columns)
        else:
            now.versions = [_versions(column) for column in columns]
        for i in unknown:
            now.versions[0][i] = object()
        last = self._last(now)
        if last is not None:  # as at every step but the first: all in one place
            last.versions, last.addresses = now.versions, now.addresses
        else:
            self._of.update((p, (now, i)) for i, p in enumerate(now.params))

    def is_unchanged(self, param: Tensor) -> bool:
        """As :meth:`unchanged`, of ``param`` alone."""
        at = self._of.get(param)
        if at is None:
            return False
        trace, i = at
        return trace.versions[0][i] == param._version and trace.addresses[0][i] == param.data_ptr()

    def _last(self, now: Trace) -> Trace | None:
        """The trace that all parameters of ``now`` are in, and no others."""
        at = self._of.get(now.params[0]) if now.params else None
        if at is None or len(at[0].params) != len(now.params) or not all(map(is_, at[0].params, now.params)):
            return None
        return at[0]
