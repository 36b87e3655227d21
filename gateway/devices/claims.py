"""Claims on public keys: a key is registered once in the whole registry (wire protocol, section 1).

`device-key/{kid}` says whose a key is. It is claimed before a document may name it; a crash in between leaves a claim
without a document, which whoever needs it takes over after a minute.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final

import msgspec

from gateway.devices.records import PREFIX, decode
from gateway.errors import Conflict, RevisionDiffers
from gateway.ports.state import ABSENT, Entry, StateStore

_HELD_S: Final = 60
_ATTEMPTS: Final = 8


class _Claim(msgspec.Struct, frozen=True):
    device: str
    at: int


_claim_of = msgspec.json.Decoder(_Claim).decode


class KeyClaims:
    """Who owns which public key."""

    def __init__(self, state: StateStore, clock: Callable[[], float]) -> None:
        self._state, self._clock = state, clock

    async def take(self, kid: str, device: str) -> None:
        """Make a key a device's; durable on return.

        Raises:
            Conflict: It is another device's, or this one's document names it already.
        """
        claim = msgspec.json.encode(_Claim(device, int(self._clock())))
        for _ in range(_ATTEMPTS):
            found = await self.find(kid)
            if found is not None and await self._is_in_force(kid, _claim_of(found.value), device):
                raise Conflict(
                    f"key {kid} is registered for device {_claim_of(found.value).device!r} already; "
                    "a public key is registered once in the whole registry: make a new one"
                )
            try:
                await self._state.put(_name(kid), claim, expect=ABSENT if found is None else found.revision)
            except RevisionDiffers:
                continue
            return
        raise Conflict(f"key {kid} is being registered elsewhere; try again")

    async def find(self, kid: str) -> Entry | None:
        """The claim on a key, as it is now."""
        return await self._state.get(_name(kid))

    async def release(self, claim: Entry | None, device: str) -> None:
        """Let go of a device's claim as it was read, unless somebody has taken it over since."""
        if claim is not None and _claim_of(claim.value).device == device:
            with suppress(RevisionDiffers):
                await self._state.delete(claim.key, expect=claim.revision)

    async def _is_in_force(self, kid: str, claim: _Claim, device: str) -> bool:
        entry = await self._state.get(PREFIX + claim.device)
        if entry is not None and decode(entry.value).key(kid):
            return True
        return claim.device != device and self._clock() < claim.at + _HELD_S  # its document may be on the way


def _name(kid: str) -> str:
    return f"device-key/{kid}"
