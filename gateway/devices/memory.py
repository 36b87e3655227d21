"""Device records in memory: those that were asked for last, brought up to date by watching the store."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from edge_protocol.errors import TopicInvalid
from edge_protocol.ids import device_id
from gateway.devices.records import PREFIX, DeviceDocument, DeviceRecord, decode, encode
from gateway.ports.state import Change, Entry, Revision, StateStore

CAPACITY: Final = 100_000
"""Records, about 2 KB each. Far above the connections of one gateway, so a connected device stays in."""

Listener = Callable[[str, DeviceDocument | None, DeviceDocument | None], None]
"""Called with a device's id, what memory held of it (None: nothing) and what it is now (None: removed)."""


class RecordMemory:
    """A bounded cache of records that follows the store.

    Attributes:
        on_change: Told of every change, within a second of it.
    """

    def __init__(self, state: StateStore, *, capacity: int = CAPACITY) -> None:
        self._state, self._capacity = state, capacity
        self._records: OrderedDict[str, DeviceRecord] = OrderedDict()
        self._loading: dict[str, int] = {}
        self._late: dict[str, Change] = {}
        self.on_change: Listener = _nobody

    async def run(self) -> None:
        """Follow the store until it is closed."""
        changes = self._state.watch(PREFIX)
        self._records.clear()  # what was read before the watch began may have changed since
        async for change in changes:
            self._apply(change)

    def peek(self, device: str) -> DeviceRecord | None:
        """A record, if it is in memory."""
        record = self._records.get(device)
        if record is not None:
            self._records.move_to_end(device)
        return record

    async def find(self, device: str) -> DeviceRecord | None:
        """A record, from the store if need be; None for a device that does not exist."""
        return self.peek(device) or await self._load(device)

    def wrote(self, device: str, document: DeviceDocument, revision: Revision) -> None:
        """Use what was just written at once; whoever else must know learns it by the watch."""
        if device in self._records:
            self._apply(Change(PREFIX + device, encode(document), revision))

    async def _load(self, device: str) -> DeviceRecord | None:
        try:
            device_id(device)
        except TopicInvalid:
            return None
        entry = await self._read(device)
        if entry is None:
            return None
        record = self._records[device] = DeviceRecord(decode(entry.value), entry.revision)
        if len(self._records) > self._capacity:
            self._records.popitem(last=False)
        return record

    async def _read(self, device: str) -> Entry | None:
        """Read from the store; a change that arrives meanwhile wins over what was read."""
        self._loading[device] = self._loading.get(device, 0) + 1
        try:
            entry = await self._state.get(PREFIX + device)
        finally:
            late = self._late.get(device)
            self._loading[device] -= 1
            if not self._loading[device]:
                del self._loading[device]
                self._late.pop(device, None)
        if late is None or (entry is not None and entry.revision >= late.revision):
            return entry
        return None if late.value is None else Entry(late.key, late.value, late.revision)

    def _apply(self, change: Change) -> None:
        device = change.key.removeprefix(PREFIX)
        if device in self._loading:
            self._late[device] = change
        old = self._records.get(device)
        if old is not None and change.revision <= old.revision:
            return
        new = None if change.value is None else DeviceRecord(decode(change.value), change.revision)
        if new is None:
            self._records.pop(device, None)
        elif old is not None:
            self._records[device] = new
        self.on_change(device, None if old is None else old.document, None if new is None else new.document)


def _nobody(device: str, old: DeviceDocument | None, new: DeviceDocument | None) -> None:
    """Nobody listens."""
