"""The world of the model test of the MQTT server: a loop of its own time, and a disk that can be held.

No real time: the loop knows when nothing is left to do, and its clock moves only when a test says so.
"""

from __future__ import annotations

import asyncio
import selectors
from pathlib import Path

from mqtt_kit import crashed

from gateway.errors import BusUnavailable
from gateway.storage import open_storage

UNIX_S = 1_700_000_000.0


class ModelLoop(asyncio.SelectorEventLoop):
    """A loop whose time stands still until it is told to pass.

    Attributes:
        waiting: For so many calls of threads: to be idle means to wait for them then.
    """

    def __init__(self) -> None:
        self.waiting = 0
        self._now_s = 1000.0
        self._left_s = 0.0
        super().__init__(_Idle(self))

    def time(self) -> float:
        return self._now_s

    def settle(self, seconds: float = 0.0) -> None:
        """Run until nothing is left to do, and so many seconds have passed."""
        self._left_s = seconds
        self.run_forever()

    def turn(self, count: int) -> None:
        """Run so many turns only."""
        for _ in range(count):
            self.stop()
            self.run_forever()

    def idle(self, timeout_s: float | None) -> None:
        """Nothing is left to do before a timer is due: let its time come, or stop."""
        step_s = self._left_s if timeout_s is None else min(timeout_s, self._left_s)
        if not self._left_s:
            self.stop()
        self._now_s += step_s
        self._left_s -= step_s


class _Idle(selectors.DefaultSelector):
    def __init__(self, loop: ModelLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout=None):
        if timeout == 0:
            return []
        if self._loop.waiting:
            return super().select(5)
        self._loop.idle(timeout)
        return []


class Disk:
    """A real store whose writes can be held back, and fail; what was under way at a crash may have been written or not.

    In a folder it is SQLite's, and a crash leaves a copy of what its file and its log held at that moment; without one it
    is in memory.
    """

    def __init__(self, loop: ModelLoop, folder: Path | None = None) -> None:
        self._loop, self._folder = loop, folder
        url = f"sqlite:///{folder}/bus.db" if folder else "memory://"
        self._storage = self._run(open_storage(url, min_free_disk_bytes=0))
        self.gate = asyncio.Event()
        self.gate.set()
        self.is_single = False  # whether the gate closes behind the next write
        self.failures: list[bool] = []  # of the next writes: whether it is written all the same
        self.under_way = None
        self.is_dead = False

    async def get(self, key):
        return await self._wait(self._storage.state.get(key))

    async def scan(self, prefix, after, limit):
        return await self._wait(self._storage.state.scan(prefix, after, limit))

    async def write(self, changes) -> None:
        if self.is_dead:
            raise BusUnavailable("its gateway has been killed")
        self.under_way = changes
        await asyncio.sleep(0)  # no disk is done within the turn, though memory is
        await self.gate.wait()
        if self.is_single:
            self.is_single = False
            self.gate.clear()
        if not self.failures:
            await self._store(changes)
        elif self.failures.pop():
            await self._store(changes)
            raise BusUnavailable("written, but nobody can tell")
        else:
            raise BusUnavailable("not written")
        self.under_way = None

    async def _store(self, changes) -> None:
        await self._wait(self._storage.state.write(changes))

    def crash(self, *, lands: bool) -> Disk:
        """What is there after a crash."""
        if lands and self.under_way:
            self._run(self._storage.state.write(self.under_way))
        copy = self._folder and crashed(self._folder)
        kept = {entry.key: entry.value for entry in self._entries("")}
        self.close()
        disk = Disk(self._loop, copy)
        if not copy:
            disk._run(disk._storage.state.write(kept))
        return disk

    @property
    def bus(self):
        return self._storage.bus

    def session_keys(self) -> list[str]:
        return [entry.key for entry in self._entries("session/")]

    def close(self) -> None:
        self._run(self._storage.aclose())

    def _entries(self, prefix: str):
        return self._run(self._storage.state.scan(prefix, "", 10_000))

    def _run(self, work):
        return self._loop.run_until_complete(self._wait(work))

    async def _wait(self, work):
        self._loop.waiting += 1
        try:
            return await work
        finally:
            self._loop.waiting -= 1
