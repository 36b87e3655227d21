"""What a turn changes in durable sessions, written at once; and what has to wait until it is written.

Owns the order: one write is under way at a time, all that changes meanwhile is the next one, and `then` calls back after
the write that holds everything changed before it. So the disk always shows the end of some turn: no acknowledgement
precedes what it stands for, and no two sessions disagree. What could not be written stays, and is tried again until it
is. It does not know what the values mean.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from gateway.errors import GatewayError
from gateway.mqtt.turns import Tasks
from gateway.ports.state import StateStore

log = structlog.get_logger()

WRITE_S: Final = 10.0
RETRY_S: Final = 0.5

Then = Callable[[bool], object]
"""Called once, with whether everything before it is durable."""


class Journal:
    """Gathers changes of keys, and who waits for them.

    Attributes:
        count: Changes so far: who compares two readings knows whether anything durable happened in between.
        is_failing: Whether the last write failed: what begins now had better be refused.
    """

    def __init__(self, store: StateStore, tasks: Tasks) -> None:
        self._store = store
        self._tasks = tasks
        self._changes: dict[str, bytes | None] = {}
        self._waiting: list[Then] = []
        self._is_running = False
        self.count = 0
        self.is_failing = False

    def put(self, key: str, value: bytes | None) -> None:
        """Have a key written, or removed (None), at the end of this turn."""
        self._changes[key] = value
        self.count += 1
        self._start()

    def then(self, call: Then) -> None:
        """Call back when everything changed so far is durable, or could not be written; in the order of these calls."""
        if self._is_running:
            self._waiting.append(call)
        else:
            call(True)

    def surely(self, call: Callable[[], object]) -> None:
        """Call back when everything changed so far is durable, however long that takes; in the order of these calls."""
        self.then(lambda is_durable: call() if is_durable else self.surely(call))

    async def settled(self) -> bool:
        """Wait until everything changed so far is durable; False if it could not be written."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def tell(is_durable: bool) -> None:
            if not future.done():
                future.set_result(is_durable)

        self.then(tell)
        return await future

    def _start(self) -> None:
        if not self._is_running:
            self._is_running = True
            self._tasks.start(self._run(), name="sessions")

    async def _run(self) -> None:
        try:
            while self._changes or self._waiting:
                await self._write_all()
        finally:
            self._is_running = False

    async def _write_all(self) -> None:
        changes, self._changes = self._changes, {}
        waiting, self._waiting = self._waiting, []
        is_durable = not changes or await self._write(changes)
        self.is_failing = not is_durable
        if not is_durable:
            self._changes = changes | self._changes
        for call in waiting:
            _call(call, is_durable)
        if not is_durable:
            await asyncio.sleep(RETRY_S)

    async def _write(self, changes: dict[str, bytes | None]) -> bool:
        try:
            async with asyncio.timeout(WRITE_S):
                await self._store.write(changes)
        except (GatewayError, TimeoutError) as error:
            log.warning("sessions_not_written", keys=len(changes), error=type(error).__name__)
            return False
        except Exception:  # the worker's top: without it everybody who waits would wait for ever
            log.exception("sessions_not_written", keys=len(changes))
            return False
        return True


def _call(call: Then, is_durable: bool) -> None:
    try:
        call(is_durable)
    except Exception:  # the worker's top: one connection's failure must not be another's
        log.exception("session_failed")
