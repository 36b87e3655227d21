"""Work that belongs to a turn of the event loop, not to a packet: one write a connection, coarse deadlines, tasks.

Strategy: everything read in one poll is handled before `call_soon` callbacks run, so one callback at the end of a turn
hands ingest what the turn gathered and writes each connection's output once. Deadlines live in buckets of a tick: a
packet costs a float assignment, never a timer. All connections share a turn and the wheel, so what fails in one member is
logged and stays its own.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

import structlog

log = structlog.get_logger()

TICK_S: Final = 0.1
"""How coarse deadlines are."""
_AGAIN_S: Final = 1.0
"""When a member whose check failed is looked at again."""


class Writes(Protocol):
    """A connection, as a turn sees it."""

    def finish_turn(self) -> None:
        """Write what the turn produced."""
        ...


class Turn:
    """Gathers connections with output, and whether ingest was given anything."""

    def __init__(self, loop: asyncio.AbstractEventLoop, flush: Callable[[], None]) -> None:
        self._loop = loop
        self._flush = flush
        self._writers: dict[Writes, None] = {}
        self._has_submitted = False
        self._is_scheduled = False

    def add(self, writer: Writes) -> None:
        """Have a connection write at the end of this turn."""
        self._writers[writer] = None
        self._schedule()

    def submitted(self) -> None:
        """Have ingest flushed at the end of this turn."""
        self._has_submitted = True
        self._schedule()

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._finish)

    def _finish(self) -> None:
        if self._has_submitted:
            self._has_submitted = False
            _guarded(self._flush)
        writers, self._writers = self._writers, {}
        for writer in writers:
            _guarded(writer.finish_turn)
            self._writers.pop(writer, None)  # what it added for itself, it has written
        self._is_scheduled = False
        if self._writers or self._has_submitted:
            self._schedule()


class Timed(Protocol):
    """Something with deadlines."""

    check_at_s: float

    def check(self, now_s: float) -> float:
        """Act on what is due; tell when to look again (infinity: never)."""
        ...


class Wheel:
    """Calls `check` of each member a tick or less after its time. Times are the loop's."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._buckets: defaultdict[int, dict[Timed, None]] = defaultdict(dict)
        self._turned = self._bucket(loop.time())
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to turn."""
        self._timer = self._loop.call_later(TICK_S, self._turn)

    def stop(self) -> None:
        """Turn no more."""
        if self._timer:
            self._timer.cancel()

    def schedule(self, member: Timed, at_s: float) -> None:
        """Look at a member then, unless it is looked at earlier anyway."""
        if at_s < member.check_at_s:
            self._discard(member)
            member.check_at_s = at_s
            self._buckets[max(self._turned, self._bucket(at_s))][member] = None

    def forget(self, member: Timed) -> None:
        """Never look at a member again."""
        self._discard(member)
        member.check_at_s = float("inf")

    def _bucket(self, at_s: float) -> int:
        return int(at_s / TICK_S) + 1

    def _discard(self, member: Timed) -> None:
        if member.check_at_s < float("inf"):
            for bucket in {self._bucket(member.check_at_s), self._turned}:
                members = self._buckets.get(bucket, {})
                members.pop(member, None)
                if not members:
                    self._buckets.pop(bucket, None)

    def _turn(self) -> None:
        now_s = self._loop.time()
        last = int(now_s / TICK_S)
        for bucket in range(self._turned, last + 1):
            self._turned = bucket + 1
            for member in self._buckets.pop(bucket, ()):
                member.check_at_s = float("inf")
                self.schedule(member, _checked(member, now_s))
        self._timer = self._loop.call_later(TICK_S, self._turn)


def _guarded(call: Callable[[], None]) -> None:
    try:
        call()
    except Exception:  # the worker's top: the others of this turn must still write
        log.exception("turn_failed")


def _checked(member: Timed, now_s: float) -> float:
    try:
        return member.check(now_s)
    except Exception:  # the worker's top: without it no deadline of anybody would be kept any more
        log.exception("deadline_failed")
        return now_s + _AGAIN_S


class Tasks:
    """Named tasks of one server; what escapes from one is logged, and none outlives the server."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None], *, name: str, failed: Callable[[], None] | None = None) -> None:
        """Run something; `failed` is called if an unexpected error escapes from it."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._finish(done, failed))

    async def aclose(self, *, timeout_s: float) -> None:
        """Wait for what runs, at most so long, then cancel it."""
        if not self._tasks:
            return
        _, late = await asyncio.wait(self._tasks, timeout=timeout_s)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    def _finish(self, task: asyncio.Task[None], failed: Callable[[], None] | None) -> None:
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is None:
            return
        log.error("mqtt_task_failed", task=task.get_name(), exc_info=task.exception())
        if failed:
            failed()
