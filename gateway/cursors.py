"""Subscriptions of the bus that MQTT clients hold: opened, delivered, and removed when nobody has come back in time.

Part of the composition root: it joins `gateway.mqtt`, which brings the deliverers, with `gateway.dispatch`, which
delivers. That one was retired is kept in the state store (`cursor/{name}`, Unix seconds), so its time runs on while the
gateway does not.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from gateway.dispatch.dispatcher import Dispatcher
from gateway.errors import NotFound, SubscriptionDiffers, Unavailable
from gateway.ports.bus import End
from gateway.ports.cursors import NAME_PREFIX, SESSION_PREFIX, Cursor
from gateway.ports.subscriptions import SubscriptionSpec
from gateway.ports.target import Deliverer
from gateway.rules.handling import HandlerSettings
from gateway.storage import Storage

log = structlog.get_logger()

KEEP_S: Final = 7 * 86_400.0  # architecture, "Ports"
_KEY: Final = "cursor/"
_LOOK_S: Final = 60.0
_STOP_S: Final = 5.0  # nothing waits for a subscriber by then: its connections are closed
_PAGE: Final = 256

SETTINGS: Final = HandlerSettings(
    concurrency=64,  # devices at a time: covers a round trip of 10 ms at 6,400 events/s
    give_up_after_s=math.inf,  # a subscriber may be away as long as its cursor is kept
    window_events=1_000,
    window_bytes=4 << 20,
)


Ending = Callable[[str], Awaitable[None]]
"""Retires or removes the cursor of a name."""


class BusCursors:
    """Opens cursors (`Cursors`).

    Args:
        storage: The bus, and where cursors are kept.
        dispatchers: Shown to operators; those of cursors are added while they are open.
        keep_s: A retired cursor is removed after so many seconds.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        storage: Storage,
        dispatchers: dict[str, Dispatcher],
        *,
        keep_s: float = KEEP_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._storage = storage
        self._tasks: asyncio.TaskGroup | None = None
        self._dispatchers = dispatchers
        self._keep_s = keep_s
        self._clock = clock
        self._open: dict[str, _Cursor] = {}
        self._owed: dict[str, Ending] = {}  # what the store did not take when they were closed
        self._lock = asyncio.Lock()  # none is removed while it is opened

    def start(self, tasks: asyncio.TaskGroup) -> asyncio.Task[None]:
        """Run dispatchers in a group from now on, and, in the task that is returned, remove what is due."""
        self._tasks = tasks
        return tasks.create_task(self._run(), name="cursors")

    async def open(self, spec: SubscriptionSpec, deliverer: Deliverer) -> Cursor:
        """Deliver to MQTT clients (see `Cursors.open`)."""
        async with self._lock:
            return await self._opened(spec, deliverer)

    async def _opened(self, spec: SubscriptionSpec, deliverer: Deliverer) -> Cursor:
        assert self._tasks is not None
        subscriptions = self._storage.subscriptions
        try:
            await subscriptions.open(spec, End())
        except SubscriptionDiffers:  # of an earlier version of this program
            await subscriptions.replace(spec)
        await self._storage.state.delete(_KEY + spec.name)
        dispatcher = Dispatcher(
            spec,
            SETTINGS,
            bus=self._storage.bus,
            subscriptions=subscriptions,
            deliverer=deliverer,
        )
        task = self._tasks.create_task(_run(dispatcher), name=f"dispatch-{spec.name}")
        self._dispatchers[spec.name] = dispatcher
        cursor = self._open[spec.name] = _Cursor(self, spec.name, dispatcher, task)
        self._owed.pop(spec.name, None)
        log.info("cursor_opened", handler=spec.name)
        return cursor

    async def settle(self) -> None:
        """What became of those that nobody opened after a start (see `Cursors.settle`)."""
        for state in await self._storage.subscriptions.list():
            name = state.spec.name
            if not name.startswith(NAME_PREFIX) or name in self._open:
                continue
            if name.startswith(SESSION_PREFIX):
                await self.remove(name)
            elif await self._storage.state.get(_KEY + name) is None:
                await self.retire(name)

    async def prune(self) -> int:
        """Remove what was retired long enough ago, and do what is owed to others; tell how many were removed in time."""
        for name, end in tuple(self._owed.items()):
            async with self._lock:
                if self._owed.pop(name, None):
                    await self.end(name, end)
        after, count, state = "", 0, self._storage.state
        while page := await state.scan(_KEY, after, _PAGE):
            after = page[-1].key
            for entry in page:
                if self._clock() >= float(entry.value) + self._keep_s:
                    count += await self._remove_closed(entry.key.removeprefix(_KEY))
        return count

    async def _remove_closed(self, name: str) -> bool:
        async with self._lock:
            is_closed = name not in self._open
            if is_closed:
                await self.remove(name)
        return is_closed

    async def aclose(self) -> None:
        """Deliver nothing more; all stay where they are. Subscribers must have been let go."""
        for cursor in tuple(self._open.values()):
            await cursor.aclose()

    async def end(self, name: str, how: Ending) -> None:
        """Retire or remove one that is not open, now or when the store takes it: kept, it would hold back retention."""
        try:
            await how(name)
        except Unavailable as exc:
            log.warning("cursor_not_ended", handler=name, reason=str(exc))
            self._owed[name] = how

    async def retire(self, name: str) -> None:
        """Let the time of one that is not open begin to run."""
        await self._storage.state.put(_KEY + name, str(self._clock()).encode(), expect=None)
        log.info("cursor_retired", handler=name, keep_s=self._keep_s)

    async def remove(self, name: str) -> None:
        """Forget one that is not open."""
        await self._storage.subscriptions.remove(name)
        await self._storage.state.delete(_KEY + name)
        log.info("cursor_removed", handler=name)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                await self.prune()
            except Unavailable as exc:
                log.warning("cursors_not_pruned", reason=str(exc))

    def forget(self, name: str) -> None:
        """It is not open any more."""
        self._open.pop(name, None)
        self._dispatchers.pop(name, None)


class _Cursor:
    """One that is open (`Cursor`)."""

    def __init__(self, cursors: BusCursors, name: str, dispatcher: Dispatcher, task: asyncio.Task[None]) -> None:
        self._cursors, self._name, self._dispatcher, self._task = cursors, name, dispatcher, task

    def wake(self) -> None:
        self._dispatcher.end_pause()

    async def aclose(self) -> None:
        await self._dispatcher.stop(_STOP_S)
        await asyncio.wait([self._task])  # a dispatcher that had not begun ends without having been asked
        self._cursors.forget(self._name)

    async def retire(self) -> None:
        await self.aclose()
        await self._cursors.end(self._name, self._cursors.retire)

    async def remove(self) -> None:
        await self.aclose()
        await self._cursors.end(self._name, self._cursors.remove)


async def _run(dispatcher: Dispatcher) -> None:
    try:
        await dispatcher.run()
    except NotFound:
        log.warning("cursor_lost", reason="its subscription was removed")
