"""gateway.dispatch: patience with storage, decoding of rows, rates; damaged and trimmed logs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from dispatch_bench import batch, ids, make_bench, until

from edge_protocol.events import Event, encode_event
from gateway.dispatch.patience import Patience
from gateway.dispatch.reading import Decoder, Reader
from gateway.dispatch.stats import Rate, Tally
from gateway.errors import BusUnavailable, Trimmed
from gateway.ports.bus import Damaged, Page, Position, StoredBatch, position
from gateway.ports.subscriptions import Deferred, DeferredState, SubscriptionSpec, Waiting
from gateway.rules.handling import HandlerSettings
from gateway.rules.plan import Plan
from gateway.storage import open_storage


def stored(body: bytes, row: int = 7, count: int = 3) -> StoredBatch:
    return StoredBatch(
        row=row, source="/devices/a", received_ms=5, count=count, types=("t", "u"), body=body, stream="s", first=10
    )


BODY = b'[{"specversion":"1.0","id":"1","type":"t"},{"specversion":"1.0","id":"2","type":"u"},{"specversion":"1.0","id":"3","type":"t"}]'


def test_row_has_positions_and_selected_events() -> None:
    """A row tells the position of each event that is selected, from a given one on, with stream and sequence."""
    decoder = Decoder(SubscriptionSpec(name="n", types=("t",)), lambda _: {})
    row = decoder.row(stored(BODY))
    assert [(at, event.id, event.sequence) for at, event in row.events] == [
        (position(7, 0), "1", 10),
        (position(7, 2), "3", 12),
    ]
    assert (row.first, row.end, row.lost) == (position(7, 0), position(7, 2), "")
    assert [event.id for _, event in decoder.row(stored(BODY), at=position(7, 1)).events] == ["3"]


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'[{"id": 1}]'])
def test_undecodable_row_is_lost(body: bytes) -> None:
    """What cannot be decoded says so instead of raising."""
    row = Decoder(SubscriptionSpec(name="n"), lambda _: {}).row(stored(body))
    assert row.lost.startswith("stored batch 7 cannot be decoded: ")
    assert row.events == []


def test_entry_gives_its_event_back() -> None:
    """An event put aside comes back with stream and sequence; nothing comes of nothing."""
    event = Event(id="1", source="/devices/a", type="t", payload=b"[1]", extensions={"stream": "s", "sequence": "4"})
    entry = Deferred(
        subscription="n",
        position=Position(1),
        source="/devices/a",
        state=DeferredState.WAITING,
        event=encode_event(event),
    )
    assert Decoder.event(entry) == event
    empty = Deferred(subscription="n", position=Position(1), source="/devices/a", state=DeferredState.WAITING)
    assert Decoder.event(empty) is None


async def test_patience_repeats_until_stopped() -> None:
    """What is unavailable is repeated; after a stop the next failure is raised."""
    stopping = asyncio.Event()
    patience = Patience("n", stopping, lambda: 0.0)
    calls = 0

    async def call() -> int:
        nonlocal calls
        calls += 1
        if calls == 5:
            stopping.set()
        if calls in {1, 2, 5}:
            raise BusUnavailable("away")
        return calls

    assert await patience.again(call) == 3
    assert await patience.again(call) == 4
    with pytest.raises(BusUnavailable, match="away"):
        await patience.again(call)


def test_rate() -> None:
    """The rate is the mean over the samples kept."""
    rate = Rate()
    assert rate.per_s(0.0, 0) == 0.0
    rate.sample(0.0, 0)
    rate.sample(0.5, 50)
    assert rate.per_s(1.0, 100) == 100.0
    for second in range(1, 30):
        rate.sample(float(second), 100 * second)
    assert rate.per_s(30.0, 3000) == 100.0


class Faulty:
    """A real bus whose log has a damaged row, or was trimmed before it was read."""

    def __init__(self, real: Any, *, damaged: int = 0, trimmed: int = 0) -> None:
        self._real = real
        self._damaged = damaged
        self._trimmed = position(trimmed) if trimmed else 0
        self.partitions = real.partitions

    async def read(self, partition: int, after: Position, *, max_bytes: int, wait_s: float = 0) -> Page:
        if after < self._trimmed:
            raise Trimmed(self._trimmed)
        page = await self._real.read(partition, after, max_bytes=max_bytes, wait_s=wait_s)
        bad = tuple(Damaged(b.row, "checksum differs") for b in page.batches if b.row == self._damaged)
        return Page(tuple(b for b in page.batches if b.row != self._damaged), page.next, bad)


async def test_damaged_row_is_reported_once_and_passed() -> None:
    """A damaged row becomes one dead letter with its cause, the rest is delivered, a replay changes nothing."""
    store = await open_storage("memory://")
    bench = await make_bench(store)
    await bench.append(batch("a", 1, 2), batch("a", 3, 2), batch("a", 5, 2))
    rows = [b.row for b in (await store.bus.read(0, Position(0), max_bytes=10**6)).batches]
    async with bench.running(bus=Faulty(store.bus, damaged=rows[1])) as dispatcher:
        await until(lambda: bench.target.taken == 4)
        (dead,) = await bench.until_entries(1, DeferredState.DEAD)
        assert dead.cause == f"stored batch {rows[1]} is damaged: checksum differs"
        assert (dead.position, dead.event) == (position(rows[1], 0), b"")
        assert (dispatcher.stats().tally.damaged, dispatcher.stats().tally.dead) == (1, 1)
        await store.subscriptions.resolve([dead.key], Waiting(0))
        dispatcher.wake()
        (again,) = await bench.until_entries(1, DeferredState.DEAD)
        assert again.cause == dead.cause
    assert bench.target.took == {"/devices/a": ["a-1", "a-2", "a-5", "a-6"]}
    await store.aclose()


async def test_trimmed_log_is_counted_and_read_on() -> None:
    """Where retention was faster, reading goes on with what there is, and it is counted."""
    store = await open_storage("memory://")
    bench = await make_bench(store)
    await bench.append(batch("a", 1, 2), batch("a", 3, 2), batch("a", 5, 2))
    rows = [b.row for b in (await store.bus.read(0, Position(0), max_bytes=10**6)).batches]
    async with bench.running(bus=Faulty(store.bus, trimmed=rows[0])) as dispatcher:
        await until(lambda: bench.target.taken == 4)
        assert dispatcher.stats().tally.trimmed >= 1
    assert bench.target.took == {"/devices/a": ids("a", 3, 6)}
    await store.aclose()


async def test_a_reader_waits_for_room_whoever_makes_it() -> None:
    """With a full window nothing more is read; when something leaves it, reading goes on at the next word of it."""
    store = await open_storage("memory://")
    await store.bus.append([batch("a", 1), batch("b", 1)])
    plan, stopping = Plan(HandlerSettings(window_events=1), {0: (0, ())}), asyncio.Event()
    decoder = Decoder(SubscriptionSpec(name="n"), lambda _: {})
    patience = Patience("n", stopping, lambda: 0.5)
    reader = Reader("n", store.bus, plan, decoder, patience=patience, tally=Tally())
    reading = asyncio.create_task(reader.run(0, lambda: None))
    for source in ("/devices/a", "/devices/b"):
        await until(lambda: plan.events == 1)
        reader.go_on()  # there is no room: it stays
        await asyncio.sleep(0)
        item = plan.start(0.0)
        assert item is not None
        assert (item.event.source, plan.start(0.0)) == (source, None)
        plan.delivered(item)
        plan.take()
        plan.saved()
        reader.go_on()
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    await store.aclose()
