"""A handler that wants few of many events rests between looks at the log: nothing is missed, late, or held up by it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from dispatch_bench import batch, ids, make_bench, until

from gateway.ports.subscriptions import SubscriptionSpec
from gateway.storage import Storage, open_storage

SPEC = SubscriptionSpec(name="orders", types=("rare",))


@pytest.fixture(params=["memory://", "sqlite:///{directory}/bus.db"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Storage]:
    opened = await open_storage(request.param.format(directory=tmp_path), min_free_disk_bytes=0)
    yield opened
    await opened.aclose()


@asynccontextmanager
async def noise(store: Storage) -> AsyncIterator[None]:
    """Events that nobody wants, one commit after the other."""

    async def make() -> None:
        n = 0
        while True:
            n += 1
            await store.bus.append([batch("noise", n)])
            await asyncio.sleep(0)

    task = asyncio.create_task(make())
    yield
    task.cancel()
    await asyncio.wait([task])


async def test_every_wanted_event_comes_soon_and_in_order(store: Storage) -> None:
    """In a stream of others each is delivered long before the next look that waiting would take, and once."""
    bench = await make_bench(store, SPEC)
    slowest_s = 0.0
    async with noise(store), bench.running():
        for n in range(1, 31):
            begun_s = time.monotonic()
            await bench.append(batch("a", n, type_="rare"))
            await until(lambda: bench.target.taken == n)  # noqa: B023  # asked before it changes
            slowest_s = max(slowest_s, time.monotonic() - begun_s)
    assert bench.target.took == {"/devices/a": ids("a", 1, 30)}
    assert slowest_s < 2, "a read of the log waits for 5 s"


async def test_a_handler_that_rests_stops_at_once(store: Storage) -> None:
    """A stop in the middle of a rest waits for nothing, and what was looked through is not looked through again."""
    for n in range(1, 6):
        bench = await make_bench(store, SPEC)
        async with noise(store):
            dispatcher = bench.dispatcher()
            running = asyncio.create_task(dispatcher.run())
            await bench.append(batch("a", n, type_="rare"))
            await until(lambda: bench.target.taken)  # noqa: B023  # asked before it changes
            await asyncio.sleep(0.001 * n)
            begun_s = time.monotonic()
            await dispatcher.stop(5)
            await running
            assert time.monotonic() - begun_s < 2
        assert bench.target.took == {"/devices/a": ids("a", n, n)}
