"""Which token ids have been used (`replay_protection`), durably: a restart makes no used token fresh."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final

import msgspec

from edge_protocol.errors import TokenRejected
from edge_protocol.jwk import b64url
from gateway.errors import RevisionDiffers
from gateway.ports.identity import Principal
from gateway.ports.state import ABSENT, StateStore

PREFIX: Final = "jti/"
_PAGE: Final = 500


class ReplayGuard:
    """Remembers each `jti` of each principal until its token could not be accepted any more."""

    def __init__(self, state: StateStore, clock: Callable[[], float]) -> None:
        self._state, self._clock = state, clock

    async def use(self, principal: Principal, jti: str, *, until_s: int) -> None:
        """Use a token id up; durable on return.

        Raises:
            TokenRejected: `token-replayed`: it was used before.
            BusUnavailable: It could not be written; the token must not be accepted.
        """
        # A hash, since a jti may be of any length; JSON keeps the parts apart
        name = msgspec.json.encode([principal.kind, principal.issuer, principal.sub, jti])
        key = PREFIX + b64url(hashlib.sha256(name).digest())
        try:
            await self._state.put(key, str(until_s).encode(), expect=ABSENT)
        except RevisionDiffers as exc:
            raise TokenRejected("token-replayed", "jti: this token was used before; make a fresh one") from exc

    async def prune(self) -> int:
        """Forget what has expired; tell how many."""
        gone, after = 0, ""
        while page := await self._state.scan(PREFIX, after, _PAGE):
            after = page[-1].key
            for entry in page:
                if int(entry.value) <= self._clock():
                    await self._state.delete(entry.key)
                    gone += 1
        return gone
