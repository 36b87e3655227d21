"""How many attempts are let in: token buckets by name, bounded in number. Pure; the caller hands the clock in."""

from __future__ import annotations

from collections import OrderedDict


class Attempts:
    """Counts attempts of each peer against a rate, with a burst.

    A peer that has been quiet is forgotten; when there are more peers than `peers`, the one heard from longest ago is.
    """

    def __init__(self, *, per_s: float, burst: float, peers: int = 10_000) -> None:
        self._per_s, self._burst, self._peers = per_s, burst, peers
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, peer: str, now_s: float) -> float:
        """Take one attempt.

        Returns:
            0 if it is let in; else in how many seconds the next one would be.
        """
        left, since_s = self._left.pop(peer, (self._burst, now_s))
        left = min(self._burst, left + max(0.0, now_s - since_s) * self._per_s)
        is_let_in = left >= 1
        self._left[peer] = (left - 1 if is_let_in else left, now_s)
        if len(self._left) > self._peers:
            self._left.popitem(last=False)
        return 0.0 if is_let_in else (1 - left) / self._per_s
