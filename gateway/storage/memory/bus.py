"""`EventBus` in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from gateway.errors import BusFull
from gateway.ports.bus import Batch, BusStats, Outcome, Page, Position, Retention, Start, position
from gateway.rules.sizes import size_text
from gateway.storage.memory.log import Log
from gateway.storage.memory.subscriptions import MemorySubscriptions
from gateway.storage.placing import check

FREE_BYTES = 1 << 40  # there is no disk that could fill up


class MemoryBus:
    """The event bus of a test; its contract stands in the port."""

    partitions = 1
    on_close: Callable[[], Awaitable[None]]

    def __init__(self, log: Log, subscriptions: MemorySubscriptions) -> None:
        self._log, self._subscriptions = log, subscriptions

    async def append(self, batches: Sequence[Batch]) -> list[Outcome]:
        """Store batches (contract in the port).

        Raises:
            ValueError: A batch breaks its own contract; none was stored.
        """
        for batch in batches:
            check(batch)
        self._log.check_open()
        if full := self._fullness():
            raise BusFull(full)
        outcomes = [self._log.add(batch) for batch in batches]
        self._log.wake()
        return outcomes

    def _fullness(self) -> str:
        keep, log = self._log.config.retention, self._log
        if keep is None or log.bytes <= keep.size_bytes:
            return ""
        needed = self._subscriptions.needed()
        if needed is None or (log.rows and log.rows[0].end < needed):
            return ""
        return (
            f"the bus is over the {size_text(keep.size_bytes)} of bus.retention, and live subscriptions need all of it"
        )

    async def read(self, partition: int, after: Position, *, max_bytes: int, wait_s: float = 0) -> Page:
        """Read on from a position (contract in the port)."""
        assert partition == 0, "there is one partition"
        deadline = asyncio.get_running_loop().time() + wait_s
        while True:
            self._log.check_open()
            appended, page = self._log.appended, self._log.read(after, max_bytes)
            remaining = deadline - asyncio.get_running_loop().time()
            if page.batches or remaining <= 0:
                return page
            try:
                async with asyncio.timeout(remaining):  # wait_for can lose a cancellation (Python 3.11, gh-86296)
                    await appended.wait()
            except TimeoutError:
                return page

    async def locate(self, start: Start) -> Mapping[int, Position]:
        """Turn a start into a position (contract in the port)."""
        self._log.check_open()
        return {0: self._log.place_of(start)}

    async def stored_through(self, source: str, streams: Sequence[str]) -> Mapping[str, int]:
        """Tell how far streams are stored (contract in the port)."""
        self._log.check_open()
        known = self._log.streams.get(source, {})
        firsts = {stream: known[stream][0] for stream in streams if stream in known}
        return {stream: first.last if first.first == 1 else 0 for stream, first in firsts.items()}

    async def trim(self, keep: Retention, *, not_past: Mapping[int, Position]) -> int:
        """Remove the oldest batches (contract in the port)."""
        self._log.check_open()
        return self._log.trim(keep, not_past.get(0))

    async def stats(self) -> BusStats:
        """Tell what is stored now (contract in the port)."""
        self._log.check_open()
        rows = self._log.rows
        return BusStats(
            events=sum(row.count for row in rows),
            batches=len(rows),
            bytes=self._log.bytes,
            first=position(rows[0].row, 0) if rows else Position(0),
            last=rows[-1].end if rows else Position(0),
            free_bytes=FREE_BYTES,
            full=self._fullness(),
        )

    async def aclose(self) -> None:
        """Close the whole store (contract in the port)."""
        await self.on_close()
