"""When to connect again: pure arithmetic; the caller hands in the randomness (0 <= jitter < 1)."""

from __future__ import annotations

from typing import Final

FIRST_S: Final = 1.0
MAX_S: Final = 120.0
UNTOLD_S: Final = 30.0
"""Wait after a refusal that may carry no properties (wire protocol, section 2)."""
STABLE_S: Final = 30.0
"""A connection that held so long was no kick."""
_MAX_DOUBLINGS: Final = 20  # far beyond MAX_S; keeps 2**n small


def delay_s(failures: int, jitter: float, *, first_s: float = FIRST_S, max_s: float = MAX_S) -> float:
    """Exponential backoff with full jitter: uniform between 0 and the ceiling.

    Args:
        failures: Connections in a row that came to nothing, from 0.
        jitter: Uniform random number, 0 <= jitter < 1.
        first_s: Ceiling after the first failure, in seconds.
        max_s: Highest ceiling, in seconds.
    """
    return jitter * min(max_s, first_s * (1 << min(failures, _MAX_DOUBLINGS)))


class Pace:
    """Counts failures in a row; only a receipt or a connection that held ends the row.

    A connect that succeeds and is kicked at once is a failure like any other: were it to reset the count, a device
    that the gateway throws out would hammer it (aws-iot-device-sdk-python-v2 #191).
    """

    def __init__(self) -> None:
        self.failures = 0

    def progressed(self) -> None:
        """A receipt came, or the connection has held for `STABLE_S`."""
        self.failures = 0

    def next_s(self, jitter: float, *, told_s: float | None = None, untold: bool = False) -> float:
        """Seconds to wait before the next connect.

        Args:
            jitter: Uniform random number, 0 <= jitter < 1.
            told_s: What `retry-after` said: obeyed, never shortened.
            untold: The gateway refused and could not say for how long.
        """
        wait = delay_s(self.failures, jitter)
        self.failures += 1
        if told_s is not None:
            return told_s + jitter * FIRST_S
        return max(wait, UNTOLD_S * (1 + jitter / 2)) if untold else wait
