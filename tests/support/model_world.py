"""The world of the model test of the MQTT server: a loop of its own time, a disk that can be held, links without sockets.

No real time: the loop knows when nothing is left to do, and its clock moves only when a test says so.
"""

from __future__ import annotations

import asyncio
import selectors
from collections import deque
from pathlib import Path

from mqtt_kit import POLICY, crashed
from mqtt_tokens import AUDIENCE, ISSUER

from gateway.devices import AuthSettings, GatewayAuthenticator, Registry
from gateway.errors import BusUnavailable
from gateway.ingest import Pipeline
from gateway.mqtt.codec import Decoder
from gateway.mqtt.connection import Connection
from gateway.mqtt.listeners import MqttServer
from gateway.mqtt.settings import ServerSettings
from gateway.storage import open_storage

UNIX_S = 1_700_000_000.0
LIFETIME_S = 1 << 30  # of tokens: the model's time runs fast


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


class Link(asyncio.Transport):
    """A connection without a socket.

    Attributes:
        packets: What the server wrote and the client has not read.
        is_cut: Whether it is closed; what the server wrote before it closed can still be read.
        is_doomed: Whether the client broke a rule that costs the connection.
    """

    def __init__(self, hub, version) -> None:
        super().__init__()
        self.packets = deque()
        self.is_cut = self.is_doomed = self._is_paused = False
        self._decoder = Decoder(role="client", version=version)
        self._unread: list[bytes] = []
        self._loop = hub.loop
        self.connection = Connection(hub)
        self.connection.connection_made(self)

    def feed(self, data) -> None:
        self._unread.append(data)
        self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        while self._unread and not self._is_paused and not self.is_cut:
            self.connection.data_received(self._unread.pop(0))

    def check(self) -> None:
        """Now that the server has read everything: what breaks a rule has cost the connection."""
        assert self.is_cut or self._unread or not self.is_doomed, "an answer of the wrong kind was taken"

    def lose(self) -> None:
        """The network is gone, and everything that was in it."""
        self.packets.clear()
        self.abort()

    def write(self, data) -> None:
        if not self.is_cut:
            self.packets += self._decoder.feed(data)

    def abort(self) -> None:
        if not self.is_cut:
            self.is_cut = True
            self._loop.call_soon(self.connection.connection_lost, None)

    close = write_eof = abort

    def get_extra_info(self, name, default=None):
        return ("127.0.0.1", 1) if name == "peername" else default

    def is_closing(self) -> bool:
        return self.is_cut

    def can_write_eof(self) -> bool:
        return True

    def set_write_buffer_limits(self, high=None, low=None) -> None:
        pass

    def pause_reading(self) -> None:
        self._is_paused = True

    def resume_reading(self) -> None:
        self._is_paused = False
        self._loop.call_soon(self._deliver)


class Gateway:
    """The server on what a disk holds."""

    def __init__(self, loop: ModelLoop, disk: Disk) -> None:
        self.loop, self.disk = loop, disk

        registry, auth = Registry(disk, POLICY), AuthSettings(audience=AUDIENCE, max_lifetime_s=LIFETIME_S)
        self.server = MqttServer(
            ServerSettings(listen=()),
            authenticator=GatewayAuthenticator(registry, POLICY, disk, auth, issuers=[ISSUER], clock=self._unix_s),
            ingest=Pipeline(disk.bus, registry, audience=AUDIENCE, open_keys=[], processes=1),
            state=disk,
            stored_through=disk.bus.stored_through,
            clock=self._unix_s,
        )
        loop.run_until_complete(self.server.start())
        self.hub = self.server._hub

    def _unix_s(self) -> float:
        return UNIX_S + self.loop.time()

    def kill(self) -> None:
        """End at once: nothing that runs comes to its end, and nothing more is written."""
        self.disk.is_dead = True
        for connection in tuple(self.hub.sockets):
            connection._transport.lose()
        self.hub.wheel.stop()
        self._cancel()
        self.loop.settle()
        while self._cancel():  # connections that are lost begin some
            self.loop.settle()

    def _cancel(self) -> bool:
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        return bool(tasks)
