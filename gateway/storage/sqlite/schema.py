"""The database file: how it is opened, created, owned by one process and recognised.

Knows settings of connections and the schema's version; what is in the tables is known beside the code that uses them.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import apsw

from gateway.errors import ConfigError

VERSION: Final = 1
BUSY_TIMEOUT_MS: Final = 5000  # a reader that starts while the writer recovers the WAL
REWRITE_BYTES: Final = 1 << 16  # SQLite's unix VFS writes at most 128 KiB - 1 at a time

# Rows a statement. APSW takes the GIL back at every step, so a statement a row waits behind a busy loop thread each
# time. Measured (1,000 rows of 256 bytes, 2 cores), idle / beside a busy thread, worst commit: these chunks 540,000
# rows/s / 34 ms; executemany 580,000 / 147 ms; one json_each with substr of a joined body 230,000 / 20 ms; carray
# 300,000 / 34 ms. Larger chunks gain nothing and exceed what APSW's statement cache keeps (16 KiB of SQL).
CHUNKS: Final = (256, 64, 16, 4, 1)


def open_connection(path: Path, vfs: str | None, *, readonly: bool = False) -> apsw.Connection:
    """Open one connection with the settings that durability rests on.

    Raises:
        apsw.Error: The file cannot be opened.
    """
    flags = apsw.SQLITE_OPEN_READONLY if readonly else apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
    connection = apsw.Connection(str(path), flags=flags, vfs=vfs)
    try:
        _set_up(connection, path, readonly=readonly)
    except BaseException:
        discard(connection)
        raise
    return connection


def _set_up(connection: apsw.Connection, path: Path, *, readonly: bool) -> None:
    connection.set_busy_timeout(BUSY_TIMEOUT_MS)
    # A connection that is closed after a failed fsync must not copy anything into the database on its way out.
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    if readonly:
        return
    connection.pragma("auto_vacuum", 2)  # incremental; has effect on a new file only
    if connection.pragma("journal_mode", "wal") != "wal":
        raise apsw.CantOpenError(f"{path}: the file system cannot hold a write-ahead log")
    connection.pragma("synchronous", "FULL")
    connection.pragma("wal_autocheckpoint", 0)  # checkpoints inside commits make the p99


def open_database(path: Path, vfs: str | None, url: str) -> apsw.Connection:
    """Open the write connection of a store, creating or recognising its schema; all of it is on disk on return.

    Raises:
        apsw.Error: The file cannot be read or written.
        ConfigError: It is of a newer version, or no store.
    """
    _rewrite_log(path, vfs)
    connection = open_connection(path, vfs)
    try:
        _recognise(connection, url)
        checkpoint(connection, "TRUNCATE")
        _sync_directory(path.parent)
    except BaseException:
        discard(connection)
        raise
    return connection


def discard(connection: apsw.Connection) -> None:
    """Close a connection that failed, or that is only read with; errors of closing change nothing."""
    with suppress(apsw.Error):
        connection.close(True)


def _rewrite_log(path: Path, vfs: str | None) -> None:
    """Write the write-ahead log over itself and sync it.

    After a failed fsync the page cache shows what the disk never got, and the kernel takes it for written: the next
    fsync succeeds and makes nothing durable. Recovery would believe in such frames, answer their repetition with
    "stored", and a checkpoint would mix them into the database. Written anew they are on the disk, or this fails too
    (promise P4). The same bytes in the same place: a crash half way, or a reader, meets nothing new.
    """
    wal = path.with_name(path.name + "-wal")
    if not wal.exists():
        return
    file = apsw.VFSFile(vfs or "", str(wal), [apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_READWRITE, 0])
    try:
        size = file.xFileSize()
        for offset in range(0, size, REWRITE_BYTES):
            file.xWrite(file.xRead(min(REWRITE_BYTES, size - offset), offset), offset)
        file.xSync(apsw.SQLITE_SYNC_NORMAL)
    finally:
        file.xClose()


def checkpoint(connection: apsw.Connection, mode: str) -> None:
    """Copy the write-ahead log into the database ("PASSIVE": as far as readers let it; "TRUNCATE": all of it).

    Raises:
        apsw.Error: It could not be written; BusyError: a reader stood in the way of TRUNCATE.
    """
    busy, _, _ = connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()  # type: ignore[misc]  # one row, always
    if busy and mode == "TRUNCATE":
        raise apsw.BusyError("a reader holds the write-ahead log")


def _recognise(connection: apsw.Connection, url: str) -> None:
    with connection:
        tables = scalar(connection, "SELECT count(*) FROM sqlite_schema")
        if not tables:
            connection.execute(files(__package__).joinpath("schema.sql").read_text())
            return
        if not scalar(connection, "SELECT count(*) FROM sqlite_schema WHERE name = 'meta'"):
            raise ConfigError("bus.url", url, "a store of Lockgate; this file is another program's database")
        version = scalar(connection, "SELECT value FROM meta WHERE key = 'version'")
    if version != VERSION:
        raise ConfigError(
            "bus.url", url, f"a store of version {VERSION}; this one has version {version}, written by a newer Lockgate"
        )


def _sync_directory(directory: Path) -> None:
    """Make a new file's name durable, as its content is."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(path: Path, url: str) -> int:
    """Become the one process that writes this file; returns the descriptor that holds the lock until it is closed.

    Raises:
        ConfigError: Another process has it (the message tells its id), or the directory cannot be written.
    """
    try:
        descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise ConfigError("bus.url", url, f"a file in a directory that can be written ({exc.strerror})") from exc
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        owner = os.read(descriptor, 20).decode() or "unknown"
        os.close(descriptor)
        raise ConfigError("bus.url", url, f"a store that no other process has open; process {owner} has this") from exc
    os.truncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())
    return descriptor


def scalar(connection: apsw.Connection, sql: str, bindings: tuple[Any, ...] = ()) -> Any:
    """Run a query for one value; None without a row."""
    row: Any = connection.execute(sql, bindings).fetchone()
    return None if row is None else row[0]


def set_meta(connection: apsw.Connection, key: str, value: int) -> None:
    """Remember a number of the store."""
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))


def insert(connection: apsw.Connection, into: str, rows: list[tuple[Any, ...]]) -> None:
    """Insert rows with few statements; `into` is what comes before VALUES."""
    start = 0
    for size in CHUNKS:
        while len(rows) - start >= size:
            values = [value for row in rows[start : start + size] for value in row]
            connection.execute(into + _values(len(rows[0]), size), values)
            start += size


@cache
def _values(columns: int, rows: int) -> str:
    row = "(" + ",".join("?" * columns) + ")"
    return " VALUES " + ",".join([row] * rows)
