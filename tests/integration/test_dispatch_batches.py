"""Batched delivery to a real HTTP service: order, poisoned events, outages, timeouts, crashes; nothing lost throughout."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp import web
from dispatch_bench import Bench, batch, ids, make_bench, until

from gateway.dispatch import DispatchState
from gateway.ports.subscriptions import DeferredState, Waiting
from gateway.ports.target import TargetConfig
from gateway.rules.retry import PausePolicy
from gateway.storage import Storage, open_storage
from gateway.targets import open_target

DEAD = DeferredState.DEAD
Answer = Callable[[list[str]], int]


class Service:
    """Takes JSON batches, and keeps what came and what it took."""

    def __init__(self) -> None:
        self.answer: Answer = lambda _ids: 204
        self.headers: dict[str, str] = {}
        self.requests: list[tuple[str, list[str]]] = []  # key, ids
        self.took: dict[str, list[str]] = {}
        self.sources: set[int] = set()  # how many in a request
        self.busy: Counter[str] = Counter()
        self.gate: asyncio.Event | None = None
        self.port = 0
        self._runner: web.AppRunner | None = None

    async def handle(self, request: web.Request) -> web.Response:
        assert request.content_type == "application/cloudevents-batch+json"
        events = await request.json()
        found, sources = [event["id"] for event in events], {event["source"] for event in events}
        self.requests.append((request.headers["Idempotency-Key"], found))
        self.sources.add(len(sources))
        self.busy.update(sources)
        try:
            if self.gate is not None:
                await self.gate.wait()
            status = self.answer(found)
            if status < 300:
                for event in events:
                    self.took.setdefault(event["source"], []).append(event["id"])
            assert max(self.busy.values()) == 1, "two requests of one source at a time"
            return web.Response(status=status, text="" if status == 204 else "no", headers=self.headers)
        finally:
            self.busy.subtract(sources)

    @property
    def sizes(self) -> list[int]:
        return [len(found) for _, found in self.requests]

    @property
    def taken(self) -> int:
        return sum(map(len, self.took.values()))

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/", self.handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self.gate is not None:
            self.gate.set()
        if self._runner is not None:
            await self._runner.cleanup()


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    service = Service()
    await service.start()
    yield service
    await service.stop()


@pytest.fixture(params=["memory://", "sqlite:///{directory}/bus.db"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Storage]:
    opened = await open_storage(request.param.format(directory=tmp_path), min_free_disk_bytes=0)
    yield opened
    await opened.aclose()


@pytest.fixture
async def benched(store: Storage, service: Service) -> AsyncIterator[Callable[..., Any]]:
    """Make a bench whose handler sends batches."""
    targets = []

    async def bench_for(size: int, *, timeout_s: float = 10.0, **settings: Any) -> Bench:
        bench = await make_bench(store, batch=size, **settings)
        url = urlsplit(f"http://127.0.0.1:{service.port}/")
        bench.target = await open_target(TargetConfig(handler="orders", url=url, batch=size, timeout_s=timeout_s))  # type: ignore[assignment]  # the real one
        targets.append(bench.target)
        return bench

    yield bench_for
    for target in targets:
        await target.aclose()


@pytest.mark.parametrize(("count", "sizes"), [(49, [49]), (50, [50]), (51, [50, 1])])
async def test_takes_what_is_ready_up_to_the_limit(
    service: Service, benched: Any, count: int, sizes: list[int]
) -> None:
    """Events of a device go together, at most as many as the handler takes, in order; one that is alone does not wait."""
    bench = await benched(50)
    told: list[str] = []
    await bench.append(batch("a", 1, count))
    async with bench.running(on_delivered=lambda event, _at_ms, _took_s: told.append(event.id)) as dispatcher:
        await until(lambda: service.taken == count)
        await until(lambda: len(told) == count)
        assert dispatcher.stats().tally.delivered == count
        await bench.append(batch("a", count + 1))
        await until(lambda: service.taken == count + 1)
    assert service.sizes == [*sizes, 1]
    assert service.took == {"/devices/a": ids("a", 1, count + 1)}
    assert told[:count] == ids("a", 1, count)
    assert (await bench.store.subscriptions.list())[0].lag == 0


async def test_order_of_each_device(service: Service, benched: Any) -> None:
    """Many devices, many rows: each request is of one device, one at a time for each, all in order, each event once."""
    bench = await benched(7, concurrency=4)
    await bench.append(*(batch(device, n, 5) for n in range(1, 101, 5) for device in "abcdef"))
    async with bench.running():
        await until(lambda: service.taken == 600)
    assert service.took == {f"/devices/{device}": ids(device, 1, 100) for device in "abcdef"}
    assert service.sources == {1}
    assert max(service.sizes) == 7
    assert len(service.sizes) < 200


async def test_without_ordering_devices_share_requests(service: Service, benched: Any) -> None:
    """With ordering "none" what is ready goes together, of whatever device: a fleet that says little each, too."""
    bench = await benched(10, ordering="none", concurrency=1)
    await bench.append(*(batch(device, 1) for device in "abcdefghij"))
    async with bench.running():
        await until(lambda: service.taken == 10)
    assert (service.sizes, service.sources) == ([10], {10})


@pytest.mark.parametrize(("status", "attempts"), [(400, 1), (500, 5)])
async def test_poisoned_event_costs_its_neighbours_nothing(
    service: Service, benched: Any, status: int, attempts: int
) -> None:
    """One bad event among fifty: one useless request, then each alone; it is the dead letter, the others are taken."""
    bench = await benched(50)
    service.answer = lambda found: status if "a-23" in found else 204
    await bench.append(batch("a", 1, 50), batch("b", 1, 50))
    async with bench.running() as dispatcher:
        (dead,) = await bench.until_entries(1, DEAD)
        await until(lambda: service.taken == 99)
        await bench.until_entries(0, DeferredState.BLOCKED)
        tally = dispatcher.stats().tally
    assert (dead.event_id, dead.attempts) == ("a-23", attempts)
    assert service.took["/devices/b"] == ids("b", 1, 50)
    assert service.took["/devices/a"] == [*ids("a", 1, 22), *ids("a", 24, 50)]
    assert (tally.delivered, tally.dead, tally.failed) == (99, 1, attempts + 1)
    if status == 400:
        assert service.sizes.count(1) == 50
        assert len(service.requests) == 52
    assert await bench.entries() == [dead]


async def test_replayed_dead_letter_goes_alone_under_its_key(service: Service, benched: Any) -> None:
    """A replay is one request with one event and the event's own key."""
    bench = await benched(5)
    service.answer = lambda found: 400 if "a-1" in found else 204
    await bench.append(batch("a", 1, 3))
    async with bench.running() as dispatcher:
        (dead,) = await bench.until_entries(1, DEAD)
        await until(lambda: service.taken == 2)
        service.answer = lambda _: 204
        await bench.store.subscriptions.resolve([dead.key], Waiting(0))
        dispatcher.wake()
        await until(lambda: service.taken == 3)
    assert service.requests[-1] == ("/devices/a#a-1", ["a-1"])
    assert await bench.entries() == []


async def test_same_composition_has_the_same_key(service: Service, benched: Any) -> None:
    """A batch that comes again after an outage, whole, has the key it had; others have other keys."""
    bench = await benched(3, concurrency=1, pause=PausePolicy(first_s=60, max_s=60))  # longer than the first one lives
    service.answer = lambda _: 503 if len(service.requests) == 1 else 204
    await bench.append(batch("a", 1, 3), batch("b", 1, 3))
    async with bench.doomed():
        await until(lambda: len(service.requests) == 1)
    async with bench.running():
        await until(lambda: service.taken == 6)
    first = service.requests[0]
    assert (first, first[1]) == (service.requests[1], ids("a", 1, 3))
    assert first[0].startswith("batch:sha256:")
    assert len({key for key, _ in service.requests}) == 2


async def test_recovers_from_500(service: Service, benched: Any) -> None:
    """A service that fails for a while and then works: no dead letter, in order."""
    bench = await benched(10)
    failures = Counter[str]()

    def answer(found: list[str]) -> int:
        failures.update(found[:1])
        return 500 if failures[found[0]] <= 3 else 204

    service.answer = answer
    await bench.append(*(batch(device, n, 5) for n in (1, 6) for device in "ab"))
    async with bench.running():
        await until(lambda: service.taken == 20)
        await bench.until_entries(0, DeferredState.WAITING)
    assert service.took == {f"/devices/{device}": ids(device, 1, 10) for device in "ab"}
    assert await bench.entries() == []


async def test_overloaded_service_is_left_alone(service: Service, benched: Any) -> None:
    """After 503 with Retry-After nothing is sent before that time, then one event, then batches again; none is worn."""
    bench = await benched(10)
    service.answer, service.headers = lambda _: 503, {"Retry-After": "1"}
    await bench.append(batch("a", 1, 10), batch("a", 11, 10))
    async with bench.running() as dispatcher:
        await until(lambda: dispatcher.stats().state is DispatchState.DOWN)
        begun_s = time.monotonic()
        service.answer = lambda _: 204
        await until(lambda: service.taken == 20)
        assert time.monotonic() - begun_s > 0.9
        tally = dispatcher.stats().tally
    assert service.sizes == [10, 1, 10, 9]
    assert (tally.down, tally.failed, tally.dead) == (1, 0, 0)
    assert service.took == {"/devices/a": ids("a", 1, 20)}
    assert await bench.entries() == []


async def test_service_that_refuses_large_requests_only(service: Service, benched: Any) -> None:
    """One that drops each request with many events, or says it is down, still gets all of them, one by one."""
    bench = await benched(10)
    service.answer = lambda found: 503 if len(found) > 1 else 204
    await bench.append(batch("a", 1, 10), batch("a", 11, 10))
    async with bench.running():
        await until(lambda: service.taken == 20)
    assert service.took == {"/devices/a": ids("a", 1, 20)}
    assert sum(size > 1 for size in service.sizes) <= 4
    assert await bench.entries() == []


async def test_nobody_listens(service: Service, benched: Any) -> None:
    """No connection for longer than all retries: no dead letter; when the service comes all arrives in order, once."""
    bench = await benched(10)
    await service.stop()
    await bench.append(*(batch(device, n, 10) for n in (1, 11) for device in "abc"))
    async with bench.running() as dispatcher:
        await until(lambda: dispatcher.stats().state is DispatchState.DOWN)
        await asyncio.sleep(0.3)  # all five attempts together would have taken 0.15 s
        await service.start()
        await until(lambda: service.taken == 60)
    assert service.took == {f"/devices/{device}": ids(device, 1, 20) for device in "abc"}
    assert await bench.entries() == []


async def test_batch_that_takes_too_long(service: Service, benched: Any) -> None:
    """A request that is not answered in time failed: its events go one by one, which the service may have time for."""
    bench = await benched(10, timeout_s=0.2)
    service.gate = asyncio.Event()
    await bench.append(batch("a", 1, 10))
    async with bench.running():
        await until(lambda: len(service.requests) == 1)
        await until(lambda: len(service.requests) == 2)
        service.busy.clear()  # the client gave up, the server may still hold the first
        service.gate.set()
        await until(lambda: len(set(service.took["/devices/a"])) == 10 if service.took else False)
    assert service.sizes[:2] == [10, 1]
    assert await bench.entries() == []


async def test_killed_in_the_middle(service: Service, benched: Any) -> None:
    """Killed at random moments: all arrives, in order; what comes again is at most a window each time."""
    bench = await benched(8, window_events=20, concurrency=3)
    service.answer = lambda found: 400 if len(found) > 1 and "b-20" in found else 204
    for n in range(1, 60, 3):
        await bench.append(batch("a", n, 3), batch("b", n, 3))
    for kill_at in (5, 17, 40, 80):
        async with bench.doomed():
            await until(lambda at=kill_at: len({id_ for took in service.took.values() for id_ in took}) >= at)
        service.busy.clear()
    async with bench.running():
        await until(lambda: {"a-60", "b-60"} <= {took[-1] for took in service.took.values()})
    for device in "ab":
        assert list(dict.fromkeys(service.took[f"/devices/{device}"])) == ids(device, 1, 60)
    assert service.taken <= 120 + 4 * 20
    assert await bench.entries() == []
    assert max(service.sizes) == 8
