"""Between the plan and the store: saves floors and entries put aside, brings back what is due, discarded or replayed.

One task does all of it, one call after the other, so what it reads from the store never is older than what it saved.
"""

from __future__ import annotations

import asyncio
import math
import zlib
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import islice
from typing import Final

import structlog

from edge_protocol.events import encode_event
from gateway.dispatch.patience import Patience
from gateway.dispatch.reading import Decoder, Reader
from gateway.dispatch.stats import Rate, Tally
from gateway.ports.bus import Position
from gateway.ports.subscriptions import (
    Deferred,
    DeferredState,
    Floor,
    Key,
    Lease,
    Query,
    Subscriptions,
)
from gateway.rules.delivery import Aside, Changes
from gateway.rules.plan import Plan

log = structlog.get_logger()

SAVE_S: Final = 0.2  # architecture, "Dispatch": one cursor update a subscription every 200 ms
POLL_S: Final = 1.0
_DUE_LIMIT: Final = 256  # entries of up to 256 KiB each in memory beside the window
_RECALL_LIMIT: Final = 100
_REFILL_ROWS: Final = 16
_REFILL_EVENTS: Final = 1000
_HELD_LIMIT: Final = 64


class Keeper:
    """Keeps one plan durable.

    Attributes:
        bell: Set it to have the keeper look at once.
    """

    def __init__(
        self,
        lease: Lease,
        subscriptions: Subscriptions,
        plan: Plan,
        reader: Reader,
        *,
        partitions: int,
        patience: Patience,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        tally: Tally,
    ) -> None:
        self._lease = lease
        self._subscriptions = subscriptions
        self._plan = plan
        self._reader = reader
        self._partitions = partitions
        self._patience = patience
        self._clock = clock
        self._monotonic = monotonic
        self._tally = tally
        self._pending: Changes | None = None
        self._due: list[float] = []  # when entries that wait may be tried again
        self._saved_s = -math.inf
        self._polled_s = -math.inf
        self._asked = False
        self._backlog = False  # the last poll found more than it may bring back at once
        self._held_turn = 0
        self.rate = Rate()
        self.bell = asyncio.Event()

    def ask(self) -> None:
        """Look now at what operators changed."""
        self._asked = True
        self.bell.set()

    async def recall(self) -> None:
        """Learn what earlier runs put aside, and whether an operator stopped us; before anything is read."""
        await self._obey()
        after = Position(0)
        while True:
            query = Query(subscription=self._lease.name, after=after)
            entries = await self._deferred(query, limit=_RECALL_LIMIT)
            for entry in entries:
                self._plan.recall(entry.source, entry.position, entry.state.value)
                if entry.state is DeferredState.WAITING:
                    heappush(
                        self._due, self._to_monotonic(entry.next_ms + 2)
                    )  # rounding must not make the look too early
            if len(entries) < _RECALL_LIMIT:
                return
            after = entries[-1].position

    async def run(self, on_fed: Callable[[], None]) -> None:
        """Keep it durable until we are to stop; `on_fed` is called after each look, when there may be something to start.

        Raises:
            Fenced, NotFound: The subscription is not ours any more.
        """
        while not self._patience.is_over:
            await self._nap()
            await self._look()
            on_fed()

    async def save(self) -> None:
        """Save all that changed.

        Raises:
            Fenced, NotFound: The subscription is not ours any more.
            Unavailable: And we are to stop; calling again goes on with the same changes.
        """
        self._pending = self._pending or self._plan.take()
        self._saved_s = self._monotonic()
        if self._pending is None:
            return
        floors = {
            partition: Floor(Position(floor), tuple((Position(first), Position(end)) for first, end in done))
            for partition, (floor, done) in self._pending.floors.items()
        }
        deferred = [self._entry(aside) for aside in self._pending.asides]
        resolved = [Key(self._lease.name, Position(position)) for position in self._pending.resolved]
        await self._patience.again(lambda: self._subscriptions.save(self._lease, floors, deferred, resolved))
        self._pending = None
        self._plan.saved()
        for entry in deferred:
            if entry.state is DeferredState.WAITING:
                heappush(self._due, self._to_monotonic(entry.next_ms + 2))  # rounding must not make the look too early

    async def _nap(self) -> None:
        now_s = self._monotonic()
        next_s = min(self._saved_s + SAVE_S, self._polled_s + POLL_S, self._due[0] if self._due else math.inf)
        try:
            async with asyncio.timeout(min(max(next_s - now_s, 0.0), SAVE_S)):
                await self.bell.wait()
        except TimeoutError:
            pass
        self.bell.clear()

    async def _look(self) -> None:
        asked, self._asked = self._asked, False
        sources = self._plan.wanted()
        now_s = self._monotonic()
        if asked or sources or self._plan.is_save_due or now_s >= self._saved_s + SAVE_S:
            await self.save()
        if asked:
            await self._obey()
        for source in sources:
            await self._refill(source)
        if asked or self._is_poll_due(now_s):
            await self._poll(now_s)

    async def _obey(self) -> None:
        states = await self._patience.again(self._subscriptions.list)
        paused = any(state.paused for state in states if state.spec.name == self._lease.name)
        if paused != self._plan.paused:
            log.info("handler_paused" if paused else "handler_resumed", handler=self._lease.name)
        self._plan.paused = paused

    async def _deferred(self, query: Query, *, limit: int) -> list[Deferred]:
        return list(await self._patience.again(lambda: self._subscriptions.deferred(query, limit=limit)))

    async def _refill(self, source: str) -> None:
        query = Query(subscription=self._lease.name, state=DeferredState.BLOCKED, source=source)
        rows, events = [], 0
        for entry in await self._deferred(query, limit=_REFILL_ROWS):
            if events >= _REFILL_EVENTS:
                break
            row = await self._reader.read_back(entry, zlib.crc32(source.encode()) % self._partitions)
            if row.lost:
                log.error("row_damaged", handler=self._lease.name, position=entry.position, reason=row.lost)
                self._tally.dead += 1
            events += len(row.events)
            rows.append(row)
        self._plan.refill(source, rows)

    def _is_poll_due(self, now_s: float) -> bool:
        ripe = bool(self._due) and self._due[0] <= now_s
        return ripe or now_s >= self._polled_s + POLL_S or (self._backlog and not self._plan.admitted)

    async def _poll(self, now_s: float) -> None:
        self._polled_s = now_s
        while self._due and self._due[0] <= now_s:
            heappop(self._due)
        self.rate.sample(now_s, self._tally.delivered)
        query = Query(subscription=self._lease.name, due_ms=int(self._clock() * 1000))
        entries = await self._deferred(query, limit=_DUE_LIMIT)
        self._backlog = len(entries) >= _DUE_LIMIT
        for entry in sorted(entries, key=lambda entry: entry.position):
            self._bring_back(entry)
        await self._check_held()

    def _bring_back(self, entry: Deferred) -> None:
        event = Decoder.event(entry)
        if event is None:
            self._plan.lose(entry.source, entry.position, entry.cause or "the stored event cannot be decoded")
            return
        first_s = self._to_monotonic(entry.since_ms)
        self._plan.admit(entry.source, entry.position, event, attempts=entry.attempts, first_s=first_s)

    async def _check_held(self) -> None:
        """Find entries that an operator discarded: what waits for them goes on. A bounded number a turn."""
        held = sorted(self._plan.held())
        if not held:
            return
        turn = self._held_turn % len(held)
        self._held_turn += _HELD_LIMIT
        for source, position in islice((held + held)[turn:], min(_HELD_LIMIT, len(held))):
            query = Query(subscription=self._lease.name, source=source, after=Position(position - 1))
            found = await self._deferred(query, limit=1)
            if not found or found[0].position != position or found[0].state is DeferredState.BLOCKED:
                self._plan.release(source, position)

    def _entry(self, aside: Aside) -> Deferred:
        event = aside.event
        now_s = self._monotonic()
        return Deferred(
            subscription=self._lease.name,
            position=Position(aside.position),
            source=aside.source,
            state=DeferredState(aside.state),
            attempts=aside.attempts,
            next_ms=self._to_wall_ms(aside.next_s) if aside.state == "waiting" else 0,
            cause=aside.cause,
            since_ms=self._to_wall_ms(now_s if aside.since_s is None else aside.since_s),
            event_id=event.id if event else "",
            type=event.type if event else "",
            event=encode_event(event) if event else b"",
        )

    def _to_wall_ms(self, at_s: float) -> int:
        return math.ceil((self._clock() + at_s - self._monotonic()) * 1000)

    def _to_monotonic(self, at_ms: int) -> float:
        return at_ms / 1000 - self._clock() + self._monotonic()
