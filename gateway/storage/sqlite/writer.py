"""The writer thread: owns the only write connection; all that waits becomes one commit.

How a commit goes: drain the queue, BEGIN, decide about every batch, run the other calls, write, COMMIT, and answer all
callers with one `call_soon_threadsafe`. A storage error answers everybody with BusUnavailable (or BusFull), throws the
connection and everything derived from it away and opens the file anew; nothing is retried as success (promise P4).
The size of the queue is bounded by its callers, who wait for their answers.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import apsw
import structlog

from gateway.errors import BusFull, BusUnavailable, GatewayError, Unavailable
from gateway.ports.bus import Batch, Outcome
from gateway.ports.state import Change
from gateway.storage import StorageConfig
from gateway.storage.sqlite.append import Log
from gateway.storage.sqlite.room import fullness
from gateway.storage.sqlite.schema import checkpoint, discard, open_database

COMMIT_BYTES: Final = 8 << 20  # bodies a commit: a larger one makes everybody in it wait
COMMIT_CALLS: Final = 4096
WAL_PAGES: Final = 1024  # 4 MiB; longest pause at 2, 8 and 64 MiB: 18, 30-67 and 94 ms, throughput the same
IDLE_S: Final = 0.5  # without work this long: checkpoint
ROOM_S: Final = 1.0  # between two looks at the disk and at the size of the store
REOPEN_S: Final = (0.05, 5.0)  # first and longest delay between attempts to reopen

log = structlog.get_logger()
T = TypeVar("T")


@dataclass(slots=True)
class Transaction:
    """What a call may use while its commit is open; `changes` are told to watchers after it."""

    connection: apsw.Connection
    log: Log
    now_s: float
    changes: list[Change] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Work:
    future: asyncio.Future[Any]
    batches: Sequence[Batch] = ()
    call: Callable[[Transaction], Any] | None = None


class _Poison(Exception):
    """A call failed by its own fault, perhaps half way: its commit starts again without it."""

    def __init__(self, work: _Work) -> None:
        super().__init__()
        self.work = work


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """Whom the writer tells: `committed` runs on the loop after each commit, `reopening` in the thread before one."""

    committed: Callable[[int, Sequence[Change]], None]
    reopening: Callable[[], None]


# The statement's fault, not the storage's: the connection is sound and only this call fails.
_CALLERS_FAULT = (apsw.ConstraintError, apsw.TooBigError, apsw.MismatchError, apsw.RangeError)


class Writer:
    """Group commit over one SQLite file."""

    def __init__(self, path: Path, vfs: str | None, config: StorageConfig, hooks: Hooks) -> None:
        self._path, self._vfs, self._config, self._hooks = path, vfs, config, hooks
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Work] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._wal_pages = 0
        self._full = ""
        self._room_checked = float("-inf")
        self._delay_s, self._retry_at = REOPEN_S[0], 0.0
        self._connection: apsw.Connection | None = None
        self._log: Log
        self._thread = threading.Thread(target=self._run, name="storage-writer", daemon=True)

    def open(self) -> int:
        """Open the file (blocking) and start the thread; tells the last position.

        Raises:
            apsw.Error: It cannot be opened.
            ConfigError: It is of another version, or no store.
        """
        self._open()
        self._thread.start()
        return self._log.end

    async def append(self, batches: Sequence[Batch]) -> list[Outcome]:
        """Commit batches together with whatever else waits (contract: `EventBus.append`)."""
        return cast("list[Outcome]", await self._submit(_Work(self._loop.create_future(), batches=batches)))

    async def call(self, call: Callable[[Transaction], T]) -> T:
        """Run a function inside the next commit; durable on return.

        A GatewayError it raises must come before its first write: it does not roll back.
        """
        return cast("T", await self._submit(_Work(self._loop.create_future(), call=call)))

    def _submit(self, work: _Work) -> asyncio.Future[Any]:
        with self._wake:
            if self._closed:
                raise BusUnavailable("the store is closed")
            self._queue.append(work)
            self._wake.notify()
        return work.future

    def close(self) -> None:
        """Finish what was accepted, copy the log into the database, close. Blocks; a second call only waits."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    # -- in the thread

    def _run(self) -> None:
        while True:
            works = self._drain()
            if works:
                self._serve(works)
            elif self._closed:
                break
            if self._connection is None:
                self._reopen_when_due()
            elif self._wal_pages > WAL_PAGES or (not works and self._wal_pages):
                self._checkpoint()
        self._finish()

    def _drain(self) -> list[_Work]:
        """Take all that waits, up to a commit's size; an empty list after a pause, or at the end."""
        works: list[_Work] = []
        size = 0
        with self._wake:
            if not self._queue and not self._closed:
                self._wake.wait(self._pause_s())
            while self._queue and size < COMMIT_BYTES and len(works) < COMMIT_CALLS:
                works.append(self._queue.popleft())
                size += sum(len(batch.body) for batch in works[-1].batches)
        return works

    def _pause_s(self) -> float | None:
        if self._connection is None:
            return max(0.0, self._retry_at - time.monotonic())
        return IDLE_S if self._wal_pages else None

    def _serve(self, works: list[_Work]) -> None:
        changes: list[Change] = []
        answers: list[tuple[_Work, Any]] = []
        while works:
            if self._connection is None:
                answers += [(work, BusUnavailable("the store failed and is being opened anew")) for work in works]
                break
            try:
                answers += self._commit(self._connection, works, changes)
            except _Poison as exc:
                changes.clear()
                works = [work for work in works if work is not exc.work]
                answers.append((exc.work, exc.__cause__))
                continue
            except Exception as exc:  # noqa: BLE001  # whatever it was: nobody may wait for ever, nothing is believed
                changes.clear()
                answers += [(work, _translate(work, exc)) for work in works]
                self._abandon(exc)
            break
        self._answer(answers, changes)

    def _commit(
        self, connection: apsw.Connection, works: list[_Work], changes: list[Change]
    ) -> list[tuple[_Work, Any]]:
        self._check_room(connection)
        batches = [] if self._full else [batch for work in works for batch in work.batches]
        now_s = self._config.clock()
        transaction = Transaction(connection, self._log, now_s, changes)
        connection.execute("BEGIN IMMEDIATE")
        try:
            self._log.begin(batches, now_s=now_s)
            answers = [(work, self._do(work, transaction)) for work in works]
            self._log.flush()
        except _Poison:
            connection.execute("ROLLBACK")
            self._log = Log(connection, window_s=self._config.deduplication_window_s)
            raise
        connection.execute("COMMIT")
        return answers

    def _do(self, work: _Work, transaction: Transaction) -> Any:
        try:
            if work.call is not None:
                return work.call(transaction)
            if self._full:
                return BusFull(self._full)
            return [self._log.add(batch) for batch in work.batches]
        except GatewayError as exc:
            return exc
        except _CALLERS_FAULT as exc:
            raise _Poison(work) from exc
        except apsw.Error:
            raise
        except Exception as exc:
            raise _Poison(work) from exc

    def _check_room(self, connection: apsw.Connection) -> None:
        """At most once a second: is there room for appends?"""
        now = time.monotonic()
        if now - self._room_checked >= ROOM_S:
            self._room_checked = now
            self._full = fullness(connection, self._path, self._config)

    def _answer(self, answers: list[tuple[_Work, Any]], changes: list[Change]) -> None:
        end = self._log.end if self._connection is not None else 0
        try:
            self._loop.call_soon_threadsafe(self._resolve, answers, end, changes)
        except RuntimeError:  # the loop was closed without closing the store: nobody is left to be told
            log.warning("answers_dropped", count=len(answers))

    def _resolve(self, answers: list[tuple[_Work, Any]], end: int, changes: list[Change]) -> None:
        for work, answer in answers:
            if work.future.done():  # its caller was cancelled; the work was done all the same
                continue
            if isinstance(answer, BaseException):
                work.future.set_exception(answer)
            else:
                work.future.set_result(answer)
        if end:
            self._hooks.committed(end, changes)

    # -- the connection

    def _open(self) -> None:
        connection = open_database(self._path, self._vfs, self._config.url)
        try:
            self._log = Log(connection, window_s=self._config.deduplication_window_s)
        except BaseException:
            discard(connection)
            raise
        connection.set_wal_hook(self._note_wal)
        self._connection, self._wal_pages = connection, 0

    def _note_wal(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        self._wal_pages = pages
        return apsw.SQLITE_OK

    def _abandon(self, cause: Exception) -> None:
        """After a storage error nothing in memory is believed any more: connection, tail and caches go."""
        log.error("storage_failed", path=os.fspath(self._path), cause=str(cause))
        self._hooks.reopening()
        if self._connection is not None:
            discard(self._connection)
            self._connection = None
        self._reopen()

    def _reopen_when_due(self) -> None:
        if time.monotonic() >= self._retry_at:
            self._reopen()

    def _reopen(self) -> None:
        try:
            self._open()
        except (apsw.Error, OSError, GatewayError) as exc:
            log.warning("storage_reopen_failed", path=os.fspath(self._path), cause=str(exc), again_s=self._delay_s)
            self._retry_at = time.monotonic() + self._delay_s
            self._delay_s = min(self._delay_s * 2, REOPEN_S[1])
        else:
            self._delay_s = REOPEN_S[0]
            log.info("storage_reopened", path=os.fspath(self._path))

    def _checkpoint(self) -> None:
        assert self._connection is not None
        self._wal_pages = 0  # a passive checkpoint that a reader held up is tried again after the next commit
        try:
            checkpoint(self._connection, "PASSIVE")
        except apsw.Error as exc:
            self._abandon(exc)

    def _finish(self) -> None:
        if self._connection is None:
            return
        try:
            checkpoint(self._connection, "TRUNCATE")
        except apsw.Error as exc:  # everything is in the write-ahead log; the next start copies it
            log.warning("checkpoint_failed", path=os.fspath(self._path), cause=str(exc))
        discard(self._connection)


def _translate(work: _Work, exc: Exception) -> Unavailable:
    if work.batches and isinstance(exc, apsw.FullError):
        error: Unavailable = BusFull(f"the disk is full: {exc}")
    else:
        error = BusUnavailable(f"the store failed: {exc}")
    error.__cause__ = exc
    return error
