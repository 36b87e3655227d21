"""Retention: removes the oldest rows, a bounded number a call, and gives freed pages back to the file system."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import apsw

from gateway.ports.bus import Position, Retention, position
from gateway.storage.sqlite.room import used_bytes
from gateway.storage.sqlite.schema import set_meta
from gateway.storage.sqlite.writer import Transaction

ROWS: Final = 500  # a call
VACUUM_PAGES: Final = 256  # a call; each is a turn of the GIL
SPARE: Final = 10  # free pages beyond a tenth of the file go back; the rest is used again soon

# Casts, because a damaged row must not stop retention.
_OLDEST: Final = """
SELECT position, coalesce(CAST(received_ms AS INTEGER), 0), min(max(coalesce(CAST(count AS INTEGER), 1), 1), 1000),
    coalesce(length(body), 0), coalesce(CAST(total AS INTEGER), 0)
FROM batch ORDER BY position LIMIT ?
"""


def trim(transaction: Transaction, keep: Retention, not_past: Position | None) -> int:
    """Remove the oldest rows (contract: `EventBus.trim`); tells how many events went."""
    connection = transaction.connection
    rows = connection.execute(_OLDEST, (ROWS,)).fetchall()
    excess = used_bytes(connection) - keep.size_bytes
    going = _going(rows, oldest_ms=(transaction.now_s - keep.age_s) * 1000, excess=excess, not_past=not_past)
    if going:
        last = going[-1]
        connection.execute("DELETE FROM batch WHERE position <= ?", (last[0],))
        set_meta(connection, "trimmed", position(last[0], last[2] - 1))
        set_meta(connection, "trimmed_total", last[4])
        set_meta(connection, "next_row", transaction.log.next_row)
    _shrink(connection)
    return sum(row[2] for row in going)


def _going(rows: Sequence[Any], *, oldest_ms: float, excess: int, not_past: Position | None) -> Sequence[Any]:
    for place, (row, received_ms, count, size, _) in enumerate(rows):
        needed = not_past is not None and position(row, count - 1) >= not_past
        if needed or (received_ms >= oldest_ms and excess <= 0):
            return rows[:place]
        excess -= size
    return rows


def _shrink(connection: apsw.Connection) -> None:
    spare = int(connection.pragma("freelist_count")) - int(connection.pragma("page_count")) // SPARE
    if spare > 0:
        connection.execute(f"PRAGMA incremental_vacuum({min(spare, VACUUM_PAGES)})").fetchall()
