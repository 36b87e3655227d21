"""`StateStore` in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence

from gateway.errors import RevisionDiffers
from gateway.ports.state import ABSENT, Change, Entry, Revision
from gateway.storage.memory.log import Log
from gateway.storage.watching import Watchers, check_value


class MemoryState:
    """Values in a dict; their contract stands in the port."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._entries: dict[str, Entry] = {}
        self._revision = Revision(0)
        self._watchers = Watchers()

    def close(self) -> None:
        """End all watches."""
        self._watchers.close()

    async def get(self, key: str) -> Entry | None:
        """Read one value (contract in the port)."""
        self._log.check_open()
        return self._entries.get(key)

    async def put(self, key: str, value: bytes, *, expect: Revision | None) -> Revision:
        """Write one value (contract in the port)."""
        check_value(key, value)
        self._check(key, expect)
        self._revision = Revision(self._revision + 1)
        self._entries[key] = Entry(key, value, self._revision)
        self._watchers.tell([Change(key, value, self._revision)])
        return self._revision

    async def delete(self, key: str, *, expect: Revision | None = None) -> None:
        """Remove a key (contract in the port)."""
        if self._check(key, expect) == ABSENT:
            return
        self._revision = Revision(self._revision + 1)
        del self._entries[key]
        self._watchers.tell([Change(key, None, self._revision)])

    async def write(self, changes: Mapping[str, bytes | None]) -> None:
        """Write and remove several keys at once (contract in the port)."""
        for key, value in changes.items():
            check_value(key, value or b"")
        for key, value in changes.items():
            await (self.delete(key) if value is None else self.put(key, value, expect=None))

    def _check(self, key: str, expect: Revision | None) -> Revision:
        self._log.check_open()
        entry = self._entries.get(key)
        found = ABSENT if entry is None else entry.revision
        if expect is not None and found != expect:
            raise RevisionDiffers(f"{key}: expected revision {expect}, found {found}")
        return found

    async def scan(self, prefix: str, after: str, limit: int) -> Sequence[Entry]:
        """List entries (contract in the port)."""
        self._log.check_open()
        keys = sorted(key for key in self._entries if key.startswith(prefix) and key > after)
        return [self._entries[key] for key in keys[:limit]]

    def watch(self, prefix: str) -> AsyncIterator[Change]:
        """Yield changes from now on (contract in the port)."""
        return self._watchers.watch(prefix)
