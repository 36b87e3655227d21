"""What a dispatcher tells about itself: counters and state, for metrics and the command line."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum


class DispatchState(StrEnum):
    """What a dispatcher does now."""

    RUNNING = "running"
    PAUSED = "paused"  # by an operator
    DOWN = "down"  # its target is not there
    STOPPED = "stopped"


@dataclass(slots=True)
class Tally:
    """Counts since the start of the process.

    Attributes:
        delivered: Deliveries that succeeded.
        failed: Deliveries that failed or were refused.
        retried: Deliveries of events that had failed before.
        deferred: Times an event was put aside to be tried again.
        dead: Dead letters made.
        down: Times the target was found down.
        damaged: Rows of the log that could not be read.
        trimmed: Times retention had removed events before they were read.
    """

    delivered: int = 0
    failed: int = 0
    retried: int = 0
    deferred: int = 0
    dead: int = 0
    down: int = 0
    damaged: int = 0
    trimmed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchStats:
    """One look at a dispatcher.

    Attributes:
        handler: Its name.
        tally: Counts since the start of the process.
        inflight: Deliveries with the target now.
        window: Events in memory now.
        rate_per_s: Deliveries a second over the last ten seconds or so.
        cause: Why it is down or stopped; "" else.
        since_ms: Since when it is down, Unix milliseconds; None else.
    """

    handler: str
    state: DispatchState
    tally: Tally
    inflight: int = 0
    window: int = 0
    rate_per_s: float = 0.0
    cause: str = ""
    since_ms: int | None = None


@dataclass(slots=True)
class Rate:
    """Deliveries a second, from samples about a second apart."""

    _samples: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=10))

    def sample(self, now_s: float, count: int) -> None:
        """Note a running count."""
        if not self._samples or now_s - self._samples[-1][0] >= 1.0:
            self._samples.append((now_s, count))

    def per_s(self, now_s: float, count: int) -> float:
        """Tell the mean since the oldest sample."""
        if not self._samples or now_s <= self._samples[0][0]:
            return 0.0
        since_s, before = self._samples[0]
        return (count - before) / (now_s - since_s)
