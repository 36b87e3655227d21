"""Read connections and the threads that use them; a read holds no transaction once it has returned."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

import apsw

from gateway.errors import BusUnavailable
from gateway.storage.sqlite.schema import discard, open_connection

THREADS: Final = 2

T = TypeVar("T")


class Readers:
    """A few threads, each read with a connection of its own for as long as it lasts."""

    def __init__(self, path: Path, vfs: str | None) -> None:
        self._path, self._vfs = path, vfs
        self._pool = ThreadPoolExecutor(THREADS, "storage-reader")
        self._idle: list[apsw.Connection] = []
        self._generation = 0
        self._lock = threading.Lock()
        self._closed = False

    async def run(self, read: Callable[[apsw.Connection], T]) -> T:
        """Run a read in a thread.

        Raises:
            BusUnavailable: The file could not be read, or the store is closed.
        """
        if self._closed:
            raise BusUnavailable("the store is closed")
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._run, read)

    def forget(self) -> None:
        """Close the connections (those in use: after their read); the next reads open the file anew."""
        with self._lock:
            self._generation += 1
            idle, self._idle = self._idle, []
        for connection in idle:
            discard(connection)

    def close(self) -> None:
        """Finish reads, close everything; blocks."""
        self._closed = True
        self._pool.shutdown()
        self.forget()

    def _run(self, read: Callable[[apsw.Connection], T]) -> T:
        with self._lock:
            generation = self._generation
            connection = self._idle.pop() if self._idle else None
        try:
            if connection is None:
                connection = open_connection(self._path, self._vfs, readonly=True)
            result = read(connection)
        except apsw.Error as exc:
            if connection is not None:
                discard(connection)
            raise BusUnavailable(f"the store cannot be read: {exc}") from exc
        except BaseException:
            self._put_back(connection, generation)
            raise
        self._put_back(connection, generation)
        return result

    def _put_back(self, connection: apsw.Connection | None, generation: int) -> None:
        if connection is None:
            return
        with self._lock:
            if generation == self._generation:
                self._idle.append(connection)
                return
        discard(connection)
