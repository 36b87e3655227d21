"""What a commit appends: decides what is new, gathers rows, writes them with one statement a table.

Lives in the writer thread. Holds the next row and a bounded cache of what is stored of each source; both are valid
only while every commit succeeds, so a failed one throws the whole `Log` away.
"""

from __future__ import annotations

import json
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import apsw

from edge_protocol.ids import is_uuid
from gateway.ports.bus import Batch, Forked, Outcome, Position, Stored, position
from gateway.rules.ranges import Range
from gateway.storage.placing import Piece, Placed, place_plain, place_span, whole
from gateway.storage.sqlite.schema import insert, scalar

CACHED_RANGES: Final = 200_000  # about 50 MB; a source's share is its streams and their ranges
DAY_S: Final = 86400


def checksum(  # noqa: PLR0917  # the columns, in their order
    row: int, source: str, received_ms: int, count: int, stream: str, first: int, types: str, encoding: str, body: bytes
) -> int:
    """CRC-32 over all that a reader gets of a row."""
    head = f"{row}\0{source}\0{received_ms}\0{count}\0{stream}\0{first}\0{types}\0{encoding}\0"
    return zlib.crc32(body, zlib.crc32(head.encode()))


@dataclass(slots=True)
class _Source:
    """What is stored of one source: its row (0: not yet written), its streams' rows and ranges."""

    id: int
    stream_ids: dict[str, int] = field(default_factory=dict)
    streams: dict[str, tuple[Range, ...]] = field(default_factory=dict)
    cost: int = 1


class Log:
    """The tail of the log, as the writer knows it."""

    def __init__(self, connection: apsw.Connection, *, window_s: float) -> None:
        self._connection = connection
        self._window_s = window_s
        self._sources: OrderedDict[str, _Source] = OrderedDict()
        self._cost = 0
        self._days = _days(connection)
        self._load_tail()
        self._next_source = 1 + (scalar(connection, "SELECT max(id) FROM source") or 0)
        self._next_stream = 1 + (scalar(connection, "SELECT max(id) FROM stream") or 0)
        self._clear()

    def _load_tail(self) -> None:
        last = self._connection.execute(
            "SELECT position, coalesce(CAST(total AS INTEGER), 0) FROM batch ORDER BY position DESC LIMIT 1"
        ).fetchone()
        meta: dict[str, int] = dict(self._connection.execute("SELECT key, value FROM meta").fetchall())  # type: ignore[arg-type]  # two columns
        row, total = last or (meta.get("next_row", 1) - 1, meta.get("trimmed_total", 0))
        self.next_row: int = row + 1
        self.total: int = total

    @property
    def end(self) -> Position:
        """Behind everything appended so far, this commit's rows included."""
        return position(self.next_row - 1)

    def _clear(self) -> None:
        self._rows: list[tuple[Any, ...]] = []
        self._ranges: dict[int, tuple[tuple[Range, ...], tuple[Range, ...]]] = {}
        self._new_sources: list[tuple[int, str]] = []
        self._new_streams: list[tuple[int, int, str]] = []
        self._fresh: dict[tuple[str, str], None] = {}
        self._seen: set[tuple[str, str]] = set()

    def begin(self, batches: Sequence[Batch], *, now_s: float) -> None:
        """Load what the decisions about these batches need, with one statement a table; call inside a transaction."""
        missing = {batch.source for batch in batches} - self._sources.keys()
        if missing:
            self._load_sources(missing)
        ids = [(batch.source, id_) for batch in batches for id_ in batch.ids]
        if ids:
            self._roll_days(int(now_s // DAY_S))
            self._load_seen(ids)

    def add(self, batch: Batch) -> Outcome:
        """Decide about one batch and gather its rows; an exception leaves everything as it was."""
        source = self._sources[batch.source]
        self._sources.move_to_end(batch.source)
        if batch.span is None and not batch.ids:  # nothing to compare it with: most plain publishes
            return Stored(self._add_row(batch, whole(batch), self._id(batch.source, source), 0))
        if batch.span is None:
            placed: Placed | Forked = place_plain(batch, lambda id_: self._is_seen(batch.source, id_))
        else:
            placed = place_span(batch, batch.span, source.streams)
        if isinstance(placed, Forked):
            return placed
        stream = 0 if batch.span is None else self._keep_ranges(batch.source, source, batch.span.stream, placed.ranges)
        for id_ in placed.ids:
            self._fresh[batch.source, id_] = None
        at = Position(0)
        for piece in placed.pieces:
            at = self._add_row(batch, piece, self._id(batch.source, source), stream)
        return Stored(at, batch.count - placed.new)

    def flush(self) -> None:
        """Write what was gathered; call before COMMIT."""
        insert(self._connection, "INSERT INTO source", self._new_sources)
        insert(self._connection, "INSERT INTO stream", self._new_streams)
        insert(self._connection, "INSERT INTO batch", self._rows)
        self._write_ranges()
        insert(
            self._connection,
            f"INSERT INTO seen_{self._days[-1]}" if self._days else "",
            [(_id_value(id_), self._sources[source].id) for source, id_ in self._fresh],
        )
        self._clear()
        self._evict()

    def _is_seen(self, source: str, id_: str) -> bool:
        return (source, id_) in self._seen or (source, id_) in self._fresh

    def _id(self, name: str, source: _Source) -> int:
        if not source.id:
            source.id = self._next_source
            self._next_source += 1
            self._new_sources.append((source.id, name))
        return source.id

    def _keep_ranges(self, name: str, source: _Source, stream: str, ranges: tuple[Range, ...]) -> int:
        id_ = source.stream_ids.get(stream)
        if id_ is None:
            id_ = source.stream_ids[stream] = self._next_stream
            self._next_stream += 1
            self._new_streams.append((id_, self._id(name, source), stream))
        before = source.streams.get(stream, ())
        if before != ranges:
            source.streams[stream] = ranges
            self._ranges[id_] = (self._ranges.get(id_, (before, ()))[0], ranges)
            growth = len(ranges) - len(before) + (not before)
            source.cost += growth
            self._cost += growth
        return id_

    def _add_row(self, batch: Batch, piece: Piece, source: int, stream: int) -> Position:
        row, types = self.next_row, ",".join(piece.types)
        name = batch.span.stream if batch.span else ""
        crc = checksum(
            row, batch.source, batch.received_ms, piece.count, name, piece.first, types, piece.encoding, piece.body
        )
        self.next_row += 1
        self.total += piece.count
        last = piece.first + piece.count - 1 if stream else 0
        columns = (row, source, batch.received_ms, piece.count, stream, piece.first, last, types, crc, piece.encoding)
        self._rows.append((*columns, self.total, piece.body))
        return position(row, piece.count - 1)

    def _write_ranges(self) -> None:
        gone, new = [], []
        for stream, (before, after) in self._ranges.items():
            firsts = {known.first for known in after}
            gone += [(stream, known.first) for known in before if known.first not in firsts]
            kept = set(before)
            new += [(stream, *known) for known in after if known not in kept]
        if gone:
            self._connection.execute(
                "DELETE FROM stored WHERE (stream, first) IN (SELECT value->>0, value->>1 FROM json_each(?))",
                (json.dumps(gone),),
            )
        insert(self._connection, "INSERT OR REPLACE INTO stored", new)

    def _load_sources(self, names: Iterable[str]) -> None:
        """One row back, whatever the number of sources: every row is a turn of the GIL."""
        found = scalar(
            self._connection,
            """SELECT json_group_array(json_array(source.name, source.id, stream.name, stream.id,
                   (SELECT json_group_array(json_array(first, last, tail)) FROM
                       (SELECT first, last, tail FROM stored WHERE stored.stream = stream.id ORDER BY first))))
               FROM json_each(?) AS wanted JOIN source ON source.name = wanted.value
               LEFT JOIN stream ON stream.source = source.id""",
            (json.dumps(sorted(names)),),
        )
        for name in names:
            self._sources[name] = _Source(0)
        for name, id_, stream, stream_id, ranges in json.loads(found):
            source = self._sources[name]
            source.id = id_
            if stream is not None:
                source.stream_ids[stream] = stream_id
                source.streams[stream] = tuple(Range(*known) for known in json.loads(ranges))
                source.cost += 1 + len(source.streams[stream])
        self._cost += sum(self._sources[name].cost for name in names)

    def _evict(self) -> None:
        while self._cost > CACHED_RANGES and self._sources:
            _, source = self._sources.popitem(last=False)
            self._cost -= source.cost

    def _roll_days(self, today: int) -> None:
        """Make today's table of seen ids and drop those that ended before the window."""
        oldest = today - int(-(-self._window_s // DAY_S))
        for day in [day for day in self._days if day < oldest]:
            self._connection.execute(f"DROP TABLE seen_{day}")
        self._days = [day for day in self._days if day >= oldest]
        if not self._days or self._days[-1] < today:
            self._connection.execute(
                f"CREATE TABLE seen_{today} (id BLOB, device INTEGER, PRIMARY KEY (id, device)) WITHOUT ROWID"
            )
            self._days.append(today)

    def _load_seen(self, ids: Sequence[tuple[str, str]]) -> None:
        asked = [
            (id_.hex() if isinstance(id_, bytes) else None, None if isinstance(id_, bytes) else id_, source.id, index)
            for index, (source, id_) in enumerate((self._sources[name], _id_value(id_)) for name, id_ in ids)
            if source.id
        ]
        hit = " OR ".join(
            f"EXISTS (SELECT 1 FROM seen_{day} WHERE seen_{day}.id = asked.id AND device = source)"  # noqa: S608  # a number
            for day in self._days
        )
        found = scalar(
            self._connection,
            f"""SELECT json_group_array(place) FROM (SELECT coalesce(unhex(value->>0), value->>1) AS id,
                value->>2 AS source, value->>3 AS place FROM json_each(?)) AS asked WHERE {hit}""",  # noqa: S608  # numbers
            (json.dumps(asked),),
        )
        self._seen = {ids[index] for index in json.loads(found)}


def _id_value(id_: str) -> bytes | str:
    """How an id is kept: a UUID as its 16 bytes (27.5 bytes a row), others as text, so that the two never meet."""
    return bytes.fromhex(id_.replace("-", "")) if is_uuid(id_) else id_


def _days(connection: apsw.Connection) -> list[int]:
    names = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND name GLOB 'seen_*'").fetchall()
    return sorted(int(str(name).removeprefix("seen_")) for (name,) in names)
