"""`Subscriptions` over one SQLite file: every change is a call in the writer's next commit, every list a read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import apsw
import msgspec

from gateway.errors import Fenced, NotFound, SubscriptionDiffers
from gateway.ports.bus import Position, Start
from gateway.ports.subscriptions import (
    Deferred,
    DeferredState,
    Done,
    Floor,
    Floors,
    Key,
    Lease,
    Query,
    SubscriptionSpec,
    SubscriptionState,
    Waiting,
)
from gateway.storage.sqlite import pages
from gateway.storage.sqlite.readers import Readers
from gateway.storage.sqlite.room import NEEDED
from gateway.storage.sqlite.schema import insert, scalar
from gateway.storage.sqlite.writer import Transaction, Writer

_COLUMNS: Final = "subscription, position, source, state, attempts, next_ms, cause, since_ms, event_id, type, event"
_CONDITIONS: Final = {
    "subscription": "subscription = ?",
    "state": "state = ?",
    "source": "source = ?",
    "event_id": "event_id = ?",
    "due_ms": "state = 'waiting' AND next_ms <= ?",
}
_LIST: Final = f"""
SELECT name, spec, floor, done, paused, {NEEDED},
    (SELECT json_group_object(state, n) FROM
        (SELECT state, count(*) AS n FROM deferred WHERE subscription = name GROUP BY state))
FROM subscription ORDER BY name
"""  # noqa: S608  # constants


class SqliteSubscriptions:
    """Durable cursors; their contract stands in the port."""

    def __init__(self, writer: Writer, readers: Readers) -> None:
        self._writer, self._readers = writer, readers

    async def open(self, spec: SubscriptionSpec, start: Start) -> None:
        """Create a subscription (contract in the port)."""
        await self._writer.call(lambda transaction: _open(transaction, spec, start))

    async def replace(self, spec: SubscriptionSpec) -> None:
        """Give it a new spec (contract in the port)."""
        await self._update(spec.name, "spec = ?, live = ?", (_encode(spec), spec.live))

    async def claim(self, name: str, *, ttl_s: float) -> Lease:  # noqa: ARG002  # in one process nothing expires
        """Take the right to move it (contract in the port)."""
        return await self._writer.call(lambda transaction: _claim(transaction.connection, name))

    async def save(
        self, lease: Lease, floors: Floors, deferred: Sequence[Deferred] = (), resolved: Sequence[Key] = ()
    ) -> None:
        """Move floors and put entries aside (contract in the port)."""
        await self._writer.call(lambda transaction: _save(transaction.connection, lease, floors, deferred, resolved))

    async def deferred(self, query: Query, *, limit: int) -> Sequence[Deferred]:
        """List entries (contract in the port)."""
        return await self._readers.run(partial(_deferred, query=query, limit=limit))

    async def resolve(self, keys: Sequence[Key], to: Done | Waiting) -> int:
        """Discard or replay entries (contract in the port)."""
        return await self._writer.call(lambda transaction: _resolve(transaction.connection, keys, to))

    async def seek(self, name: str, start: Start) -> None:
        """Set its floor anew (contract in the port)."""
        await self._writer.call(lambda transaction: _seek(transaction, name, start))

    async def pause(self, name: str, *, paused: bool) -> None:
        """Remember an operator's wish (contract in the port)."""
        await self._update(name, "paused = ?", (paused,))

    async def list(self) -> Sequence[SubscriptionState]:
        """List all (contract in the port)."""
        return await self._readers.run(_list)

    async def remove(self, name: str) -> None:
        """Forget one (contract in the port)."""
        await self._writer.call(lambda transaction: _remove(transaction.connection, name))

    async def _update(self, name: str, columns: str, values: tuple[Any, ...]) -> None:
        def update(transaction: Transaction) -> None:
            _find(transaction.connection, name, "name")
            transaction.connection.execute(f"UPDATE subscription SET {columns} WHERE name = ?", (*values, name))  # noqa: S608  # constants

        await self._writer.call(update)


def _encode(spec: SubscriptionSpec) -> str:
    return msgspec.json.encode(spec).decode()


def _find(connection: apsw.Connection, name: str, columns: str) -> tuple[Any, ...]:
    row = connection.execute(f"SELECT {columns} FROM subscription WHERE name = ?", (name,)).fetchone()  # noqa: S608  # constants
    if row is None:
        raise NotFound(f"no subscription {name!r}; `gateway handlers list` shows those there are")
    found: tuple[Any, ...] = row
    return found


def _open(transaction: Transaction, spec: SubscriptionSpec, start: Start) -> None:
    connection, text = transaction.connection, _encode(spec)
    known = scalar(connection, "SELECT spec FROM subscription WHERE name = ?", (spec.name,))
    if known is None:
        floor = _place(transaction, start)
        values = (spec.name, text, 0, False, spec.live, floor, "[]")
        connection.execute("INSERT INTO subscription VALUES (?, ?, ?, ?, ?, ?, ?)", values)
    elif known != text:
        raise SubscriptionDiffers(f"subscription {spec.name!r} exists with another specification")


def _place(transaction: Transaction, start: Start) -> Position:
    """As `locate`, never before what this very commit appends: its rows are written only at its end."""
    floor = pages.place_of(transaction.connection, start)
    return transaction.log.end if floor == pages.end_of(transaction.connection) else floor


def _claim(connection: apsw.Connection, name: str) -> Lease:
    epoch, floor, done = _find(connection, name, "epoch + 1, floor, done")
    connection.execute("UPDATE subscription SET epoch = ? WHERE name = ?", (epoch, name))
    return Lease(name, epoch, {0: _floor(floor, done)})


def _floor(floor: int, done: str) -> Floor:
    return Floor(Position(floor), tuple((first, last) for first, last in json.loads(done)))


def _save(
    connection: apsw.Connection, lease: Lease, floors: Floors, deferred: Sequence[Deferred], resolved: Sequence[Key]
) -> None:
    if _find(connection, lease.name, "epoch") != (lease.epoch,):
        raise Fenced(f"subscription {lease.name!r} was claimed by another owner")
    if 0 in floors:
        connection.execute(
            "UPDATE subscription SET floor = ?, done = ? WHERE name = ?",
            (floors[0].position, json.dumps(floors[0].done), lease.name),
        )
    _delete(connection, resolved)
    insert(connection, f"INSERT OR REPLACE INTO deferred ({_COLUMNS})", [_row(entry) for entry in deferred])


def _row(entry: Deferred) -> tuple[Any, ...]:
    names = (getattr(entry, name) for name in ("source", "state", "attempts", "next_ms", "cause", "since_ms"))
    return (entry.subscription, entry.position, *names, entry.event_id, entry.type, entry.event)


def _delete(connection: apsw.Connection, keys: Sequence[Key]) -> int:
    connection.execute(
        "DELETE FROM deferred WHERE (subscription, position) IN (SELECT value->>0, value->>1 FROM json_each(?))",
        (json.dumps([(key.subscription, key.position) for key in keys]),),
    )
    return connection.changes()


def _deferred(connection: apsw.Connection, query: Query, limit: int) -> list[Deferred]:
    given = {name: value for name in _CONDITIONS if (value := getattr(query, name)) is not None}
    where = " AND ".join(["position > ?", *(_CONDITIONS[name] for name in given)])
    order = "next_ms, position" if query.due_ms is not None else "subscription, position"
    sql = f"SELECT {_COLUMNS} FROM deferred WHERE {where} ORDER BY {order} LIMIT ?"  # noqa: S608  # constants
    rows = connection.execute(sql, (query.after, *given.values(), limit)).fetchall()
    return [_entry(row) for row in rows]


def _entry(row: tuple[Any, ...]) -> Deferred:
    values = dict(zip(_COLUMNS.split(", "), row, strict=True))
    return Deferred(**values | {"state": DeferredState(values["state"])})


def _resolve(connection: apsw.Connection, keys: Sequence[Key], to: Done | Waiting) -> int:
    if isinstance(to, Done):
        return _delete(connection, keys)
    connection.execute(
        """UPDATE deferred SET state = 'waiting', attempts = 0, next_ms = ?2
           WHERE (subscription, position) IN (SELECT value->>0, value->>1 FROM json_each(?1))""",
        (json.dumps([(key.subscription, key.position) for key in keys]), to.next_ms),
    )
    return connection.changes()


def _seek(transaction: Transaction, name: str, start: Start) -> None:
    connection = transaction.connection
    _find(connection, name, "name")
    floor = _place(transaction, start)
    connection.execute(
        "UPDATE subscription SET floor = ?, done = '[]', epoch = epoch + 1 WHERE name = ?", (floor, name)
    )
    connection.execute("DELETE FROM deferred WHERE subscription = ? AND state <> 'dead'", (name,))


def _list(connection: apsw.Connection) -> list[SubscriptionState]:
    with connection:
        end = pages.events_through(connection, pages.end_of(connection))
        states = [_state(connection, row, end) for row in connection.execute(_LIST).fetchall()]
    return states  # noqa: RET504  # mypy cannot know that the context manager lets exceptions pass


def _state(connection: apsw.Connection, row: tuple[Any, ...], end: int) -> SubscriptionState:
    _, spec, floor, done, paused, needed, counts = row
    entries = json.loads(counts)
    return SubscriptionState(
        spec=msgspec.json.decode(spec, type=SubscriptionSpec),
        floors={0: _floor(floor, done)},
        needed={0: Position(needed)},
        lag=end - pages.events_through(connection, Position(floor)),
        waiting=entries.get("waiting", 0),
        blocked=entries.get("blocked", 0),
        dead=entries.get("dead", 0),
        paused=bool(paused),
    )


def _remove(connection: apsw.Connection, name: str) -> None:
    connection.execute("DELETE FROM deferred WHERE subscription = ?", (name,))
    connection.execute("DELETE FROM subscription WHERE name = ?", (name,))
