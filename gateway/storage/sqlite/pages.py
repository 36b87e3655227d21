"""Queries over the log: a page of it, a place in it, its size. Each takes a read connection and leaves no transaction.

A page comes back as one row (its bodies joined, the rest as JSON), because every row is a turn of the GIL: 1,000 rows
beside a busy thread took 76 ms one by one and 6 ms so. If anything in it is odd, it is read again row by row, and what
is wrong is reported.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final

import apsw

from gateway.errors import Trimmed
from gateway.ports.bus import (
    INDEX_MASK,
    Beginning,
    Damaged,
    End,
    Page,
    Position,
    Start,
    StoredBatch,
    index_of,
    position,
    row_of,
)
from gateway.rules.framed import MAX_FRAME_BYTES, unframed
from gateway.storage.sqlite.append import checksum
from gateway.storage.sqlite.schema import scalar

PAGE_ROWS: Final = 4096
DISORDER_MS: Final = 60_000  # how far arrival times of neighbouring rows may be out of order, for `place_of`

# The last row of a page: as many as fit into the bytes asked for, one at least. What framed events have in common counts
# for each of them, at its bound: that is what they are in memory.
_UPTO = f"""
SELECT coalesce(max(position) FILTER (WHERE bytes <= ?3), min(position)) FROM (
    SELECT position, sum(size) OVER (ORDER BY position ROWS UNBOUNDED PRECEDING) AS bytes
    FROM (SELECT position, length(body) + iif(encoding = 'framed', {MAX_FRAME_BYTES} * count, 0) AS size FROM batch WHERE position >= ?1 ORDER BY position LIMIT ?2))
"""  # noqa: S608  # a constant
_ROWS = """
SELECT position, source.name AS source, received_ms, count, coalesce(stream.name, '') AS stream, first, types,
    encoding, crc, body
FROM batch LEFT JOIN source ON source.id = device LEFT JOIN stream ON stream.id = batch.stream
WHERE position BETWEEN ?1 AND ?2 ORDER BY position
"""
_PAGE = f"""
SELECT coalesce((SELECT value FROM meta WHERE key = 'trimmed'), 0),
    json_group_array(json_array(position, source, received_ms, count, stream, first, types, encoding, crc, length(body))),
    CAST(group_concat(body, '') AS BLOB)
FROM ({_ROWS})
"""  # noqa: S608  # constants


def read_page(connection: apsw.Connection, after: Position, max_bytes: int) -> Page:
    """Read on from a position (contract: `EventBus.read`).

    Raises:
        Trimmed: Events right after it are gone.
        apsw.Error: The file cannot be read.
    """
    start = _first_unread(connection, after)
    upto = scalar(connection, _UPTO, (start, PAGE_ROWS, max_bytes))
    if upto is None:
        _check_trimmed(after, scalar(connection, "SELECT value FROM meta WHERE key = 'trimmed'") or 0)
        return Page((), after)
    trimmed, rows = _fetch(connection, start, upto)
    _check_trimmed(after, trimmed)
    return _page(rows, after, 1 + max(row_of(after), row_of(Position(trimmed))))


def _first_unread(connection: apsw.Connection, after: Position) -> int:
    row = row_of(after)
    count = scalar(connection, "SELECT count FROM batch WHERE position = ?", (row,))
    return row if isinstance(count, int) and index_of(after) < min(count - 1, INDEX_MASK) else row + 1


def _check_trimmed(after: Position, trimmed: int) -> None:
    if 0 < after < trimmed:
        # The end of the row before the oldest: as `after` it reads from the oldest event on.
        raise Trimmed(position(row_of(Position(trimmed))))


def _fetch(connection: apsw.Connection, start: int, upto: int) -> tuple[int, list[Sequence[Any]]]:
    try:
        trimmed, text, bodies = connection.execute(_PAGE, (start, upto)).fetchone()  # type: ignore[misc]  # one row, always
        rows, at = json.loads(text), 0
        for row in rows:
            row[-1], at = bodies[at : at + row[-1]], at + row[-1]
        if at != len(bodies or b""):
            raise ValueError("lengths differ")
    except (apsw.SQLError, ValueError, TypeError):
        trimmed = scalar(connection, "SELECT value FROM meta WHERE key = 'trimmed'") or 0
        rows = list(_one_by_one(connection, start, upto))
    return trimmed, rows


def _one_by_one(connection: apsw.Connection, start: int, upto: int) -> Iterator[Sequence[Any]]:
    for row in json.loads(scalar(connection, f"SELECT json_group_array(position) FROM ({_ROWS})", (start, upto))):  # noqa: S608  # a constant
        try:
            yield connection.execute(_ROWS, (row, row)).fetchone() or (row,)
        except UnicodeDecodeError:
            yield (row,)


def _page(rows: Sequence[Sequence[Any]], after: Position, expected: int) -> Page:
    """Check rows; those that are missing before their successors are damage too, since rows have no holes."""
    batches: list[StoredBatch] = []
    damaged: list[Damaged] = []
    end = after
    for values in rows:
        row = values[0]
        if row > expected:
            damaged.append(Damaged(expected, f"rows {expected} to {row - 1} are missing"))
        expected = row + 1
        batch = _decode(values)
        if isinstance(batch, Damaged):
            damaged.append(batch)
            end = position(row)
        else:
            batches.append(batch)
            end = batch.end
    return Page(tuple(batches), end, tuple(damaged))


def _decode(values: Sequence[Any]) -> StoredBatch | Damaged:
    try:
        row, source, received_ms, count, stream, first, types, encoding, crc, body = values
        if checksum(row, source, received_ms, count, stream, first, types, encoding, body) != crc:
            return Damaged(row, "its checksum is wrong")
    except (ValueError, TypeError, AttributeError):
        return Damaged(values[0], "a column is not of its type")
    body, encoding = unframed(body, encoding)
    return StoredBatch(
        row=row,
        source=source,
        received_ms=received_ms,
        count=count,
        types=tuple(types.split(",")) if types else (),
        body=body,
        encoding=encoding,
        stream=stream,
        first=first,
    )


def place_of(connection: apsw.Connection, start: Start) -> Position:
    """Turn a start into what `read` takes as `after` (contract: `EventBus.locate`)."""
    if isinstance(start, Beginning):
        return Position(0)
    if isinstance(start, End):
        return end_of(connection)
    if isinstance(start, datetime):
        return _place_of_time(connection, int(start.timestamp() * 1000))
    return start


def end_of(connection: apsw.Connection) -> Position:
    """Behind the last row there is or was."""
    last = scalar(connection, "SELECT max(position) FROM batch")
    if last is None:
        last = (scalar(connection, "SELECT value FROM meta WHERE key = 'next_row'") or 1) - 1
    return position(last)


def _place_of_time(connection: apsw.Connection, wanted_ms: int) -> Position:
    """Search rows by bisection (they arrive almost in order of time), then look closely around the place."""
    low = scalar(connection, "SELECT min(position) FROM batch")
    if low is None:
        return end_of(connection)
    high = scalar(connection, "SELECT max(position) FROM batch") + 1
    while low < high:
        middle = (low + high) // 2
        arrived = scalar(connection, "SELECT received_ms FROM batch WHERE position >= ? ORDER BY position", (middle,))
        if arrived is not None and arrived < wanted_ms - DISORDER_MS:
            low = middle + 1
        else:
            high = middle
    found = scalar(
        connection,
        "SELECT position FROM batch WHERE position >= ? AND received_ms >= ? ORDER BY position LIMIT 1",
        (low, wanted_ms),
    )
    return end_of(connection) if found is None else position(found - 1)


def events_through(connection: apsw.Connection, at: Position) -> int:
    """Count the events ever appended up to a position, without a scan."""
    found = connection.execute(
        "SELECT position, coalesce(CAST(count AS INTEGER), 1), coalesce(CAST(total AS INTEGER), 0) FROM batch WHERE position <= ? ORDER BY position DESC LIMIT 1",
        (row_of(at),),
    ).fetchone()
    if found is None:
        return events_trimmed(connection)
    row, count, total = found
    return int(total - count + min(index_of(at) + 1, count) if row == row_of(at) else total)


def events_trimmed(connection: apsw.Connection) -> int:
    """Count the events that retention has removed since the store was made."""
    return int(scalar(connection, "SELECT value FROM meta WHERE key = 'trimmed_total'") or 0)


def bounds(connection: apsw.Connection) -> tuple[Position, Position, int]:
    """Tell the first and last position stored (0, 0 in an empty log) and the number of rows."""
    first = scalar(connection, "SELECT min(position) FROM batch")
    if first is None:
        return Position(0), Position(0), 0
    last, count = connection.execute(
        "SELECT position, coalesce(CAST(count AS INTEGER), 1) FROM batch ORDER BY position DESC LIMIT 1"
    ).fetchone()  # type: ignore[misc]  # one there is
    return position(first, 0), position(last, count - 1), last - first + 1


def stored_through(connection: apsw.Connection, source: str, streams: Sequence[str]) -> dict[str, int]:
    """Tell how far each known stream is stored without a hole (contract: `EventBus.stored_through`)."""
    text = scalar(
        connection,
        """SELECT json_group_object(stream.name, coalesce(
               (SELECT last FROM stored WHERE stored.stream = stream.id AND first = 1), 0))
           FROM json_each(?2) AS wanted JOIN stream ON stream.name = wanted.value
           JOIN source ON source.id = stream.source WHERE source.name = ?1""",
        (source, json.dumps(list(streams))),
    )
    found: dict[str, int] = json.loads(text)
    return found
