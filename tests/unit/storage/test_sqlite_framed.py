"""Framed rows in the SQLite store: small on disk, the same after a restart, found when damaged."""

from __future__ import annotations

import json

import pytest
from batches import framed_batch, ids_in, plain_batch, read_all
from closed_store import run_sql

from gateway.ports.bus import Position


async def test_a_framed_row_is_there_after_a_restart(open_store, path):
    """What was acknowledged is read the same by a store opened later, and is kept as it came."""
    store = await open_store()
    batch = framed_batch(*(b"%d" % n for n in range(256)))
    await store.bus.append([plain_batch("a"), batch])
    before = await read_all(store.bus)
    await store.aclose()
    assert run_sql(path, "SELECT encoding, body FROM batch WHERE position = 2") == [("framed", batch.body)]
    store = await open_store()
    assert await read_all(store.bus) == before
    assert [event["data"] for event in json.loads(before[1].body)] == list(range(256))
    await store.bus.append([framed_batch(b"1", b"2", tag=9)])
    assert len(await ids_in(store.bus)) == 1 + 256 + 2


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE batch SET body = substr(body, 1, length(body) - 1) WHERE position = 2",
        "UPDATE batch SET body = x'ffffffff' WHERE position = 2",
        "UPDATE batch SET body = x'' WHERE position = 2",
        "UPDATE batch SET body = NULL WHERE position = 2",
        "UPDATE batch SET body = 'text' WHERE position = 2",
        "UPDATE batch SET count = count + 1 WHERE position = 2",
        "UPDATE batch SET count = x'00' WHERE position = 2",
        "UPDATE batch SET types = CAST(x'ff' AS TEXT) WHERE position = 2",
        "UPDATE batch SET encoding = '' WHERE position = 2",
        "UPDATE batch SET encoding = 'deflate' WHERE position = 2",
        "UPDATE batch SET crc = crc + 1 WHERE position = 2",
        "DELETE FROM batch WHERE position = 2",
    ],
)
async def test_a_damaged_framed_row_is_reported_and_its_neighbours_are_read(open_store, path, damage):
    """Never unpacked, never skipped in silence: a framed row whose columns are not what was written is damage."""
    store = await open_store()
    await store.bus.append([framed_batch(b"1", b"2", tag=n) for n in range(3)])
    await store.aclose()
    run_sql(path, damage)
    store = await open_store()
    page = await store.bus.read(0, Position(0), max_bytes=1 << 20)
    assert [batch.row for batch in page.batches] == [1, 3]
    assert [damaged.row for damaged in page.damaged] == [2]
    at, seen, bad = Position(0), [], []
    for _ in range(4):  # one row a page
        page = await store.bus.read(0, at, max_bytes=1)
        seen += [batch.row for batch in page.batches]
        bad += [damaged.row for damaged in page.damaged]
        at = page.next
    assert (seen, bad) == ([1, 3], [2])


@pytest.mark.parametrize("column", ["body", "encoding"])
async def test_a_row_that_is_said_to_be_framed_is_reported(open_store, path, column):
    """A plain row turned into a framed one does not stop its readers."""
    store = await open_store()
    await store.bus.append([plain_batch("a"), plain_batch("b"), plain_batch("c")])
    await store.aclose()
    run_sql(
        path,
        f"UPDATE batch SET {column} = CAST('framed' AS {'BLOB' if column == 'body' else 'TEXT'}) WHERE position = 2",
    )
    store = await open_store()
    page = await store.bus.read(0, Position(0), max_bytes=1 << 20)
    assert [damaged.row for damaged in page.damaged] == [2]
    assert [batch.row for batch in page.batches] == [1, 3]
