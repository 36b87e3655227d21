"""The device's token: minted for each connection, renewed on it before it expires."""

from __future__ import annotations

import os
import time
from typing import Final

from edge_agent.clock import Clock
from edge_protocol import tokens
from edge_protocol.ids import uuid7
from edge_protocol.keys import SigningKey

RENEW_AT: Final = 0.75
"""Share of the lifetime after which a token is renewed: the rest is time to try again."""


class TokenKeeper:
    """Mints tokens and knows when the current one is to be renewed.

    Attributes:
        renew_at_s: On the monotonic clock, which no correction of the time moves.
    """

    def __init__(self, key: SigningKey, *, audience: str, device: str, lifetime_s: float, clock: Clock) -> None:
        self._key = key
        self._audience = audience
        self._device = device
        self._lifetime_s = max(1, int(lifetime_s))
        self._clock = clock
        self.renew_at_s = 0.0

    def mint(self) -> str:
        """Make a token that is valid from now on, with a `jti` of its own."""
        now_s = self._clock.now_s()
        self.renew_at_s = time.monotonic() + self._lifetime_s * RENEW_AT
        issued_at = max(0, int(now_s))
        return tokens.mint(
            self._key,
            audience=self._audience,
            subject=self._device,
            issued_at=issued_at,
            expires_at=issued_at + self._lifetime_s,
            jti=uuid7(int(now_s * 1000), os.urandom(10)),
        )
