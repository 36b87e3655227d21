"""The agent's one SQLite file: connection, schema, transactions. It does not know what the rows mean.

Strategy. WAL, and `synchronous=FULL` for whoever must be durable when a transaction returns (measured in
docs: NORMAL loses all committed rows at a power cut). The daemon opens it with `durable=False`: what it writes
(receipts, quarantine) may be lost at a power cut, since the gateway then only answers once more, and its commits
cost no fsync, so no flash wear and no pause of the network loop. Several processes use the file at once: every write
transaction is `IMMEDIATE` and short, and waits for the others up to `BUSY_TIMEOUT_MS`.

After any error of the disk the connection is closed and opened again from disk at the next use: a failed fsync is
never retried as a success (promise P4).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import apsw

from edge_agent.errors import AgentError, OutboxFull, OutboxUnavailable
from edge_protocol.ids import uuid7

SCHEMA_VERSION: Final = 1
BUSY_TIMEOUT_MS: Final = 10_000
_WAL_LIMIT_BYTES: Final = 4 * 1024 * 1024
_FREE_PAGES: Final = 4096  # 16 MiB: below it free pages wait to be used again
_SHRINK_PAGES: Final = 1024  # a step, about 4 MiB

_SCHEMA: Final = """
-- A stream: one for each priority class. sequence = position - base. `last` is the highest position given out,
-- `sent` the highest that was handed to the network; `events` counts the rows of `event`, `bytes` those of
-- `quarantine` too. Positions are never used twice.
CREATE TABLE stream(class TEXT PRIMARY KEY, id TEXT NOT NULL, base INTEGER NOT NULL, last INTEGER NOT NULL,
    sent INTEGER NOT NULL, events INTEGER NOT NULL, bytes INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE event(position INTEGER PRIMARY KEY, emitted_ms INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE quarantine(position INTEGER PRIMARY KEY, id TEXT NOT NULL, emitted_ms INTEGER NOT NULL,
    refused_ms INTEGER NOT NULL, code INTEGER NOT NULL, reason TEXT NOT NULL, body BLOB NOT NULL);
CREATE TABLE note(name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""


class Store:
    """The file, opened when first used and again after an error; safe to share between threads."""

    def __init__(self, path: Path, *, durable: bool = True, vfs: str | None = None) -> None:
        """Name the file; nothing is opened yet.

        Args:
            path: The SQLite file.
            durable: Whether a transaction is on disk, fsynced, when it returns.
            vfs: SQLite's way to the disk, by name; None for the operating system's (tests: a disk that fails).
        """
        self.path = path
        self._durable = durable
        self._vfs = vfs
        self._lock = threading.RLock()
        self._db: apsw.Connection | None = None

    @classmethod
    def create(cls, path: Path, *, stream_class: str, vfs: str | None = None) -> None:
        """Make the file with its schema and the first stream; one that is there already is left alone.

        Raises:
            OutboxUnavailable: It cannot be made.
        """
        store = cls(path, vfs=vfs)
        try:
            store._db = store._connect(apsw.SQLITE_OPEN_CREATE)
            with store.transaction() as db:
                if not db.pragma("user_version"):
                    db.execute(_SCHEMA)
                    db.execute("INSERT INTO stream VALUES (?, ?, 0, 0, 0, 0, 0)", (stream_class, new_stream_id()))
                    db.pragma("user_version", SCHEMA_VERSION)
        except apsw.Error as exc:
            raise _translated(exc, path) from exc
        finally:
            store.close()

    @contextmanager
    def transaction(self) -> Iterator[apsw.Connection]:
        """Write: committed when the block ends, rolled back when it raises.

        Raises:
            OutboxFull: The disk is full.
            OutboxUnavailable: Any other error of the file; nothing of the block was stored.
        """
        with self._lock, self._errors() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except apsw.Error:
                raise
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    def rows(self, sql: str, *bindings: Any) -> list[tuple[Any, ...]]:
        """Read all rows of a query.

        Raises:
            OutboxUnavailable: The file cannot be read.
        """
        with self._lock, self._errors() as db:
            return list(db.execute(sql, bindings))

    def data_version(self) -> int:
        """A number that changes when another connection has committed (cheap: no disk)."""
        with self._lock, self._errors() as db:
            return int(db.pragma("data_version"))

    def shrink(self) -> None:
        """Give free pages back to the file system, a step, if there are many."""
        with self._lock, self._errors() as db:
            if db.pragma("freelist_count") > _FREE_PAGES:
                db.execute(f"PRAGMA incremental_vacuum({_SHRINK_PAGES})").fetchall()

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self._lock:
            db, self._db = self._db, None
            if db is not None:
                with suppress(apsw.Error):  # a disk that fails now fails the next use too
                    db.close(True)

    @contextmanager
    def _errors(self) -> Iterator[apsw.Connection]:
        try:
            if self._db is None:
                self._db = self._connect()
            yield self._db
        except apsw.Error as exc:
            self.close()
            raise _translated(exc, self.path) from exc

    def _connect(self, flags: int = 0) -> apsw.Connection:
        db = apsw.Connection(os.fspath(self.path), flags=apsw.SQLITE_OPEN_READWRITE | flags, vfs=self._vfs)
        db.set_busy_timeout(BUSY_TIMEOUT_MS)
        if flags:
            db.pragma("auto_vacuum", "INCREMENTAL")
        db.pragma("journal_mode", "WAL")
        db.pragma("synchronous", "FULL" if self._durable else "NORMAL")
        db.pragma("journal_size_limit", _WAL_LIMIT_BYTES)
        if db.pragma("user_version") > SCHEMA_VERSION:
            db.close()
            raise OutboxUnavailable(f"{self.path}: written by a newer edge-agent; expected schema {SCHEMA_VERSION}")
        return db


def new_stream_id() -> str:
    """Make the id of a stream (UUIDv7)."""
    return uuid7(time.time_ns() // 1_000_000, os.urandom(10))


def _translated(exc: apsw.Error, path: Path) -> AgentError:
    if isinstance(exc, apsw.FullError):
        return OutboxFull(f"{path}: the disk is full, the event was not taken")
    if isinstance(exc, apsw.CantOpenError):
        return OutboxUnavailable(f"{path}: cannot be opened; expected the outbox that `edge-agent init` makes")
    return OutboxUnavailable(f"{path}: {exc}")
