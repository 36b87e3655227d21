"""The log itself: rows in a list, and what deduplicates them in dicts."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Sequence
from datetime import datetime
from operator import attrgetter

from gateway.errors import BusUnavailable, Trimmed
from gateway.ports.bus import (
    Batch,
    Beginning,
    End,
    Forked,
    Outcome,
    Page,
    Position,
    Retention,
    Start,
    Stored,
    StoredBatch,
    index_of,
    position,
    row_of,
)
from gateway.rules.framed import unframed
from gateway.rules.ranges import Range
from gateway.storage import StorageConfig
from gateway.storage.placing import Piece, Placed, place_plain, place_span


class Log:
    """Rows without holes from `first_row` on."""

    def __init__(self, config: StorageConfig) -> None:
        self.config = config
        self.rows: list[StoredBatch] = []
        self.next_row = 1
        self.trimmed = 0
        self.appended = asyncio.Event()
        self.closed = False
        self.streams: dict[str, dict[str, tuple[Range, ...]]] = {}
        self._seen: dict[tuple[str, str], float] = {}

    def check_open(self) -> None:
        """Refuse calls after the end."""
        if self.closed:
            raise BusUnavailable("the store is closed")

    def close(self) -> None:
        """End waits and refuse calls."""
        self.closed = True
        self.wake()

    def wake(self) -> None:
        """Let those look again who wait for an append."""
        self.appended.set()
        self.appended = asyncio.Event()

    @property
    def end(self) -> Position:
        """Behind the last row there is or was."""
        return position(self.next_row - 1)

    @property
    def bytes(self) -> int:
        """Bytes of all bodies."""
        return sum(len(row.body) for row in self.rows)

    def add(self, batch: Batch) -> Outcome:
        """Store one batch."""
        if batch.span is None:
            placed: Placed | Forked = place_plain(batch, lambda id_: self._is_seen(batch.source, id_))
        else:
            placed = place_span(batch, batch.span, self.streams.get(batch.source, {}))
        if isinstance(placed, Forked):
            return placed
        if batch.span is not None:
            self.streams.setdefault(batch.source, {})[batch.span.stream] = placed.ranges
        now_s = self.config.clock()
        self._seen.update(dict.fromkeys(((batch.source, id_) for id_ in placed.ids), now_s))
        self.rows += [self._row(batch, piece) for piece in placed.pieces]
        return Stored(self.rows[-1].end if placed.pieces else Position(0), batch.count - placed.new)

    def _is_seen(self, source: str, id_: str) -> bool:
        at_s = self._seen.get((source, id_))
        return at_s is not None and at_s >= self.config.clock() - self.config.deduplication_window_s

    def _row(self, batch: Batch, piece: Piece) -> StoredBatch:
        self.next_row += 1
        body, encoding = unframed(piece.body, piece.encoding)
        return StoredBatch(
            row=self.next_row - 1,
            source=batch.source,
            received_ms=batch.received_ms,
            count=piece.count,
            types=piece.types,
            body=body,
            encoding=encoding,
            stream=batch.span.stream if batch.span else "",
            first=piece.first,
        )

    def read(self, after: Position, max_bytes: int) -> Page:
        """Read on from a position (contract: `EventBus.read`)."""
        if 0 < after < self.trimmed:
            raise Trimmed(position(row_of(Position(self.trimmed))))
        found: list[StoredBatch] = []
        size = 0
        for row in self._from(row_of(after)):
            if row.end <= after:
                continue
            size += len(row.body)
            if found and size > max_bytes:
                break
            found.append(row)
        return Page(tuple(found), found[-1].end if found else after)

    def _from(self, row: int) -> Sequence[StoredBatch]:
        return self.rows[bisect_left(self.rows, row, key=attrgetter("row")) :]

    def place_of(self, start: Start) -> Position:
        """Turn a start into what `read` takes as `after` (contract: `EventBus.locate`)."""
        if isinstance(start, Beginning):
            return Position(0)
        if isinstance(start, End):
            return self.end
        if isinstance(start, datetime):
            at_ms = int(start.timestamp() * 1000)
            return next((position(row.row - 1) for row in self.rows if row.received_ms >= at_ms), self.end)
        return start

    def events_above(self, floor: Position) -> int:
        """Count the events above a position."""
        return sum(
            row.count if row.row > row_of(floor) else max(0, row.count - index_of(floor) - 1)
            for row in self._from(row_of(floor))
        )

    def trim(self, keep: Retention, not_past: Position | None) -> int:
        """Remove the oldest rows (contract: `EventBus.trim`)."""
        oldest_ms, excess, events = (self.config.clock() - keep.age_s) * 1000, self.bytes - keep.size_bytes, 0
        while self.rows:
            row = self.rows[0]
            if (not_past is not None and row.end >= not_past) or (row.received_ms >= oldest_ms and excess <= 0):
                break
            excess -= len(row.body)
            events += row.count
            self.trimmed = row.end
            del self.rows[0]
        return events
