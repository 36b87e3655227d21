"""Where a subscription stands in one partition: the floor, what is finished above it, and what is still open.

Strategy: only the open positions are kept, in the order of the log, each with its predecessor. All else that was read is
finished, so the finished intervals are the gaps between open positions: finishing one is a single dictionary removal,
and the intervals are worked out only when somebody saves them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

Interval = tuple[int, int]


class Cursor:
    """Tracks one partition. Positions are integers that grow with the log; both ends of an interval belong to it.

    Attributes:
        reached: Everything at or below it was read.
    """

    def __init__(self, floor: int, done: Sequence[Interval] = ()) -> None:
        self.reached = floor
        self._before: dict[int, int] = {}  # open position -> the position before it in the log
        self._known = list(done)  # finished before the last restart
        self._starts = [first for first, _ in done]

    def is_done(self, position: int) -> bool:
        """Tell whether a position about to be read was finished before the last restart, or read already."""
        if position <= self.reached:
            return True
        at = bisect_right(self._starts, position) - 1
        return at >= 0 and position <= self._known[at][1]

    def open(self, position: int) -> None:
        """Take up the next event of the log, to be finished later."""
        self._before[position] = self.reached
        self.reached = position

    def reach(self, position: int) -> None:
        """Note that all up to here was read; what was not opened is finished."""
        self.reached = max(self.reached, position)

    def finish(self, position: int) -> None:
        """Close an open position."""
        del self._before[position]

    @property
    def floor(self) -> int:
        """Everything at or below it is finished."""
        return next(iter(self._before.values()), self.reached)

    def done(self) -> tuple[Interval, ...]:
        """Finished intervals above the floor, ascending, apart from each other."""
        return tuple(_joined(self._gaps()))

    def _gaps(self) -> Iterator[Interval]:
        last = None
        for position, before in self._before.items():
            if last is not None and before > last:
                yield last + 1, before
            last = position
        if last is not None and self.reached > last:
            yield last + 1, self.reached
        for first, end in self._known:  # not read again yet since the restart
            if end > self.reached:
                yield max(first, self.reached + 1), end


def _joined(intervals: Iterator[Interval]) -> list[Interval]:
    joined: list[Interval] = []
    for first, end in intervals:
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((first, end))
    return joined
