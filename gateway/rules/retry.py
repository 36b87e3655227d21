"""When to try again: pure arithmetic on attempts; clocks and random numbers are handed in.

Two things are kept apart. An event that *failed* is tried again after a growing delay until its attempts are used up. A
target that is *down* pauses the whole subscription, costs no attempt, and is probed with one delivery at a time.
Delays are exponential with full jitter (Brooker, "Exponential Backoff And Jitter", 2015): a uniform share of a bound
that doubles, so that clients which failed together do not come back together.
"""

from __future__ import annotations

from dataclasses import dataclass

_MAX_DOUBLINGS = 32  # 2**32 s is longer than any bound; keeps the power finite


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How a failing event is retried.

    Attributes:
        max_attempts: Deliveries before it becomes a dead letter, the first one included.
        first_s: Upper bound of the first delay, in seconds; it doubles with each failure.
        max_s: The bound never exceeds this, in seconds.
        max_retry_after_s: What a service asks for with Retry-After is honoured up to this, in seconds.
    """

    max_attempts: int = 10
    first_s: float = 1.0
    max_s: float = 300.0
    max_retry_after_s: float = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PausePolicy:
    """How a target that is down is probed; the fields are those of `RetryPolicy`, without an end."""

    first_s: float = 1.0
    max_s: float = 30.0
    max_retry_after_s: float = 3600.0


@dataclass(frozen=True, slots=True)
class GiveUp:
    """No further attempt: dead letter.

    Attributes:
        reason: For people.
    """

    reason: str


def next_try(policy: RetryPolicy, attempt: int, *, jitter: float, retry_after_s: float | None = None) -> float | GiveUp:
    """Tell how long to wait after a failed attempt.

    Args:
        policy: The bounds.
        attempt: How many attempts have failed, from 1.
        jitter: Uniform in [0, 1).
        retry_after_s: The service asked for at least this delay.

    Returns:
        Seconds from now, or GiveUp when the attempts are used up.
    """
    if attempt >= policy.max_attempts:
        return GiveUp(f"failed {attempt} of {policy.max_attempts} attempts")
    return _delay_s(policy, attempt, jitter, retry_after_s)


def next_probe(policy: PausePolicy, failures: int, *, jitter: float, retry_after_s: float | None = None) -> float:
    """Tell how long to wait before the next probe of a target that is down.

    Args:
        policy: The bounds.
        failures: How many times in a row it was found down, from 1.
        jitter: Uniform in [0, 1).
        retry_after_s: The service asked for at least this delay.
    """
    return _delay_s(policy, failures, jitter, retry_after_s)


def _delay_s(policy: RetryPolicy | PausePolicy, failures: int, jitter: float, retry_after_s: float | None) -> float:
    bound_s = min(policy.max_s, policy.first_s * 2.0 ** min(failures - 1, _MAX_DOUBLINGS))
    asked_s = min(retry_after_s or 0.0, policy.max_retry_after_s)
    return max(jitter * bound_s, asked_s)
