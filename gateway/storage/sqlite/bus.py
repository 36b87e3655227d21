"""`EventBus` over one SQLite file: appends go to the writer thread, reads to the reader threads."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import apsw

from gateway.errors import BusUnavailable
from gateway.ports.bus import Batch, BusStats, Outcome, Page, Position, Retention, Start
from gateway.storage import StorageConfig
from gateway.storage.placing import check
from gateway.storage.sqlite import pages
from gateway.storage.sqlite.readers import Readers
from gateway.storage.sqlite.room import free_bytes, fullness, used_bytes
from gateway.storage.sqlite.trim import trim
from gateway.storage.sqlite.writer import Writer


@dataclass(frozen=True, slots=True)
class _Shared:
    """A page that one reader asked for: where, and where the log ended when it began to read."""

    after: Position
    max_bytes: int
    end: int
    reading: asyncio.Future[Page]

    def is_good(self, end: int) -> bool:
        """Whether somebody else may have it, now that the log ends here."""
        if not self.reading.done():
            return self.end == end
        if self.reading.cancelled() or self.reading.exception() is not None:
            return False
        page = self.reading.result()
        return bool(page.batches or page.damaged)


def _retrieve(reading: asyncio.Future[Page]) -> None:
    """Nobody may be left to be told of an error."""
    if not reading.cancelled():
        reading.exception()


class SqliteBus:
    """The event bus of one gateway process; its contract stands in the port."""

    partitions = 1

    def __init__(
        self,
        path: Path,
        config: StorageConfig,
        writer: Writer,
        readers: Readers,
        *,
        close: Callable[[], Awaitable[None]],
    ) -> None:
        self._path, self._config, self._writer, self._readers, self._close = path, config, writer, readers, close
        self._end = 0
        self._appended = asyncio.Event()
        self._shared: _Shared | None = None
        self._closed = False

    def note_end(self, end: int) -> None:
        """Wake readers that wait: a commit brought the log to this position."""
        if end > self._end:
            self._end = end
            self._wake()

    def stop(self) -> None:
        """Refuse calls from now on, and end waits."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        self._appended.set()
        self._appended = asyncio.Event()

    async def append(self, batches: Sequence[Batch]) -> list[Outcome]:
        """Store batches (contract in the port).

        Raises:
            ValueError: A batch breaks its own contract; none was stored.
        """
        for batch in batches:
            check(batch)
        return await self._writer.append(batches)

    async def read(self, partition: int, after: Position, *, max_bytes: int, wait_s: float = 0) -> Page:
        """Read on from a position (contract in the port)."""
        assert partition == 0, "there is one partition"
        self._check_open()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        while True:
            appended = self._appended
            page = await self._shared_page(after, max_bytes)
            remaining = deadline - loop.time()
            if page.batches or page.damaged or remaining <= 0:
                return page
            try:
                async with asyncio.timeout(remaining):  # wait_for can lose a cancellation (Python 3.11, gh-86296)
                    await appended.wait()
            except TimeoutError:
                return page
            self._check_open()

    async def _shared_page(self, after: Position, max_bytes: int) -> Page:
        """Read a page, or take that of somebody who asked for the same: all who follow the log do, within a moment.

        What was read stays true, unless it was nothing, or failed; what is still being read is as good, unless something
        was appended since it began. `trim` alone takes pages back.
        """
        shared = self._shared
        if shared is None or (shared.after, shared.max_bytes) != (after, max_bytes) or not shared.is_good(self._end):
            reading = asyncio.ensure_future(
                self._readers.run(lambda connection: pages.read_page(connection, after, max_bytes))
            )
            reading.add_done_callback(_retrieve)
            shared = self._shared = _Shared(after, max_bytes, self._end, reading)
        return await asyncio.shield(shared.reading)

    def _check_open(self) -> None:
        if self._closed:
            raise BusUnavailable("the store is closed")

    async def locate(self, start: Start) -> Mapping[int, Position]:
        """Turn a start into a position (contract in the port)."""
        return {0: await self._readers.run(partial(pages.place_of, start=start))}

    async def stored_through(self, source: str, streams: Sequence[str]) -> Mapping[str, int]:
        """Tell how far streams are stored (contract in the port)."""
        return await self._readers.run(partial(pages.stored_through, source=source, streams=streams))

    async def trim(self, keep: Retention, *, not_past: Mapping[int, Position]) -> int:
        """Remove the oldest batches, at most 500 a call (contract in the port)."""
        removed = await self._writer.call(lambda transaction: trim(transaction, keep, not_past.get(0)))
        self._shared = None
        return removed

    async def stats(self) -> BusStats:
        """Tell what is stored now (contract in the port)."""
        return await self._readers.run(self._stats)

    def _stats(self, connection: apsw.Connection) -> BusStats:
        with connection:
            first, last, batches = pages.bounds(connection)
            events = pages.events_through(connection, last) - pages.events_trimmed(connection) if last else 0
            size, full = used_bytes(connection), fullness(connection, self._path, self._config)
        return BusStats(
            events=events,
            batches=batches,
            bytes=size,
            first=first,
            last=last,
            free_bytes=free_bytes(self._path),
            full=full,
        )

    async def aclose(self) -> None:
        """Close the whole store (contract in the port)."""
        await self._close()
