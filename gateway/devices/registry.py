"""The device registry: which devices there are, in a `StateStore`, and what an operator does with them.

Keys of the store: `device/{id}` the document, `device-epoch/{id}` the last epoch of a removed id, `device-key/{kid}`
whose key it is. The store knows no transaction over several keys, so the order of writes carries the rules: a public
key is claimed before a document may name it, and an epoch is buried before its document goes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec
import structlog

from edge_protocol.errors import KeyInvalid
from edge_protocol.ids import DeviceId, device_id
from edge_protocol.keys import VerifyKey
from gateway.devices.claims import KeyClaims
from gateway.devices.memory import CAPACITY, Listener, RecordMemory
from gateway.devices.records import MAX_KEYS, PREFIX, DeviceDocument, DeviceRecord, KeyDocument, decode, encode
from gateway.errors import Conflict, NotFound, RevisionDiffers
from gateway.ports.state import ABSENT, Entry, StateStore
from gateway.rules.policy import Policy

__all__ = ["PREFIX", "Registry"]

log = structlog.get_logger()

_ATTEMPTS: Final = 8
_MAX_LABELS, _MAX_LABEL_CHARS = 64, 256


class Registry:
    """Devices and their keys. Implements the `DeviceKeys` port."""

    def __init__(
        self,
        state: StateStore,
        policy: Policy,
        *,
        clock: Callable[[], float] = time.time,
        capacity: int = CAPACITY,
    ) -> None:
        self._state, self._policy, self._clock = state, policy, clock
        self._claims = KeyClaims(state, clock)
        self._memory = RecordMemory(state, capacity=capacity)

    async def run(self) -> None:
        """Keep memory up to date, until the store is closed. Start it before the first connection is accepted."""
        await self._memory.run()

    def listen(self, listener: Listener) -> None:
        """Tell somebody (one: the authenticator) of every change, within a second of it."""
        self._memory.on_change = listener

    def signing_keys(self, device: str, *, now_s: float) -> Mapping[bytes, VerifyKey]:
        """Keys of a device that are valid now (see `DeviceKeys.signing_keys`).

        One that fell out of memory reads as unknown: its envelope is answered with reseal, its next connect loads it.
        """
        record = self._memory.peek(device)
        return {} if record is None else record.by_thumbprint(now_s)

    async def find(self, device: str) -> DeviceRecord | None:
        """A device's record, from memory if it is there; None for an unknown one.

        Raises:
            BusUnavailable: The store cannot be read now.
        """
        return await self._memory.find(device)

    async def show(self, device: str) -> DeviceDocument:
        """A device's document, as stored.

        Raises:
            NotFound: There is no such device.
        """
        return (await self._stored(device))[0]

    async def list(self, *, after: str = "", limit: int = 100) -> Sequence[DeviceDocument]:
        """Devices by id, in pages: give the last id as `after` to read on."""
        entries = await self._state.scan(PREFIX, PREFIX + after, limit)
        return [decode(entry.value) for entry in entries]

    async def add(
        self,
        device: str,
        key: VerifyKey,
        *,
        role: str,
        labels: Mapping[str, str] | None = None,
        nbf: int | None = None,
        exp: int | None = None,
    ) -> DeviceDocument:
        """Register a device with its first key.

        Raises:
            TopicInvalid: The id is not one.
            NotFound: The policy has no such role.
            Conflict: The device exists already, or the key is another device's.
            KeyInvalid: The key ends before it begins, or has ended.
        """
        name = device_id(device)
        self.check_role(role)
        _check_labels(labels or {})
        if await self._state.get(PREFIX + name) is not None:
            raise _exists(name)
        entry = self._key_entry(key, nbf, exp)
        await self._claims.take(entry.kid, name)
        document = DeviceDocument(
            id=name,
            epoch=await self.next_epoch(name),
            role=role,
            created=int(self._clock()),
            keys=(entry,),
            labels=dict(labels or {}),
        )
        await self._state.delete(_state_key(name))  # of an earlier registration, if its removal was cut short
        try:
            revision = await self._state.put(PREFIX + name, encode(document), expect=ABSENT)
        except RevisionDiffers as exc:
            raise _exists(name) from exc
        self._memory.wrote(name, document, revision)
        log.info("device_added", device=name, role=role, epoch=document.epoch, kid=entry.kid)
        return document

    async def set_enabled(self, device: str, *, enabled: bool) -> DeviceDocument:
        """Let a device connect, or cut it off.

        Raises:
            NotFound: There is no such device.
        """
        return await self._change(device, lambda old: msgspec.structs.replace(old, enabled=enabled))

    async def remove(self, device: str) -> None:
        """Forget a device; the same id added again is a new registration.

        Raises:
            NotFound: There is no such device.
        """
        for _ in range(_ATTEMPTS):
            document, entry = await self._stored(device)
            claims = [await self._claims.find(key.kid) for key in document.keys]
            await self._state.put(_epoch_key(device), str(document.epoch).encode(), expect=None)
            try:
                await self._state.delete(entry.key, expect=entry.revision)
            except RevisionDiffers:
                continue
            for claim in claims:
                await self._claims.release(claim, device)
            await self._state.delete(_state_key(device))
            log.info("device_removed", device=device, epoch=document.epoch)
            return
        raise Conflict(f"device {device!r} keeps changing; try again")

    async def add_key(
        self, device: str, key: VerifyKey, *, nbf: int | None = None, exp: int | None = None
    ) -> DeviceDocument:
        """Register one more key of a device. Keys that have ended make room.

        Raises:
            NotFound: There is no such device.
            Conflict: The key is registered already, or the device has three that have not ended.
            KeyInvalid: The key ends before it begins, or has ended.
        """
        before = await self.show(device)
        entry = self._key_entry(key, nbf, exp)
        if before.key(entry.kid):
            raise Conflict(f"key {entry.kid} is registered for this device already")
        await self._claims.take(entry.kid, device)
        try:
            after = await self._change(device, lambda old: self._with_key(old, entry))
        except (Conflict, NotFound):
            await self._claims.release(await self._claims.find(entry.kid), device)
            raise
        for gone in {key.kid for key in before.keys} - {key.kid for key in after.keys}:
            await self._claims.release(await self._claims.find(gone), device)
        return after

    async def list_keys(self, device: str) -> Sequence[KeyDocument]:
        """A device's keys, in the order they were added.

        Raises:
            NotFound: There is no such device.
        """
        return (await self.show(device)).keys

    async def expire_key(self, device: str, kid: str, *, at_s: int | None = None) -> DeviceDocument:
        """End a key, now or at a time; never later than it would have ended.

        Args:
            device: Whose.
            kid: Which.
            at_s: Unix seconds; None for now.

        Raises:
            NotFound: There is no such device, or it has no such key.
        """
        end = int(self._clock()) if at_s is None else at_s

        def ended(old: DeviceDocument) -> DeviceDocument:
            if old.key(kid) is None:
                known = ", ".join(key.kid for key in old.keys)
                raise NotFound(f"device {device!r} has no key {kid!r}; its keys: {known}")
            keys = tuple(
                msgspec.structs.replace(key, exp=int(min(end, key.ends_s))) if key.kid == kid else key
                for key in old.keys
            )
            return msgspec.structs.replace(old, keys=keys)

        return await self._change(device, ended)

    async def next_epoch(self, device: str) -> int:
        """The epoch that a registration of this id would get now: grows with every removal."""
        entry = await self._state.get(_epoch_key(device))
        return 1 if entry is None else int(entry.value) + 1

    def check_role(self, role: str) -> None:
        """Refuse a role that the policy does not have: it would allow nothing.

        Raises:
            NotFound: With the roles there are.
        """
        if role not in self._policy.roles:
            raise NotFound(f"role {role!r}: the policy has {', '.join(sorted(self._policy.roles)) or 'none'}")

    def _with_key(self, old: DeviceDocument, entry: KeyDocument) -> DeviceDocument:
        keys = old.keys
        if len(keys) >= MAX_KEYS:
            keys = tuple(key for key in keys if key.ends_s > self._clock())
        if len(keys) >= MAX_KEYS:
            raise Conflict(f"device {old.id!r} has {MAX_KEYS} keys that have not ended; expire one first")
        return msgspec.structs.replace(old, keys=(*keys, entry))

    def _key_entry(self, key: VerifyKey, nbf: int | None, exp: int | None) -> KeyDocument:
        now_s = int(self._clock())
        if exp is not None and exp <= max(now_s, nbf or 0):
            raise KeyInvalid(f"key: expected exp after now ({now_s}) and after nbf, found {exp}")
        return KeyDocument(kid=key.jwk["kid"], alg=key.alg, jwk=key.jwk, added=now_s, nbf=nbf, exp=exp)

    async def _change(self, device: str, to: Callable[[DeviceDocument], DeviceDocument]) -> DeviceDocument:
        """Read, decide, write; again if somebody else wrote in between."""
        for _ in range(_ATTEMPTS):
            old, entry = await self._stored(device)
            new = to(old)
            try:
                revision = await self._state.put(entry.key, encode(new), expect=entry.revision)
            except RevisionDiffers:
                continue
            self._memory.wrote(device, new, revision)
            log.info("device_changed", device=device, enabled=new.enabled, keys=[key.kid for key in new.keys])
            return new
        raise Conflict(f"device {device!r} keeps changing; try again")

    async def _stored(self, device: str) -> tuple[DeviceDocument, Entry]:
        entry = await self._state.get(PREFIX + device)
        if entry is None:
            raise NotFound(f"no device {device!r}; `gateway device list` shows those there are")
        return decode(entry.value), entry


def _state_key(device: str) -> str:
    """Where the MQTT server keeps what a device reported last: a new registration does not inherit it."""
    return f"state/{device}"


def _epoch_key(device: str) -> str:
    return f"device-epoch/{device}"


def _exists(device: DeviceId) -> Conflict:
    return Conflict(f"device {device!r} exists already; `gateway device show {device}` shows it")


def _check_labels(labels: Mapping[str, str]) -> None:
    if len(labels) > _MAX_LABELS or any(not 1 <= len(name + text) <= _MAX_LABEL_CHARS for name, text in labels.items()):
        raise Conflict(f"labels: expected at most {_MAX_LABELS}, each of 1 to {_MAX_LABEL_CHARS} characters")
