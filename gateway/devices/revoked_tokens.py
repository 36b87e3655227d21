"""Tokens of issuers that were revoked before their time (wire protocol, section 2, "Revocation"), by issuer and `jti`.

Kept in the `StateStore` until the token could not be accepted any more, and all of them in memory, so that asking costs
nothing and nothing can happen between the question and what is let in. A device's tokens are its own to make: its keys
are revoked instead, or the device.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from typing import Final

import msgspec
import structlog

from edge_protocol.jwk import b64url
from gateway.ports.state import Change, StateStore

log = structlog.get_logger()

PREFIX: Final = "revoked-token/"
_PAGE: Final = 500


class _Revoked(msgspec.Struct, frozen=True):
    """One entry.

    Attributes:
        until_s: Unix seconds; from then on the token has expired, whenever it was made.
    """

    issuer: str
    jti: str
    until_s: float


_decode = msgspec.json.Decoder(_Revoked).decode


class RevokedTokens:
    """Which tokens are accepted no more.

    Attributes:
        on_revoked: Called with issuer and `jti`, within a second of the revocation.
    """

    def __init__(self, state: StateStore, clock: Callable[[], float]) -> None:
        self._state, self._clock = state, clock
        self._known: dict[tuple[str, str], _Revoked] = {}
        self._changes: AsyncIterator[Change] | None = None
        self.on_revoked: Callable[[str, str], object] = _nobody

    def holds(self, issuer: str, jti: str) -> bool:
        """Whether a token was revoked; right once `load` has returned."""
        return (issuer, jti) in self._known

    async def load(self) -> None:
        """Read what was revoked before; from this call on nothing is missed.

        Raises:
            BusUnavailable: The store cannot be read.
        """
        self._changes = self._state.watch(PREFIX)
        after = ""
        while page := await self._state.scan(PREFIX, after, _PAGE):
            after = page[-1].key
            for entry in page:
                self._note(entry.value)

    async def run(self) -> None:
        """Learn of revocations, after `load`, until the store is closed."""
        assert self._changes is not None
        async for change in self._changes:
            if change.value is not None:
                revoked = self._note(change.value)
                log.warning("token_revoked", issuer=revoked.issuer, jti=revoked.jti)
                self.on_revoked(revoked.issuer, revoked.jti)

    async def revoke(self, issuer: str, jti: str, *, until_s: float) -> None:
        """Accept a token no more; durable on return, in force within a second.

        Args:
            issuer: `iss`.
            jti: Its id.
            until_s: Unix seconds at which it has expired at the latest.

        Raises:
            BusUnavailable: Repeat.
        """
        await self._state.put(_key(issuer, jti), msgspec.json.encode(_Revoked(issuer, jti, until_s)), expect=None)

    async def prune(self) -> int:
        """Forget those that have expired; tell how many. Not before what was kept of them is discarded."""
        gone = [revoked for revoked in self._known.values() if revoked.until_s <= self._clock()]
        for revoked in gone:
            await self._state.delete(_key(revoked.issuer, revoked.jti))
            self._known.pop((revoked.issuer, revoked.jti), None)
        return len(gone)

    def _note(self, value: bytes) -> _Revoked:
        revoked = _decode(value)
        self._known[revoked.issuer, revoked.jti] = revoked
        return revoked


def _key(issuer: str, jti: str) -> str:
    # A hash, since both may be of any length; JSON keeps the parts apart
    return PREFIX + b64url(hashlib.sha256(msgspec.json.encode([issuer, jti])).digest())


def _nobody(issuer: str, jti: str) -> None:
    """Nobody listens."""
