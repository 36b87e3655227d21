"""The last reported state of each device, kept before it is acknowledged (wire protocol, section 3).

One write a device runs at a time; of what arrives meanwhile only the newest is written, and all of it is settled by
that write: a state is superseded, not lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Final

import msgspec

from edge_protocol.errors import EventRejected
from edge_protocol.events import check_depth
from edge_protocol.topics import TopicFilter, TopicName, matches
from gateway.errors import GatewayError
from gateway.mqtt.messages import Message
from gateway.mqtt.turns import Tasks
from gateway.ports.ingest import PAYLOAD_FORMAT_INVALID, STORED, UNAVAILABLE, Receipt
from gateway.ports.state import StateStore

Settle = Callable[[Receipt], None]
WRITE_S: Final = 10.0
RETRY_AFTER_S: Final = 5
_PAGE: Final = 32  # states of at most 256 KiB

_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_anything = msgspec.json.Decoder()


def check_state(payload: bytes, *, max_bytes: int, depth: int) -> Receipt | None:
    """Refuse what is not a JSON object within bounds; None if it is one."""
    if len(payload) > max_bytes:
        return Receipt(
            PAYLOAD_FORMAT_INVALID, f"state-too-large: {len(payload)} bytes, at most {max_bytes} are allowed"
        )
    try:
        check_depth(payload, depth)
        _object.decode(payload)
        _anything.decode(payload)
    except EventRejected as exc:
        return Receipt(PAYLOAD_FORMAT_INVALID, str(exc))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Receipt(PAYLOAD_FORMAT_INVALID, "bad-state: expected a JSON object")
    return None


def state_key(device: str) -> str:
    """Where a device's state stands in the store."""
    return f"state/{device}"


def state_topic(device: str) -> TopicName:
    """The topic of a device's state."""
    return TopicName(f"devices/{device}/state")


def states_under(filter_: TopicFilter) -> str | None:
    """Tell whose states can fall under a filter: one device's, "" for any device's, None for nobody's."""
    levels = filter_.split("/")
    device = levels[1] if len(levels) > 1 and levels[1] not in {"+", "#"} else ""
    return device if matches(filter_, state_topic(device or "x")) else None


class LastStates:
    """Writes states to the store, and shows them to new subscribers."""

    def __init__(self, store: StateStore, tasks: Tasks) -> None:
        self._store = store
        self._tasks = tasks
        self._pending: dict[str, tuple[bytes, list[Settle]]] = {}
        self._writing: set[str] = set()
        self._changed: list[set[str]] = []

    def save(self, device: str, payload: bytes, settle: Settle) -> None:
        """Keep a state; settled once it, or a newer one, is durable."""
        waiting = self._pending[device][1] if device in self._pending else []
        waiting.append(settle)
        self._pending[device] = payload, waiting
        if device not in self._writing:
            self._writing.add(device)
            self._tasks.start(self._write_all(device), name=f"state {device}")

    @contextmanager
    def changed(self) -> Iterator[set[str]]:
        """Gather the devices whose states were kept, and so published, since this call."""
        devices: set[str] = set()
        self._changed.append(devices)
        try:
            yield devices
        finally:
            self._changed = [each for each in self._changed if each is not devices]

    async def under(self, filter_: TopicFilter) -> AsyncIterator[tuple[str, Message]]:
        """Read the states whose topics fall under a filter, a page at a time: no state is kept in memory.

        Raises:
            BusUnavailable: The store cannot be read.
        """
        device = states_under(filter_)
        if device:
            entry = await self._store.get(state_key(device))
            for found in [entry] if entry else []:
                yield device, _message(device, found.value)
        after = ""
        while device == "" and (entries := await self._store.scan(state_key(""), after, _PAGE)):
            for entry in entries:
                name = entry.key.removeprefix(state_key(""))
                yield name, _message(name, entry.value)
            after = entries[-1].key

    async def _write_all(self, device: str) -> None:
        try:
            while device in self._pending:
                payload, waiting = self._pending.pop(device)
                receipt = await self._write(device, payload)
                for devices in self._changed:
                    devices.add(device)
                for settle in waiting:
                    settle(receipt)
        finally:
            self._writing.discard(device)

    async def _write(self, device: str, payload: bytes) -> Receipt:
        try:
            async with asyncio.timeout(WRITE_S):
                await self._store.put(state_key(device), payload, expect=None)
        except (GatewayError, TimeoutError):
            return Receipt(UNAVAILABLE, "state-unavailable: the state could not be stored", retry_after_s=RETRY_AFTER_S)
        return STORED


def _message(device: str, state: bytes) -> Message:
    return Message(state_topic(device), state, qos=1, retain=True)
