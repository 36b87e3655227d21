"""Framed batches, which a run of bare publishes becomes: readers get the JSON they stand for, on every backend."""

from __future__ import annotations

import asyncio
import json

import pytest
from batches import NOW_MS, framed_batch, ids_in, plain_batch, read_all, span_batch

from edge_protocol.events import decode_stored
from gateway.ports.bus import Position, Retention, Stored, index_of, position, row_of

EVERYTHING = Retention(age_s=0, size_bytes=0)


def data_in(row):
    assert row.encoding == "", "readers never see framed"
    return [event["data"] for event in json.loads(row.body)]


def ids_of(count, tag=0):
    return [f"01936c5c-0000-7000-8000-{tag:010x}{n:02x}" for n in range(count)]


@pytest.mark.parametrize("count", [1, 2, 255, 256])
async def test_a_framed_batch_is_read_as_json(bus, count):
    """A row of it is a JSON batch of all its events in order, with its own count, types and time."""
    (outcome,) = await bus.append([framed_batch(*(b"%d" % n for n in range(count)), type_="a.b")])
    (row,) = await read_all(bus)
    assert (row.source, row.stream, row.first, row.count) == ("/devices/d", "", 0, count)
    assert (row.types, row.received_ms) == (("a.b",), NOW_MS)
    assert data_in(row) == list(range(count))
    assert outcome == Stored(position(row.row, count - 1))
    assert index_of(row.end) == count - 1
    events = decode_stored(row.body, row.encoding, source=row.source, stream="", first=0)
    assert [event.id for event in events] == ids_of(count)


async def test_framed_batches_keep_their_place_among_others(bus):
    """Rows come in the order of the appends, whatever they are kept as, and nothing of one touches another."""
    await bus.append([plain_batch("a"), framed_batch(b'{"n":1}', b'"\xc3\xa9"', tag=1), span_batch(1, 2, pack=True)])
    await bus.append([framed_batch(b"null", tag=2), framed_batch(b"[ 3 ]", b"4", tag=3), plain_batch("b")])
    assert await ids_in(bus) == ["a", *ids_of(2, 1), "s-1", "s-2", *ids_of(1, 2), *ids_of(2, 3), "b"]
    rows = await read_all(bus)
    assert [row.encoding for row in rows] == ["", "", "deflate", "", "", ""]
    assert [data_in(rows[n]) for n in (1, 3, 4)] == [[{"n": 1}, "\xe9"], [None], [[3], 4]]


async def test_framed_batches_of_a_source_keep_the_order_of_the_calls(bus):
    """Concurrent appends of runs and of single publishes land in the order in which they were made."""
    batches = [framed_batch(b"1", b"2", tag=n) if n % 3 else plain_batch(f"{n}") for n in range(60)]
    await asyncio.gather(*(bus.append([batch]) for batch in batches))
    expected = [id_ for n in range(60) for id_ in (ids_of(2, n) if n % 3 else [f"{n}"])]
    assert await ids_in(bus) == expected


async def test_a_framed_batch_is_never_a_repeat(bus):
    """The gateway made its ids: appended twice it is stored twice."""
    outcomes = await bus.append([framed_batch(b"1", b"2")] * 2)
    assert [outcome.duplicates for outcome in outcomes] == [0, 0]
    assert len(await read_all(bus)) == 2


async def test_a_framed_row_is_returned_whole_unless_its_last_event_is_behind(bus):
    """A position inside it brings the row back; its last event's does not."""
    (outcome,) = await bus.append([framed_batch(b"1", b"2", b"3")])
    row = row_of(outcome.position)
    for index, count in ((0, 1), (1, 1), (2, 0), (1023, 0)):
        assert len((await bus.read(0, position(row, index), max_bytes=1)).batches) == count


@pytest.mark.parametrize("device", ["d", "a-longer-name-of-a-device"])
@pytest.mark.parametrize("data", [b"1", b'"' + b"x" * 100 + b'"'])
async def test_a_page_is_bounded_by_what_readers_get(bus, device, data):
    """A page has one batch at least, and no more bytes than asked, counted as they are read and not as they are kept."""
    source = f"/devices/{device}"
    await bus.append([framed_batch(*[data] * 100, tag=n, source=source) for n in range(20)])
    size = len((await read_all(bus))[0].body)
    for limit in (1, size - 1, size, 3 * size, 10 * size):
        page = await bus.read(0, Position(0), max_bytes=limit)
        assert max(1, limit // size // 4) <= len(page.batches) <= max(1, limit // size)
        assert page.next == page.batches[-1].end
        assert len(await read_all(bus, max_bytes=limit)) == 20


async def test_trim_and_stats_count_framed_events(bus):
    """Each event of a framed batch counts, stored or removed."""
    outcomes = await bus.append([framed_batch(*[b"1"] * 7), framed_batch(*[b"1"] * 5), plain_batch("a")])
    stats = await bus.stats()
    assert (stats.events, stats.batches, stats.first) == (13, 3, position(row_of(outcomes[0].position), 0))
    assert await bus.trim(EVERYTHING, not_past={0: outcomes[1].position}) == 7
    assert (await bus.stats()).events == 6
