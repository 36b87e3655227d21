"""Whether a target is there: up, down until a time, or being probed with one delivery. No clock of its own."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from gateway.rules.retry import PausePolicy, next_probe


class Health(StrEnum):
    """What is known about a target."""

    UP = "up"
    DOWN = "down"  # nothing is delivered before `probe_s`
    PROBING = "probing"  # one delivery is under way to find out


class Sign(StrEnum):
    """What changes it."""

    ABSENT = "absent"  # connection error, 429, 503
    PROBE = "probe"  # the pause is over and a delivery starts
    ANSWER = "answer"  # the probe got any other verdict, good or bad: somebody is there


MOVES: Final = {
    (Health.UP, Sign.ABSENT): Health.DOWN,
    (Health.DOWN, Sign.PROBE): Health.PROBING,
    (Health.PROBING, Sign.ABSENT): Health.DOWN,
    (Health.PROBING, Sign.ANSWER): Health.UP,
}


class Breaker:
    """Pauses all deliveries of a subscription while its target is down.

    Attributes:
        health: Now.
        cause: Why it is down, for people; "" while up.
        since_s: Since when it is down, on the caller's clock.
        probe_s: When the next probe may start, on the caller's clock.
    """

    def __init__(self, policy: PausePolicy) -> None:
        self._policy = policy
        self._failures = 0
        self.health = Health.UP
        self.cause = ""
        self.since_s = 0.0
        self.probe_s = 0.0

    def allows(self, now_s: float) -> bool:
        """Tell whether a delivery may start: any while up, one after the pause."""
        return self.health is Health.UP or (self.health is Health.DOWN and now_s >= self.probe_s)

    def begin(self) -> bool:
        """Note that a delivery starts; tell whether it is the probe."""
        if self.health is Health.UP:
            return False
        self.health = MOVES[self.health, Sign.PROBE]
        return True

    def answered(self, *, probe: bool) -> None:
        """Note a verdict other than down. Only the probe's counts: others may have been under way for long."""
        if probe:
            self.health = MOVES[self.health, Sign.ANSWER]
            self._failures, self.cause = 0, ""

    def expect(self, now_s: float) -> None:
        """Learn that the target may be there again: the next delivery may start now."""
        self.probe_s = min(self.probe_s, now_s)

    def absent(self, cause: str, *, probe: bool, now_s: float, jitter: float, retry_after_s: float | None) -> None:
        """Note that the target was found down; a straggler of an outage already known only prolongs by Retry-After."""
        if self.health is not Health.UP and not probe:
            asked_s = min(retry_after_s or 0.0, self._policy.max_retry_after_s)
            self.probe_s = max(self.probe_s, now_s + asked_s)
            return
        if self.health is Health.UP:
            self.since_s = now_s
        self.health = MOVES[self.health, Sign.ABSENT]
        self.cause = cause
        self._failures += 1
        self.probe_s = now_s + next_probe(self._policy, self._failures, jitter=jitter, retry_after_s=retry_after_s)
