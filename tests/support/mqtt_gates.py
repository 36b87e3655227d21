"""Gates around real parts: each hands on what it is given, and holds or fails a call only while a test says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

from gateway.ports.state import Change, Entry, Revision, StateStore


class StateGate:
    """A store whose writes fail, or wait.

    Attributes:
        failure: Raised by every write while it is set.
        is_open: While it is cleared writes wait.
        writes: What was written, call by call.
    """

    def __init__(self, inner: StateStore) -> None:
        self._inner = inner
        self.failure: Exception | None = None
        self.is_open = asyncio.Event()
        self.is_open.set()
        self.writes: list[Mapping[str, bytes | None]] = []

    async def get(self, key: str) -> Entry | None:
        return await self._inner.get(key)

    async def put(self, key: str, value: bytes, *, expect: Revision | None) -> Revision:
        await self._pass()
        revision = await self._inner.put(key, value, expect=expect)
        self.writes.append({key: value})
        return revision

    async def delete(self, key: str, *, expect: Revision | None = None) -> None:
        await self._pass()
        await self._inner.delete(key, expect=expect)
        self.writes.append({key: None})

    async def write(self, changes: Mapping[str, bytes | None]) -> None:
        await self._pass()
        await self._inner.write(changes)
        self.writes.append(dict(changes))

    async def scan(self, prefix: str, after: str, limit: int) -> Sequence[Entry]:
        return await self._inner.scan(prefix, after, limit)

    def watch(self, prefix: str) -> AsyncIterator[Change]:
        return self._inner.watch(prefix)

    async def kept(self, prefix: str = "") -> dict[str, bytes]:
        """What is stored under a prefix."""
        return {entry.key: entry.value for entry in await self._inner.scan(prefix, "", 100_000)}

    async def _pass(self) -> None:
        await asyncio.sleep(0)  # no disk is done within the turn, though memory is
        await self.is_open.wait()
        if self.failure:
            raise self.failure
