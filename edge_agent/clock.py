"""The device's clock, corrected by what the gateway said (a device may have none, or one that starts in 1970)."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Final

TOLERANCE_S: Final = 5.0
"""A smaller difference is the network's and the rounding's: it is not corrected."""


class Clock:
    """Unix time with an offset.

    Attributes:
        offset_s: Gateway's clock minus this device's, in seconds; 0 while they agree.
    """

    def __init__(self, offset_s: float = 0.0) -> None:
        self.offset_s = offset_s

    def now_s(self) -> float:
        """Corrected Unix time, in seconds."""
        return time.time() + self.offset_s

    def correct(self, server_time: str) -> bool:
        """Follow `server-time` (RFC 3339); one that cannot be read is ignored.

        Returns:
            Whether the corrected time moved by more than `TOLERANCE_S`.
        """
        try:
            told = datetime.fromisoformat(server_time).timestamp()
        except (ValueError, OverflowError):
            return False
        if abs(told - self.now_s()) <= TOLERANCE_S:
            return False
        offset = told - time.time()
        self.offset_s = offset if abs(offset) > TOLERANCE_S else 0.0
        return True


def now_ms() -> int:
    """Unix time in milliseconds, by this device's own clock: for what only this device reads."""
    return time.time_ns() // 1_000_000
