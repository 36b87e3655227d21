"""Rates as arithmetic: a token bucket that may go into debt, on a clock that the caller reads."""

from __future__ import annotations


class TokenBucket:
    """So many units a second, and a burst of them at once.

    What has been read cannot be unread, so a `take` always succeeds; it tells how long the debt lasts, and whoever asked
    stops reading for that long. Where one can say no there is `take_if_there`.
    """

    __slots__ = ("_capacity", "_level", "_rate_per_s", "_since_s")

    def __init__(self, rate_per_s: float, burst_s: float, now_s: float) -> None:
        """Start full.

        Args:
            rate_per_s: Units a second, above 0.
            burst_s: The bucket holds this many seconds' worth.
            now_s: Any monotonic clock, in seconds.
        """
        self._rate_per_s = rate_per_s
        self._capacity = self._level = rate_per_s * burst_s
        self._since_s = now_s

    def take(self, amount: float, now_s: float) -> float:
        """Take some units out; tell for how many seconds nothing more should be taken (0: go on)."""
        self._fill(now_s)
        self._level -= amount
        return max(0.0, -self._level / self._rate_per_s)

    def take_if_there(self, amount: float, now_s: float) -> bool:
        """Take some units out if there are so many: for what can be refused. Tell whether there were."""
        self._fill(now_s)
        is_there = self._level >= amount
        self._level -= amount if is_there else 0
        return is_there

    def _fill(self, now_s: float) -> None:
        gained = (now_s - self._since_s) * self._rate_per_s
        self._level = min(self._capacity, self._level + gained)
        self._since_s = now_s
