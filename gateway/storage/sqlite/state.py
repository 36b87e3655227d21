"""`StateStore` over one SQLite file; watchers learn of what this process wrote, right after its commit."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from itertools import takewhile
from typing import Final

import apsw

from gateway.errors import RevisionDiffers
from gateway.ports.state import ABSENT, Change, Entry, Revision
from gateway.storage.sqlite.readers import Readers
from gateway.storage.sqlite.schema import scalar, set_meta
from gateway.storage.sqlite.writer import Transaction, Writer
from gateway.storage.watching import Watchers, check_value

_PUT: Final = (
    "INSERT INTO state VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET value = excluded.value, revision = excluded.revision"
)


class SqliteState:
    """Small durable values; their contract stands in the port."""

    def __init__(self, writer: Writer, readers: Readers, watchers: Watchers) -> None:
        self._writer, self._readers, self._watchers = writer, readers, watchers

    async def get(self, key: str) -> Entry | None:
        """Read one value (contract in the port)."""
        return await self._readers.run(partial(_get, key=key))

    async def put(self, key: str, value: bytes, *, expect: Revision | None) -> Revision:
        """Write one value (contract in the port)."""
        check_value(key, value)
        return await self._writer.call(lambda transaction: _put(transaction, key, value, expect))

    async def delete(self, key: str, *, expect: Revision | None = None) -> None:
        """Remove a key (contract in the port)."""
        await self._writer.call(lambda transaction: _delete(transaction, key, expect))

    async def write(self, changes: Mapping[str, bytes | None]) -> None:
        """Write and remove several keys at once (contract in the port)."""
        for key, value in changes.items():
            check_value(key, value or b"")
        wanted = dict(changes)  # the writer's thread reads it later
        await self._writer.call(lambda transaction: _write(transaction, wanted))

    async def scan(self, prefix: str, after: str, limit: int) -> Sequence[Entry]:
        """List entries (contract in the port)."""
        return await self._readers.run(partial(_scan, prefix=prefix, after=after, limit=limit))

    def watch(self, prefix: str) -> AsyncIterator[Change]:
        """Yield changes from now on (contract in the port)."""
        return self._watchers.watch(prefix)


def _get(connection: apsw.Connection, key: str) -> Entry | None:
    row = connection.execute("SELECT value, revision FROM state WHERE key = ?", (key,)).fetchone()
    return None if row is None else Entry(key, row[0], Revision(row[1]))


def _put(transaction: Transaction, key: str, value: bytes, expect: Revision | None) -> Revision:
    _check(transaction.connection, key, expect)
    revision = _next_revision(transaction.connection)
    transaction.connection.execute(_PUT, (key, value, revision))
    transaction.changes.append(Change(key, value, revision))
    return revision


def _delete(transaction: Transaction, key: str, expect: Revision | None) -> None:
    if _check(transaction.connection, key, expect) == ABSENT:
        return
    transaction.connection.execute("DELETE FROM state WHERE key = ?", (key,))
    transaction.changes.append(Change(key, None, _next_revision(transaction.connection)))


def _write(transaction: Transaction, changes: Mapping[str, bytes | None]) -> None:
    revision = _next_revision(transaction.connection)  # one for all
    kept = [(key, value, revision) for key, value in changes.items() if value is not None]
    gone = [(key,) for key, value in changes.items() if value is None]
    transaction.connection.executemany(_PUT, kept)
    transaction.connection.executemany("DELETE FROM state WHERE key = ?", gone)
    transaction.changes.extend(Change(key, value, revision) for key, value in changes.items())


def _check(connection: apsw.Connection, key: str, expect: Revision | None) -> Revision:
    found = Revision(scalar(connection, "SELECT revision FROM state WHERE key = ?", (key,)) or 0)
    if expect is not None and found != expect:
        raise RevisionDiffers(f"{key}: expected revision {expect}, found {found}")
    return found


def _next_revision(connection: apsw.Connection) -> Revision:
    """Kept apart from the values, so that deleting the newest does not give its number out again."""
    revision = Revision(1 + (scalar(connection, "SELECT value FROM meta WHERE key = 'revision'") or 0))
    set_meta(connection, "revision", revision)
    return revision


def _scan(connection: apsw.Connection, prefix: str, after: str, limit: int) -> list[Entry]:
    rows = connection.execute(
        "SELECT key, value, revision FROM state WHERE key > ? AND key >= ? ORDER BY key LIMIT ?", (after, prefix, limit)
    ).fetchall()
    entries = (Entry(str(key), value, Revision(revision)) for key, value, revision in rows)  # type: ignore[arg-type]  # as the schema says
    return list(takewhile(lambda entry: entry.key.startswith(prefix), entries))
