"""A bench for dispatchers: a real store, a scripted target that keeps a ledger, settings short enough for tests."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec

from edge_protocol.events import Event
from gateway.dispatch import Dispatcher
from gateway.ports.bus import Batch, Beginning, Span
from gateway.ports.subscriptions import Deferred, DeferredState, Query, SubscriptionSpec
from gateway.ports.target import Delivered, Verdict
from gateway.rules.handling import HandlerSettings
from gateway.rules.retry import PausePolicy, RetryPolicy
from gateway.storage import Storage

RETRY = RetryPolicy(max_attempts=5, first_s=0.01, max_s=0.04)
PAUSE = PausePolicy(first_s=0.02, max_s=0.05)
Answer = Callable[[Event, int], Verdict]


@dataclass
class Ledger:
    """A target that answers as told and remembers everything."""

    answer: Answer = lambda _event, _attempt: Delivered()
    tries: list[tuple[str, str, int]] = field(default_factory=list)  # id, key, attempt
    took: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # ids taken, by source
    running: set[str] = field(default_factory=set)
    gate: asyncio.Event | None = None  # deliveries wait for it

    async def deliver(self, event: Event, *, key: str, attempt: int) -> Verdict:
        assert event.source not in self.running, "two deliveries of one source at a time"
        self.running.add(event.source)
        try:
            if self.gate is not None:
                await self.gate.wait()
            await asyncio.sleep(0)
            self.tries.append((event.id, key, attempt))
            verdict = self.answer(event, attempt)
            if isinstance(verdict, Delivered):
                self.took[event.source].append(event.id)
            return verdict
        finally:
            self.running.discard(event.source)

    async def aclose(self) -> None:
        return

    @property
    def taken(self) -> int:
        return sum(map(len, self.took.values()))


async def until(condition: Callable[[], Any], timeout_s: float = 20.0) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  # what is waited for has no event
            await asyncio.sleep(0.002)


def batch(device: str, first: int, count: int = 1, *, type_: str = "t", source: str | None = None) -> Batch:
    """One publish of consecutive events, with ids `device-n`."""
    ids = [f"{device}-{n}" for n in range(first, first + count)]
    body = msgspec.json.encode([{"specversion": "1.0", "id": i, "type": type_, "data": {"n": i}} for i in ids])
    return Batch(
        source=source or f"/devices/{device}",
        received_ms=1_700_000_000_000,
        count=count,
        types=(type_,),
        body=body,
        span=Span(stream=f"s-{device}", first=first, settled=0, last_id=ids[-1]),
    )


def ids(device: str, first: int, last: int) -> list[str]:
    return [f"{device}-{n}" for n in range(first, last + 1)]


class Bench:
    """A store with one subscription, and dispatchers that come and go."""

    def __init__(self, store: Storage, spec: SubscriptionSpec, settings: dict[str, Any]) -> None:
        self.store = store
        self.spec = spec
        self.settings = HandlerSettings(**{"retry": RETRY, "pause": PAUSE} | settings)
        self.target = Ledger()

    def dispatcher(self, **parts: Any) -> Dispatcher:
        parts = {"bus": self.store.bus, "subscriptions": self.store.subscriptions, "deliverer": self.target} | parts
        return Dispatcher(self.spec, self.settings, **parts)

    @asynccontextmanager
    async def running(self, **parts: Any) -> AsyncIterator[Dispatcher]:
        """Run one; stop it in the end."""
        dispatcher = self.dispatcher(**parts)
        task = asyncio.create_task(dispatcher.run())
        try:
            yield dispatcher
        finally:
            await dispatcher.stop(1.0)
            await task

    @asynccontextmanager
    async def doomed(self) -> AsyncIterator[Dispatcher]:
        """Run one; kill it in the end."""
        dispatcher = self.dispatcher()
        task = asyncio.create_task(dispatcher.run())
        try:
            yield dispatcher
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def append(self, *batches: Batch) -> None:
        await self.store.bus.append(batches)

    async def entries(self, state: DeferredState | None = None) -> list[Deferred]:
        return list(
            await self.store.subscriptions.deferred(Query(subscription=self.spec.name, state=state), limit=1000)
        )

    async def until_entries(self, count: int, state: DeferredState) -> list[Deferred]:
        """Wait until as many entries are stored."""
        async with asyncio.timeout(20):
            while len(found := await self.entries(state)) != count:  # noqa: ASYNC110  # likewise
                await asyncio.sleep(0.005)
        return found


async def make_bench(store: Storage, spec: SubscriptionSpec | None = None, **settings: Any) -> Bench:
    """Open a subscription from the beginning."""
    spec = spec or SubscriptionSpec(name="orders")
    await store.subscriptions.open(spec, Beginning())
    return Bench(store, spec, settings)
