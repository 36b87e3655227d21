"""From the log into the plan: reads pages, selects, decodes each row once, waits when the window is full."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
import structlog

from edge_protocol.errors import EventRejected
from edge_protocol.events import Event, decode_stored
from gateway.dispatch.patience import Patience
from gateway.dispatch.stats import Tally
from gateway.errors import Trimmed
from gateway.ports.bus import Damaged, EventBus, Page, Position, StoredBatch, position, row_of
from gateway.ports.subscriptions import Deferred, SubscriptionSpec
from gateway.rules.delivery import Row
from gateway.rules.plan import Plan
from gateway.rules.selection import Selection

log = structlog.get_logger()

_PAGE_BYTES: Final = 256 * 1024  # deflated bodies may grow a lot; they are inflated one by one as there is room
_REST_S: Final = 0.005
"""What an event may wait longer at a handler that wants few of them. With ten such ingest is at 0.55 x without it, and 0.7 x with."""
_WAIT_S: Final = 5.0
_UNREADABLE: Final = (zlib.error, msgspec.DecodeError, EventRejected, ValueError, RecursionError)


class Decoder:
    """Turns what storage holds into rows of selected events."""

    def __init__(self, spec: SubscriptionSpec, labels_of: Callable[[str], Mapping[str, str]]) -> None:
        self._selection = Selection(types=spec.types, devices=spec.devices, labels=spec.labels)
        self._labels_of = labels_of

    def wants(self, batch: StoredBatch) -> bool:
        """Tell, without decoding it, whether a batch can hold an event that is selected."""
        selection = self._selection
        if not selection.wants_any(batch.types):
            return False
        device = batch.source.removeprefix("/devices/")
        labels = self._labels_of(device) if selection.asks_labels and device != batch.source else {}
        return selection.wants_source(batch.source, labels)

    def row(self, batch: StoredBatch, *, at: int = 0) -> Row:
        """Decode a batch; `at` leaves out what lies before it. A batch that cannot be decoded is `lost`."""
        events: list[Event] = []
        lost = ""
        try:
            events = decode_stored(
                batch.body, batch.encoding, source=batch.source, stream=batch.stream, first=batch.first
            )
        except _UNREADABLE as exc:
            lost = f"stored batch {batch.row} cannot be decoded: {type(exc).__name__}"
        first = position(batch.row, 0)
        wants = self._selection.wants_type
        return Row(
            row=batch.row,
            source=batch.source,
            received_ms=batch.received_ms,
            first=first,
            end=batch.end,
            events=[(first + n, event) for n, event in enumerate(events) if first + n >= at and wants(event.type)],
            at=at,
            lost=lost,
        )

    @staticmethod
    def event(entry: Deferred) -> Event | None:
        """Read back an event put aside; None if there is none or it cannot be decoded."""
        try:
            return decode_stored(b"[" + entry.event + b"]", "", source=entry.source, stream="", first=0)[0]
        except (*_UNREADABLE, IndexError):
            return None


class Reader:
    """Feeds one plan."""

    def __init__(
        self, name: str, bus: EventBus, plan: Plan, decoder: Decoder, *, patience: Patience, tally: Tally
    ) -> None:
        self._name = name
        self._bus = bus
        self._plan = plan
        self._decoder = decoder
        self._patience = patience
        self._tally = tally
        self._room = asyncio.Event()
        self._waits = False

    async def run(self, partition: int, on_fed: Callable[[], None]) -> None:
        """Read one partition until we are to stop.

        Args:
            partition: Which.
            on_fed: Called when there is something new in the plan.
        """
        after = self._plan.cursors[partition].floor
        while not self._patience.is_over:
            try:
                page = await self._patience.again(lambda: self._read(partition, after))  # noqa: B023  # called before `after` changes
            except Trimmed as exc:
                after = self._skip_trimmed(partition, after, exc.first)
                continue
            is_wanted = bool(page.damaged) or any(map(self._decoder.wants, page.batches))
            if is_wanted:
                await self._take_all(partition, page, on_fed)
            self._plan.skip(partition, page.next)
            after = page.next
            if page.batches and not is_wanted and _is_short(page):
                # Those who rest wake together, and so get one page from the bus together.
                await asyncio.sleep(_REST_S - asyncio.get_running_loop().time() % _REST_S)

    async def _take_all(self, partition: int, page: Page, on_fed: Callable[[], None]) -> None:
        entries: list[StoredBatch | Damaged] = [*page.batches, *page.damaged]
        for entry in sorted(entries, key=lambda entry: entry.row):
            await self._has_room()
            self._take(partition, entry)
            on_fed()

    async def _read(self, partition: int, after: int) -> Page:
        return await self._bus.read(partition, Position(after), max_bytes=_PAGE_BYTES, wait_s=_WAIT_S)

    async def read_back(self, entry: Deferred, partition: int) -> Row:
        """Read the row a reference names, from its first unfinished event on.

        Raises:
            Unavailable: And we are to stop.
        """
        try:
            page = await self._patience.again(
                lambda: self._bus.read(partition, Position(entry.position - 1), max_bytes=1)
            )
        except Trimmed:
            return _lost(entry, "retention removed it from the log")
        row = row_of(entry.position)
        for damaged in page.damaged:
            if damaged.row == row:
                self._tally.damaged += 1
                return _lost(entry, f"stored batch {row} is damaged: {damaged.detail}")
        for batch in page.batches:
            if batch.row == row:
                return self._decoder.row(batch, at=entry.position)
        return _lost(entry, f"stored batch {row} is not in the log any more")

    def _skip_trimmed(self, partition: int, after: int, first: int) -> int:
        log.error("events_trimmed", handler=self._name, partition=partition, after=after, first=first)
        self._tally.trimmed += 1
        after = first - 1 if after < first - 1 else first
        self._plan.skip(partition, after)
        return after

    def go_on(self) -> None:
        """Something left the window: read on, if that is what was waited for."""
        if self._waits and self._plan.has_room:
            self._room.set()

    async def _has_room(self) -> None:
        while not self._plan.has_room:
            self._room.clear()
            self._waits = True
            await self._room.wait()
        self._waits = False

    def _take(self, partition: int, entry: StoredBatch | Damaged) -> None:
        plan = self._plan
        if isinstance(entry, Damaged):
            cause = f"stored batch {entry.row} is damaged: {entry.detail}"
            self._lose(partition, "", position(entry.row, 0), position(entry.row), cause)
        elif not self._decoder.wants(entry):
            plan.skip(partition, entry.end)
        elif plan.blocks(entry.source):
            plan.refer(partition, entry.source, position(entry.row, 0), entry.end)
        elif (row := self._decoder.row(entry)).lost:
            self._lose(partition, row.source, row.first, row.end, row.lost)
        else:
            plan.feed(partition, row)

    def _lose(self, partition: int, source: str, first: int, end: int, cause: str) -> None:
        if self._plan.cursors[partition].is_done(first):
            self._plan.skip(partition, end)
            return
        log.error("row_damaged", handler=self._name, position=first, reason=cause)
        self._tally.damaged += 1
        self._tally.dead += 1
        self._plan.skip(partition, end)
        self._plan.lose(source, first, cause)


def _is_short(page: Page) -> bool:
    """Whether it ends where the log does, in all likelihood: a full one would have more in it."""
    return sum(len(batch.body) for batch in page.batches) < _PAGE_BYTES // 2


def _lost(entry: Deferred, cause: str) -> Row:
    at = entry.position
    return Row(row=row_of(at), source=entry.source, received_ms=0, first=at, end=at, events=[], at=at, lost=cause)
