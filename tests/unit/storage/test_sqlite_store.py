"""What only the SQLite store can show: restarts, damage, checkpoints, free pages, group commit."""

from __future__ import annotations

import asyncio

import apsw
import pytest
from batches import NOW_MS, ids_in, plain_batch, read_all, span_batch
from closed_store import run_sql
from msgspec.structs import replace

from gateway.errors import BusFull, BusUnavailable
from gateway.ports.bus import Beginning, Forked, Position, Retention, Stored, position, row_of
from gateway.ports.state import ABSENT
from gateway.ports.subscriptions import Deferred, DeferredState, Floor, Query, SubscriptionSpec
from gateway.storage.placing import check
from gateway.storage.sqlite import append

EVERYTHING = Retention(age_s=0, size_bytes=0)


async def test_everything_is_there_after_a_restart(open_store):
    """Events, ranges, ids, floors, entries, values and revisions go on where they stood."""
    store = await open_store()
    await store.bus.append([span_batch(1, 3), plain_batch("a"), span_batch(7, 9, settled=2)])
    await store.subscriptions.open(SubscriptionSpec(name="h"), Beginning())
    lease = await store.subscriptions.claim("h", ttl_s=1)
    entry = Deferred(subscription="h", position=Position(5), source="/devices/d", state=DeferredState.DEAD, event=b"{}")
    floor = Floor(Position(9), ((Position(11), Position(12)),))
    await store.subscriptions.save(lease, {0: floor}, [entry])
    await store.state.put("k", b"v", expect=None)
    last = await store.state.put("gone", b"v", expect=None)
    await store.state.delete("gone")
    await store.aclose()

    store = await open_store()
    outcomes = await store.bus.append([span_batch(1, 9), plain_batch("a"), span_batch(9, 9, tag="x")])
    assert [outcome.duplicates for outcome in outcomes[:2]] == [6, 1]
    assert isinstance(outcomes[2], Forked)
    (found,) = await store.subscriptions.list()
    assert (found.floors, found.dead) == ({0: floor}, 1)
    assert await store.subscriptions.deferred(Query(), limit=5) == [entry]
    assert (await store.subscriptions.claim("h", ttl_s=1)).epoch > lease.epoch
    assert (await store.state.get("k")).value == b"v"
    assert await store.state.put("gone", b"v", expect=ABSENT) > last + 1


async def test_positions_go_on_after_everything_was_trimmed_and_a_restart(open_store):
    """A row number is never given out twice, and counts stay right."""
    store = await open_store()
    (outcome,) = await store.bus.append([span_batch(1, 3)])
    await store.subscriptions.open(SubscriptionSpec(name="h"), Beginning())
    await store.bus.trim(EVERYTHING, not_past={})
    await store.aclose()
    store = await open_store()
    (later,) = await store.bus.append([span_batch(4, 5)])
    assert row_of(later.position) == row_of(outcome.position) + 1
    assert (await store.bus.stats()).events == 2
    assert (await store.subscriptions.list())[0].lag == 2


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE batch SET body = CAST(replace(CAST(body AS TEXT), 'b', 'x') AS BLOB) WHERE position = 2",
        "UPDATE batch SET body = NULL WHERE position = 2",
        "UPDATE batch SET count = 2 WHERE position = 2",
        "UPDATE batch SET count = x'00' WHERE position = 2",
        "UPDATE batch SET received_ms = received_ms + 1 WHERE position = 2",
        "UPDATE batch SET types = 'other' WHERE position = 2",
        "UPDATE batch SET types = CAST(x'ff' AS TEXT) WHERE position = 2",
        "UPDATE batch SET crc = crc + 1 WHERE position = 2",
        "UPDATE batch SET encoding = 'deflate' WHERE position = 2",
        "UPDATE batch SET device = 1 WHERE position = 2",
        "UPDATE batch SET device = 77 WHERE position = 2",
        "UPDATE batch SET stream = 1, first = 1 WHERE position = 2",
        "UPDATE source SET name = '/devices/evil' WHERE id = 2",
        "DELETE FROM batch WHERE position = 2",
    ],
)
async def test_a_damaged_row_is_reported_and_its_neighbours_are_read(open_store, path, damage):
    """Never delivered, never skipped in silence, whichever column it is and even if the row is gone."""
    store = await open_store()
    rows = [span_batch(1, 2), plain_batch("b", source="/devices/e", own_ids=False), span_batch(3, 4)]
    await store.bus.append(rows)
    await store.aclose()
    run_sql(path, damage)
    store = await open_store()
    page = await store.bus.read(0, Position(0), max_bytes=1 << 20)
    assert [batch.row for batch in page.batches] == [1, 3]
    assert [damaged.row for damaged in page.damaged] == [2]
    at, seen, bad = Position(0), [], []
    for _ in range(4):  # one row a page
        page = await store.bus.read(0, at, max_bytes=1)
        seen += page.batches
        bad += page.damaged
        at = page.next
    assert [batch.row for batch in seen] == [1, 3]
    assert [damaged.row for damaged in bad] == [2]
    assert (await store.bus.read(0, at, max_bytes=1)).batches == ()


async def test_a_damaged_last_row_is_passed(open_store, path):
    """A reader gets behind it, once, and goes on with what is appended later."""
    store = await open_store()
    await store.bus.append([plain_batch("a"), plain_batch("b")])
    await store.aclose()
    run_sql(path, "UPDATE batch SET count = 900 WHERE position = 2")
    store = await open_store()
    page = await store.bus.read(0, Position(0), max_bytes=1 << 20)
    assert (len(page.batches), page.damaged[0].row, page.next) == (1, 2, position(2))
    assert page.damaged[0].detail == "its checksum is wrong"
    assert (await store.bus.read(0, page.next, max_bytes=1)).damaged == ()
    await store.bus.append([plain_batch("c")])
    assert [batch.row for batch in (await store.bus.read(0, page.next, max_bytes=1)).batches] == [3]


@pytest.mark.parametrize("column", ["count", "received_ms", "total", "body"])
@pytest.mark.parametrize("value", ["NULL", "x'ff'", "0", "-1"])
async def test_a_damaged_row_does_not_stop_the_store(open_store, path, column, value):
    """Appends, counts and retention go on beside it, and after it was trimmed."""
    store = await open_store()
    await store.bus.append([plain_batch("a"), plain_batch("b"), plain_batch("c")])
    await store.aclose()
    run_sql(path, f"UPDATE batch SET {column} = {value} WHERE position >= 2")
    store = await open_store()
    await store.bus.append([plain_batch("d")])
    await store.bus.stats()
    assert [batch.row for batch in (await store.bus.read(0, Position(0), max_bytes=1 << 20)).batches][-1] == 4
    while await store.bus.trim(EVERYTHING, not_past={}):
        pass
    assert (await store.bus.stats()).batches == 0


async def test_the_files_are_the_owners_alone(open_store, path):
    """Nobody else on the machine reads events or keys."""
    store = await open_store()
    await store.bus.append([plain_batch("a")])
    modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert modes == dict.fromkeys(["bus.db", "bus.db-wal", "bus.db-shm", "bus.db.lock"], 0o600)


async def test_flipped_bits_in_the_file_never_yield_another_event(open_store, path):
    """A bit flipped anywhere in a stored body is found by its checksum."""
    store = await open_store()
    await store.bus.append([plain_batch(f"{n}", pad=50) for n in range(20)])
    await store.aclose()
    data = bytearray(path.read_bytes())
    at = data.index(b'"id":"7"')
    data[at + 6] ^= 1
    path.write_bytes(bytes(data))
    store = await open_store()
    page = await store.bus.read(0, Position(0), max_bytes=1 << 20)
    assert [damaged.row for damaged in page.damaged] == [8]
    assert len(page.batches) == 19


async def test_the_log_is_copied_when_it_is_long_and_when_nothing_happens(open_store, path):
    """The write-ahead log stays small under load without a reader's help, and is empty after a close."""
    store = await open_store()
    for n in range(30):
        await store.bus.append([plain_batch(f"{n}-{m}", pad=1 << 20) for m in range(2)])
    wal = path.with_name("bus.db-wal")
    assert wal.stat().st_size < 40 << 20
    before = path.stat().st_size
    async with asyncio.timeout(10):  # the idle checkpoint brings the rest into the database
        while path.stat().st_size < 60 << 20:  # noqa: ASYNC110  # a file tells nobody that it grew
            await asyncio.sleep(0.05)
    assert before > 8 << 20
    await store.aclose()
    assert not wal.exists() or wal.stat().st_size == 0


async def test_the_file_shrinks_after_a_trim(open_store, path):
    """Pages that were freed go back to the file system, a bounded number a call."""
    store = await open_store()
    for n in range(20):
        await store.bus.append([plain_batch(f"{n}", pad=200_000)])
    assert (await store.bus.stats()).bytes > 4_000_000
    await store.bus.trim(EVERYTHING, not_past={})
    for _ in range(10):
        await store.bus.trim(EVERYTHING, not_past={})
    assert (await store.bus.stats()).bytes < 200_000
    await store.aclose()
    assert path.stat().st_size < 1_500_000


async def test_trimming_is_bounded_work_a_call(open_store):
    """At most 500 rows go at a time; repeated, all do."""
    store = await open_store()
    await store.bus.append([plain_batch(f"{n}") for n in range(1001)])
    assert [await store.bus.trim(EVERYTHING, not_past={}) for _ in range(4)] == [500, 500, 1, 0]


async def test_a_disk_below_its_floor_is_full_for_appends_only(open_store):
    """Events are refused with a later retry, while floors and values can still be saved."""
    store = await open_store(min_free_disk_bytes=1 << 60)
    with pytest.raises(BusFull, match=r"less than bus\.min_free_disk, 1048576 TiB") as caught:
        await store.bus.append([plain_batch("a")])
    assert caught.value.retry_after_s > 0
    await store.state.put("k", b"v", expect=None)


async def test_seen_ids_are_dropped_by_the_day(open_store, path):
    """Tables of days before the window go away, so the ids of a long life take no room."""
    now = [NOW_MS / 1000]
    store = await open_store(deduplication_window_s=86400, clock=lambda: now[0])
    for _ in range(6):
        await store.bus.append([plain_batch(f"{now[0]}")])
        now[0] += 86400
    await store.aclose()
    connection = apsw.Connection(str(path))
    names = connection.execute("SELECT name FROM sqlite_schema WHERE name GLOB 'seen_*'").fetchall()
    connection.close()
    assert len(names) == 2


async def test_sources_beyond_the_cache_are_still_known(open_store):
    """What was evicted from memory is read from the tables again."""
    store = await open_store()
    store.bus._writer._log._cost = append.CACHED_RANGES + 1  # as after many sources
    await store.bus.append([span_batch(1, 2, source=f"/devices/{n}") for n in range(10)])
    assert not store.bus._writer._log._sources
    outcomes = await store.bus.append([span_batch(1, 3, source=f"/devices/{n}") for n in range(10)])
    assert [outcome.duplicates for outcome in outcomes] == [2] * 10


async def test_a_call_that_breaks_inside_the_commit_does_not_poison_it(open_store):
    """A statement that SQLite refuses fails its own caller; what shared the commit is stored, the store goes on."""
    store = await open_store()
    writer = store.bus._writer

    def break_it(transaction):
        transaction.connection.execute("INSERT INTO state VALUES ('half', x'', 1)")
        transaction.connection.execute("INSERT INTO meta VALUES ('version', 2)")

    answers = await asyncio.gather(
        store.bus.append([span_batch(1, 1)]),
        writer.call(break_it),
        store.bus.append([span_batch(2, 2)]),
        return_exceptions=True,
    )
    assert isinstance(answers[1], apsw.ConstraintError)
    assert [isinstance(answer[0], Stored) for answer in (answers[0], answers[2])] == [True, True]
    assert await store.state.get("half") is None
    assert await ids_in(store.bus) == ["s-1", "s-2"]
    assert len(await read_all(store.bus)) == 2


async def test_waiting_calls_share_commits(open_store):
    """A thousand callers at a time need a few commits, not a thousand."""
    store = await open_store()
    commits = []
    store.bus._writer._connection.set_commit_hook(lambda: bool(commits.append(1)))
    await asyncio.gather(*(store.bus.append([plain_batch(f"{n}")]) for n in range(1000)))
    assert len(commits) < 20


async def test_reads_fail_loudly_when_the_file_is_gone(open_store, path):
    """A read error is BusUnavailable with its cause, not an empty page."""
    store = await open_store()
    await store.bus.append([plain_batch("a")])
    store.bus._readers._path = path.with_name("elsewhere.db")
    with pytest.raises(BusUnavailable, match="the store cannot be read: unable to open database file"):
        await read_all(store.bus)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("count", 1001, "count: expected 1 to 1000, found 1001"),
        ("ids", ("a", "b"), "ids: expected none or, without a span, 1; found 2"),
        ("received_ms", -1, "received_ms: expected Unix milliseconds, found -1"),
        ("source", "/devices/\0", "expected no NUL character"),
        ("source", "/devices/\ud800", "surrogates not allowed"),
    ],
)
def test_a_batch_that_breaks_its_contract_is_refused_before_the_commit(field, value, message):
    """The caller's mistakes are found in the caller's own call."""
    with pytest.raises(ValueError, match=message):
        check(replace(plain_batch("a"), **{field: value}))
    with pytest.raises(TypeError, match="body: expected bytes, found str"):
        check(replace(plain_batch("a"), body="text"))


async def test_who_reads_the_same_gets_the_same_page(open_store):
    """Readers of one place share one read, while it runs and afterwards; trimming takes the page back."""
    store = await open_store()
    await store.bus.append([plain_batch("a"), plain_batch("b")])
    first, *others = await asyncio.gather(*(store.bus.read(0, Position(0), max_bytes=1 << 20) for _ in range(10)))
    again = await store.bus.read(0, Position(0), max_bytes=1 << 20)
    assert all(page is first for page in (*others, again))
    assert await store.bus.read(0, Position(0), max_bytes=1 << 19) is not first
    assert await store.bus.trim(EVERYTHING, not_past={}) == 2
    assert (await store.bus.read(0, Position(0), max_bytes=1 << 20)).batches == ()


async def test_many_who_follow_see_every_event(open_store):
    """Twenty readers at the end of the log, waiting or not, miss nothing of what is appended meanwhile, in order."""
    store = await open_store()

    async def follow(wait_s):
        seen, at = [], Position(0)
        while len(seen) < 200:
            page = await store.bus.read(0, at, max_bytes=1 << 20, wait_s=wait_s)
            seen += [batch.row for batch in page.batches]
            at = page.next
            await asyncio.sleep(0)
        return seen

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        readers = [group.create_task(follow(wait_s)) for wait_s in (0, 5) * 10]
        for n in range(200):
            await store.bus.append([plain_batch(f"{n}")])
    assert all(reader.result() == list(range(1, 201)) for reader in readers)
