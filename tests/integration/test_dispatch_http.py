"""Dispatch to a real HTTP service that is away, overloaded or refuses, through the real target."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp import web
from dispatch_bench import Bench, batch, ids, make_bench, until

from gateway.dispatch import DispatchState
from gateway.ports.subscriptions import DeferredState, Waiting
from gateway.ports.target import TargetConfig
from gateway.storage import Storage, open_storage
from gateway.targets import open_target


class Service:
    """A service that may be started late; it keeps what it took, by device."""

    def __init__(self) -> None:
        self.took: dict[str, list[str]] = {}
        self.keys: Counter[str] = Counter()
        self.bad: dict[str, int] = {}  # status by event id
        self.headers: dict[str, str] = {}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._runner: web.AppRunner | None = None

    async def handle(self, request: web.Request) -> web.Response:
        id_ = request.headers["ce-id"]
        self.keys[request.headers["Idempotency-Key"]] += 1
        if (status := self.bad.get(id_, self.bad.get("*", 0))) != 0:
            return web.Response(status=status, text="not now", headers=self.headers)
        self.took.setdefault(request.headers["ce-source"], []).append(id_)
        return web.Response(status=204)

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/{tail:.*}", self.handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()


@pytest.fixture
async def store() -> AsyncIterator[Storage]:
    opened = await open_storage("memory://")
    yield opened
    await opened.aclose()


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    service = Service()
    yield service
    await service.stop()


async def bench_for(store: Storage, service: Service, **settings: Any) -> Bench:
    bench = await make_bench(store, **settings)
    url = urlsplit(f"http://127.0.0.1:{service.port}/event_handler/t")
    bench.target = await open_target(TargetConfig(handler="orders", url=url))  # type: ignore[assignment]  # the real one
    return bench


async def test_service_that_comes_late(store: Storage, service: Service) -> None:
    """Nobody listens for longer than all retries: no dead letter; when the service comes all arrives, in order, once."""
    bench = await bench_for(store, service)
    await bench.append(*(batch(device, n, 10) for n in (1, 11) for device in "abc"))
    async with bench.running() as dispatcher:
        await until(lambda: dispatcher.stats().state is DispatchState.DOWN)
        assert dispatcher.stats().cause.startswith("cannot connect: ")
        await asyncio.sleep(0.5)  # all five attempts together would have taken 0.15 s
        await service.start()
        await until(lambda: sum(map(len, service.took.values())) == 60)
    assert service.took == {f"/devices/{device}": ids(device, 1, 20) for device in "abc"}
    assert set(service.keys.values()) == {1}
    assert await bench.entries() == []
    await bench.target.aclose()


async def test_overloaded_service_is_left_alone(store: Storage, service: Service) -> None:
    """After 503 with Retry-After nothing is sent before that time; then all goes on."""
    await service.start()
    bench = await bench_for(store, service)
    service.bad, service.headers = {"*": 503}, {"Retry-After": "1"}
    await bench.append(batch("a", 1, 3))
    async with bench.running() as dispatcher:
        await until(lambda: dispatcher.stats().state is DispatchState.DOWN)
        begun_s = time.monotonic()
        service.bad = {}
        await until(lambda: len(service.took.get("/devices/a", [])) == 3)
        assert time.monotonic() - begun_s > 0.9
    assert await bench.entries() == []
    await bench.target.aclose()


async def test_poison_and_refused_events(store: Storage, service: Service) -> None:
    """500 uses up the attempts, 422 none but the first; both are dead letters with what the service said; replay works."""
    await service.start()
    bench = await bench_for(store, service)
    service.bad = {"a-1": 500, "b-1": 422}
    await bench.append(batch("a", 1, 2), batch("b", 1, 2), batch("c", 1, 2))
    async with bench.running() as dispatcher:
        dead = await bench.until_entries(2, DeferredState.DEAD)
        causes = {entry.event_id: (entry.cause, entry.attempts) for entry in dead}
        assert causes == {
            "a-1": ("failed 5 of 5 attempts: HTTP 500: not now", 5),
            "b-1": ("HTTP 422: not now", 1),
        }
        await until(lambda: sum(map(len, service.took.values())) == 4)
        service.bad = {}
        await store.subscriptions.resolve([entry.key for entry in dead], Waiting(0))
        dispatcher.wake()
        await until(lambda: sum(map(len, service.took.values())) == 6)
    assert service.keys == {f"/devices/{d}#{d}-{n}": 1 for d in "abc" for n in (1, 2)} | {
        "/devices/a#a-1": 6,
        "/devices/b#b-1": 2,
    }
    assert await bench.entries() == []
    await bench.target.aclose()
