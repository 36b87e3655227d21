"""Several readers that follow the log at once, as handlers do: a backend may let them share what it reads, unseen."""

from __future__ import annotations

import asyncio
import random

import pytest
from batches import framed_batch, plain_batch

from gateway.errors import Trimmed
from gateway.ports.bus import Position, Retention, position

PAGE_BYTES = 1 << 18
EVERYTHING = Retention(age_s=0, size_bytes=0)


class Follower:
    """Reads on and on, sometimes slowly, sometimes with other bounds, and sometimes it is cancelled."""

    def __init__(self, bus, chance):
        self.bus, self.chance = bus, chance
        self.at = Position(0)
        self.rows: list[int] = []

    async def reach(self, end):
        while self.at < end:
            await self._step()

    async def _step(self):
        max_bytes = self.chance.choice([1, 2000, PAGE_BYTES, PAGE_BYTES])
        reading = asyncio.create_task(self.bus.read(0, self.at, max_bytes=max_bytes, wait_s=5))
        if self.chance.random() < 0.2:
            await asyncio.sleep(self.chance.choice([0, 0, 0.001]))
            reading.cancel()
        await asyncio.wait([reading])
        if not reading.cancelled():
            page = reading.result()
            assert not page.damaged
            self.rows += [batch.row for batch in page.batches]
            self.at = page.next
        if self.chance.random() < 0.3:
            await asyncio.sleep(self.chance.choice([0, 0.001, 0.005]))


@pytest.mark.parametrize("seed", range(4))
async def test_every_follower_sees_every_row_once_in_order(bus, seed):
    """Whatever the others do, who are elsewhere, ask for less, or are cancelled in the middle of a read."""
    chance = random.Random(seed)
    followers = [Follower(bus, random.Random(seed * 10 + n)) for n in range(6)]
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        for follower in followers:
            tasks.create_task(follower.reach(position(200, 0)))
        for n in range(200):
            await bus.append([framed_batch(b"1", tag=n) if chance.random() < 0.5 else plain_batch(f"e{n}")])
            if chance.random() < 0.5:
                await asyncio.sleep(chance.choice([0, 0.001]))
    assert all(follower.rows == list(range(1, 201)) for follower in followers)


async def turns(count):
    for _ in range(count):
        await asyncio.sleep(0)


async def test_what_was_appended_before_a_read_is_found_by_it(bus):
    """Though others read from the same place a moment ago, or are doing it, each call goes up to what is durable now."""
    end = Position(0)
    for n in range(100):
        assert not (await bus.read(0, end, max_bytes=PAGE_BYTES)).batches or not end
        others = [asyncio.create_task(bus.read(0, end, max_bytes=PAGE_BYTES)) for _ in range(3)]
        await turns(n % 4)
        appending = asyncio.create_task(bus.append([plain_batch(f"e{n}")]))
        (outcome,) = await appending
        page = await bus.read(0, end, max_bytes=PAGE_BYTES)
        assert page.next == outcome.position
        await asyncio.gather(*others)
        end = outcome.position


async def test_a_reader_that_is_cancelled_costs_no_other_its_page(bus):
    """Who began a read and goes away takes nothing along."""
    await bus.append([plain_batch("a")])
    for _ in range(50):
        first, *others = (asyncio.create_task(bus.read(0, Position(0), max_bytes=PAGE_BYTES)) for _ in range(4))
        await asyncio.sleep(0)
        first.cancel()
        pages = await asyncio.gather(*others)
        assert [len(page.batches) for page in pages] == [1, 1, 1]
        await bus.append([plain_batch("a")])  # a repeat: nothing new


async def test_what_was_trimmed_is_gone_for_everybody(bus):
    """A page that was read before the trim is not given out after it."""
    (outcome,) = await bus.append([plain_batch("first")])
    for n in range(20):
        at = outcome.position if n % 2 else Position(0)
        (outcome,) = await bus.append([plain_batch(f"e{n}")])
        assert (await bus.read(0, at, max_bytes=PAGE_BYTES)).next == outcome.position
        await bus.append([plain_batch(f"f{n}")])
        await bus.trim(EVERYTHING, not_past={0: Position(outcome.position + 1)})
        try:
            (row,) = (await bus.read(0, at, max_bytes=PAGE_BYTES)).batches
            assert (at, row.end > outcome.position) == (0, True)
        except Trimmed:
            assert at
