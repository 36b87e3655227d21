"""What each lane does next: deliver, in turn with the others; wait for a time; be read back from the store; or end.

A lane may stand among the ready ones more than once, or with nothing to give any more: whoever takes one looks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from heapq import heappop, heappush

from gateway.rules.delivery import Item, Lane


class Agenda:
    """See the module.

    Attributes:
        lanes: All there are, by key.
        ready: Those that may have something to deliver now, next first.
        wanting: Those whose references may be read back, by key.
    """

    def __init__(self) -> None:
        self.lanes: dict[Hashable, Lane] = {}
        self.ready: deque[Lane] = deque()
        self.wanting: dict[Hashable, Lane] = {}
        self._timers: list[tuple[float, int, Lane]] = []
        self._timer_count = 0

    def lane(self, key: Hashable, source: str) -> Lane:
        """Give the lane of a key, a new one if there is none."""
        lane = self.lanes.get(key)
        if lane is None:
            lane = self.lanes[key] = Lane(key, source)
        return lane

    def go_on(self, lane: Lane) -> None:
        """Something of a lane ended: find out what it does next."""
        if lane.running:
            return
        if lane.queue:
            self.ready.append(lane)
        elif lane.refs and not lane.held:
            self.wanting[lane.key] = lane
        elif not lane.held:
            self.lanes.pop(lane.key, None)

    def wanted(self) -> list[str]:
        """Name the sources whose references can be read back now; they are not named again until they `go_on`."""
        lanes = [lane for lane in self.wanting.values() if lane.refs and not (lane.held or lane.queue or lane.running)]
        self.wanting.clear()
        return [lane.source for lane in lanes]

    def ripen(self, now_s: float) -> None:
        """Let lanes whose time has come stand behind those that are ready."""
        while self._timers and self._timers[0][0] <= now_s:
            self.ready.append(heappop(self._timers)[2])

    def due_s(self, now_s: float) -> float | None:
        """Tell when the first lane that waits for a time is ready; None if none waits."""
        self.ripen(now_s)
        return self._timers[0][0] if self._timers else None

    def take(self, now_s: float) -> Item | None:
        """Take the next delivery that is due out of its lane; None if there is none."""
        while self.ready:
            lane = self.ready.popleft()
            if lane.running or not lane.queue:
                continue
            if (due_s := lane.queue[0].due_s) <= now_s:
                return lane.queue.popleft()
            self._timer_count += 1
            heappush(self._timers, (due_s, self._timer_count, lane))
        return None

    def first(self) -> Lane | None:
        """Name the lane that `take` looks at next; None if there is none."""
        while self.ready and (self.ready[0].running or not self.ready[0].queue):
            self.ready.popleft()
        return self.ready[0] if self.ready else None
