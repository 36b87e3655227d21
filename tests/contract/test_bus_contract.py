"""What `EventBus` promises, on every backend."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from batches import NOW_MS, ids_in, plain_batch, read_all, span_batch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.errors import BusFull, BusUnavailable, Trimmed
from gateway.ports.bus import Beginning, End, Forked, Position, Retention, Stored, index_of, position, row_of
from gateway.ports.subscriptions import SubscriptionSpec

EVERYTHING = Retention(age_s=0, size_bytes=0)


async def test_an_appended_batch_is_read_back_as_it_was(bus):
    """A row holds what was appended, deflated bodies included, and names its place in the stream."""
    batch = span_batch(1, 3, pack=True)
    (outcome,) = await bus.append([batch])
    (row,) = await read_all(bus)
    assert outcome == Stored(row.end)
    assert (row.source, row.stream, row.first, row.count) == ("/devices/d", "s", 1, 3)
    assert (row.body, row.encoding, row.types, row.received_ms) == (batch.body, "deflate", ("reading",), NOW_MS)


async def test_positions_grow_and_name_the_last_event(bus):
    """The outcome's position is row << 10 | index of the last event, and later appends lie above earlier ones."""
    outcomes = await bus.append([span_batch(1, 1000), span_batch(1001, 1001)])
    assert [index_of(outcome.position) for outcome in outcomes] == [999, 0]
    assert row_of(outcomes[0].position) < row_of(outcomes[1].position)


async def test_a_repeated_batch_is_a_success_and_stored_once(bus):
    """The same batches again: all duplicates, nothing new, whether in a later call or in the same one."""
    batches = [span_batch(1, 5), plain_batch("a", "b"), span_batch(1, 5), plain_batch("a", "b")]
    first = await bus.append(batches)
    again = await bus.append(batches[:2])
    assert [outcome.duplicates for outcome in first] == [0, 0, 5, 2]
    assert again == [Stored(Position(0), 5), Stored(Position(0), 2)]
    assert len(await read_all(bus)) == 2


async def test_concurrent_repeats_share_a_commit_and_are_stored_once(bus):
    """Callers that append the same batch at the same time: one stores, the others learn of duplicates."""
    answers = await asyncio.gather(*(bus.append([span_batch(1, 3), plain_batch("x")]) for _ in range(20)))
    assert sum(answer[0].duplicates == 0 for answer in answers) == 1
    assert sum(answer[1].duplicates == 0 for answer in answers) == 1
    assert await ids_in(bus) == ["s-1", "s-2", "s-3", "x"]


@pytest.mark.parametrize("pack", [False, True])
async def test_only_the_new_parts_of_a_span_are_stored(bus, pack):
    """A span that overlaps what is stored adds one row for each contiguous new run."""
    await bus.append([span_batch(3, 4), span_batch(7, 8)])
    (outcome,) = await bus.append([span_batch(1, 10, pack=pack)])
    rows = await read_all(bus)
    assert outcome == Stored(rows[-1].end, 4)
    assert [(row.first, row.count, row.encoding) for row in rows[2:]] == [
        (1, 2, "deflate" * pack),
        (5, 2, "deflate" * pack),
        (9, 2, "deflate" * pack),
    ]
    assert sorted(await ids_in(bus), key=lambda id_: int(id_[2:])) == [f"s-{n}" for n in range(1, 11)]


async def test_ids_are_compared_within_a_source_only(bus):
    """The same id of another source is another event; a batch's repeated id counts once."""
    outcomes = await bus.append([plain_batch("a", "b", "a"), plain_batch("a", source="/devices/e")])
    assert [outcome.duplicates for outcome in outcomes] == [1, 0]
    outcomes = await bus.append([plain_batch("0", "b", "1", "a", "2")])
    assert outcomes[0].duplicates == 2
    assert await ids_in(bus) == ["a", "b", "a", "0", "1", "2"]


async def test_uuids_and_texts_never_meet(bus):
    """An id that is a UUID and a text with the same sixteen bytes are two events."""
    uuid = "61616161-6161-6161-6161-616161616161"
    outcomes = await bus.append(
        [plain_batch(uuid), plain_batch("a" * 16), plain_batch(uuid.upper().replace("61", "6A"))]
    )
    assert [outcome.duplicates for outcome in outcomes] == [0, 0, 0]
    outcomes = await bus.append([plain_batch(uuid, "a" * 16)])
    assert outcomes[0].duplicates == 2


async def test_events_without_own_ids_are_never_duplicates(bus):
    """Where the gateway made the ids, every append is new."""
    outcomes = await bus.append([plain_batch("a", own_ids=False)] * 2)
    assert [outcome.duplicates for outcome in outcomes] == [0, 0]


async def test_ids_are_forgotten_after_the_window_only(opened):
    """Within the window a repeat is a duplicate; long after it, the same id is a new event."""
    now = [1_700_000_000.0]
    bus = (await opened(deduplication_window_s=3 * 86400, clock=lambda: now[0])).bus
    await bus.append([plain_batch("a")])
    now[0] += 3 * 86400 - 1
    assert (await bus.append([plain_batch("a")]))[0].duplicates == 1
    now[0] += 5 * 86400
    assert (await bus.append([plain_batch("a")]))[0].duplicates == 0


async def test_another_id_at_the_end_of_a_range_is_a_fork(bus):
    """A restored or cloned disk sends other events under known numbers: refused, and its neighbours are not."""
    await bus.append([span_batch(1, 5)])
    outcomes = await bus.append([span_batch(1, 5, tag="x"), span_batch(4, 7, tag="x"), span_batch(6, 7)])
    assert outcomes[:2] == [Forked("event 5 was stored with another id")] * 2
    assert outcomes[2].duplicates == 0
    assert await ids_in(bus) == [f"s-{n}" for n in range(1, 8)]


async def test_a_source_has_at_most_64_streams(bus):
    """The 64th stream is taken, the 65th refused, and the known ones go on."""
    outcomes = await bus.append([span_batch(1, 1, stream=f"s{n}") for n in range(65)])
    assert [isinstance(outcome, Stored) for outcome in outcomes] == [True] * 64 + [False]
    assert outcomes[64] == Forked("the source has 64 streams already", "too-many-streams")
    later = await bus.append([span_batch(1, 1, stream="s64"), span_batch(2, 2, stream="s63")])
    assert [type(outcome) for outcome in later] == [Forked, Stored]


async def test_a_stream_has_at_most_1000_ranges(bus):
    """The 1,000th range is taken, the 1,001st refused; `settled` closes the holes and makes room."""
    outcomes = await bus.append([span_batch(2 * n, 2 * n) for n in range(1, 1002)])
    assert all(isinstance(outcome, Stored) for outcome in outcomes[:1000])
    assert outcomes[1000] == Forked("more than 1000 ranges with holes between them", "too-many-ranges")
    again = await bus.append([span_batch(2002, 2002), span_batch(2002, 2002, settled=5)])
    assert [type(outcome) for outcome in again] == [Forked, Stored]


@pytest.mark.parametrize(("count", "fits"), [(0, False), (1, True), (999, True), (1000, True), (1001, False)])
async def test_a_batch_has_1_to_1000_events(bus, count, fits):
    """A batch outside the limit is the caller's mistake and stores nothing, its neighbours in the call included."""
    if fits:
        (outcome,) = await bus.append([span_batch(1, count)])
        assert index_of(outcome.position) == count - 1
    else:
        bad = replace(plain_batch("a", own_ids=False), count=count)
        with pytest.raises(ValueError, match=f"count: expected 1 to 1000, found {count}"):
            await bus.append([span_batch(1, 1), bad])
        assert await read_all(bus) == []


@pytest.mark.parametrize(("first", "settled"), [(0, 0), (2**63 - 1, 0), (1, 2**63)])
async def test_sequences_beyond_64_bits_are_a_fork(bus, first, settled):
    """Numbers that no store can hold are refused without harm to the neighbours."""
    outcomes = await bus.append([span_batch(1, 1), span_batch(first, first + 1, stream="t", settled=settled)])
    assert [type(outcome) for outcome in outcomes] == [Stored, Forked]
    assert "expected 1 to 9223372036854775807" in outcomes[1].detail


async def test_a_batch_that_cannot_be_cut_does_not_poison_its_commit(bus):
    """A body that is no JSON fails its own call only; concurrent calls are stored."""
    await bus.append([span_batch(1, 2)])
    bad = replace(span_batch(2, 3), body=b"not json")
    good, failed = await asyncio.gather(
        bus.append([span_batch(1, 1, stream="t")]), bus.append([bad]), return_exceptions=True
    )
    assert isinstance(failed, ValueError)
    assert isinstance(good[0], Stored)
    assert await ids_in(bus) == ["s-1", "s-2", "t-1"]


async def test_batches_of_a_source_keep_the_order_of_the_calls(bus):
    """Concurrent calls land in the order in which they were made."""
    await asyncio.gather(*(bus.append([plain_batch(f"{n}")]) for n in range(300)))
    assert await ids_in(bus) == [f"{n}" for n in range(300)]


async def test_cancelling_the_caller_does_not_cancel_the_append(bus):
    """What was handed over is stored although nobody waits any more."""
    task = asyncio.create_task(bus.append([plain_batch("a")]))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert (await bus.append([plain_batch("a")]))[0].duplicates == 1


async def test_pages_have_no_gap_and_keep_to_their_size(bus):
    """Reading on from `next` shows every event once; a page has one batch at least, and no more bytes than asked."""
    await bus.append([plain_batch(f"{n}", pad=100) for n in range(50)])
    size = len((await read_all(bus))[0].body)
    for limit in (1, size, 3 * size - 1, 3 * size, 1 << 20):
        page = await bus.read(0, Position(0), max_bytes=limit)
        assert len(page.batches) == max(1, min(limit // size, 50))
        assert page.next == page.batches[-1].end
        assert len(await read_all(bus, max_bytes=limit)) == 50


async def test_a_row_is_returned_whole_unless_its_last_event_is_behind(bus):
    """A position inside a row brings the row back; its last event's does not."""
    (outcome,) = await bus.append([plain_batch("a", "b", "c")])
    row = row_of(outcome.position)
    for index, count in ((0, 1), (1, 1), (2, 0), (1023, 0)):
        assert len((await bus.read(0, position(row, index), max_bytes=1)).batches) == count


async def test_a_waiting_read_wakes_on_append(bus):
    """`wait_s` ends with the append, not with the time; without one it ends with the same position."""
    reader = asyncio.create_task(bus.read(0, Position(0), max_bytes=1, wait_s=60))
    await asyncio.sleep(0.01)
    assert not reader.done()
    await bus.append([plain_batch("a")])
    page = await asyncio.wait_for(reader, 5)
    assert len(page.batches) == 1
    assert await bus.read(0, page.next, max_bytes=1, wait_s=0.01) == type(page)((), page.next)


async def test_locate_names_beginning_end_times_and_positions(bus):
    """Each start becomes a position to read on from."""
    await bus.append([plain_batch(f"{n}", received_ms=NOW_MS + 1000 * n) for n in range(5)])
    at = datetime.fromtimestamp(NOW_MS / 1000, UTC)
    for start, rest in (
        (Beginning(), 5),
        (End(), 0),
        (at - timedelta(days=1), 5),
        (at, 5),
        (at + timedelta(seconds=2), 3),
        (at + timedelta(seconds=2.5), 2),
        (at + timedelta(seconds=4), 1),
        (at + timedelta(seconds=5), 0),
    ):
        assert len(await read_all(bus, (await bus.locate(start))[0])) == rest
    assert await bus.locate(Position(77)) == {0: 77}


async def test_stored_through_counts_what_is_settled(bus):
    """A stream is stored up to its first hole; settled holes count; unknown streams are not in the answer."""
    await bus.append(
        [span_batch(1, 5), span_batch(8, 9), span_batch(3, 4, stream="t"), span_batch(15, 20, stream="u", settled=12)]
    )
    assert await bus.stored_through("/devices/d", ["s", "t", "u", "x"]) == {"s": 5, "t": 0, "u": 12}
    await bus.append([span_batch(10, 10, settled=7)])
    assert await bus.stored_through("/devices/d", ["s"]) == {"s": 10}
    assert await bus.stored_through("/devices/e", ["s"]) == {}


async def test_trim_never_removes_at_or_past(bus):
    """Rows whose events all lie below `not_past` go, the one that contains it and all after stay."""
    outcomes = await bus.append([plain_batch(f"{n}", f"{n}b") for n in range(5)])
    assert await bus.trim(EVERYTHING, not_past={0: outcomes[2].position}) == 4
    assert await bus.trim(EVERYTHING, not_past={0: outcomes[2].position}) == 0
    assert len(await read_all(bus)) == 3
    assert await bus.trim(EVERYTHING, not_past={0: Position(outcomes[3].position - 1)}) == 2
    assert len(await read_all(bus)) == 2


async def test_trim_keeps_what_is_young_and_fits(opened):
    """Rows go by age or by size, oldest first, in calls of bounded work."""
    bus = (await opened(clock=lambda: NOW_MS / 1000 + 100)).bus
    await bus.append([plain_batch(f"{n}", received_ms=NOW_MS + 1000 * n) for n in range(50)])
    keep = Retention(age_s=80, size_bytes=1 << 40)
    assert await bus.trim(keep, not_past={}) == 20
    assert await bus.trim(keep, not_past={}) == 0
    assert (await bus.stats()).events == 30


async def test_reading_what_was_trimmed_says_so(bus):
    """A reader behind the trimmed part learns where to read on; position 0 reads from the oldest."""
    outcomes = await bus.append([plain_batch(f"{n}") for n in range(5)])
    await bus.trim(EVERYTHING, not_past={0: outcomes[3].position})
    with pytest.raises(Trimmed, match="have been removed by retention") as caught:
        await bus.read(0, outcomes[0].position, max_bytes=1)
    assert len(await read_all(bus, caught.value.first)) == 2
    assert len(await read_all(bus, outcomes[2].position)) == 2
    assert len(await read_all(bus)) == 2


async def test_an_emptied_log_goes_on_and_still_knows_its_streams(bus):
    """After everything was trimmed, positions go on growing and repeats are still duplicates."""
    (outcome,) = await bus.append([span_batch(1, 3)])
    assert await bus.trim(EVERYTHING, not_past={}) == 3
    stats = await bus.stats()
    assert (stats.events, stats.batches, stats.first, stats.last) == (0, 0, 0, 0)
    with pytest.raises(Trimmed) as caught:
        await bus.read(0, position(row_of(outcome.position), 0), max_bytes=1)
    repeated, new = await bus.append([span_batch(1, 3), span_batch(4, 4)])
    assert repeated.duplicates == 3
    assert new.position > outcome.position
    assert len(await read_all(bus, caught.value.first)) == 1


async def test_stats_count_events_and_batches(bus):
    """Counts and bounds follow appends and trims."""
    outcomes = await bus.append([plain_batch("a", "b"), plain_batch("c"), plain_batch("d", "e", "f")])
    stats = await bus.stats()
    assert (stats.events, stats.batches) == (6, 3)
    assert (stats.first, stats.last) == (position(row_of(outcomes[0].position), 0), outcomes[2].position)
    assert stats.bytes > 0
    assert stats.free_bytes > 0
    await bus.trim(EVERYTHING, not_past={0: outcomes[1].position})
    stats = await bus.stats()
    assert (stats.events, stats.batches, stats.first) == (4, 2, outcomes[1].position)


async def test_a_store_over_its_size_is_full_while_a_subscription_needs_all(opened):
    """With nothing to trim appends raise BusFull; other calls go on, and so do appends once there is room."""
    store = await opened(retention=Retention(age_s=0, size_bytes=1))
    await store.subscriptions.open(SubscriptionSpec(name="h"), Beginning())
    await store.bus.append([plain_batch("a")])
    with pytest.raises(
        BusFull, match=r"over the 1 B of bus\.retention, and live subscriptions need all of it"
    ) as refused:
        await append_for_ever(store.bus)
    assert (await store.bus.stats()).full == str(refused.value)
    await store.subscriptions.remove("h")
    assert (await store.bus.stats()).full == ""
    async with asyncio.timeout(5):
        while True:
            try:
                await store.bus.append([plain_batch("c")])
                break
            except BusFull:
                await asyncio.sleep(0.05)


async def append_for_ever(bus):
    """The look at the size is a second old at most."""
    while True:
        await bus.append([plain_batch("b")])
        await asyncio.sleep(0.05)


async def test_closing_finishes_what_was_accepted(opened):
    """Appends that were made before the close are answered; a second close does nothing."""
    store = await opened()
    appends = [asyncio.create_task(store.bus.append([plain_batch(f"{n}")])) for n in range(20)]
    await asyncio.sleep(0)
    await asyncio.gather(store.bus.aclose(), store.bus.aclose())
    await store.bus.aclose()
    assert all(isinstance(outcome, Stored) for (outcome,) in await asyncio.gather(*appends))


async def test_a_closed_store_refuses_calls_and_ends_waits(opened):
    """After the close every call raises BusUnavailable, a read that waits included."""
    store = await opened()
    reader = asyncio.create_task(store.bus.read(0, Position(0), max_bytes=1, wait_s=60))
    await asyncio.sleep(0.01)
    await store.aclose()
    for call in (
        reader,
        store.bus.append([plain_batch("a")]),
        store.bus.read(0, Position(0), max_bytes=1),
        store.bus.locate(End()),
        store.bus.stored_through("/devices/d", []),
        store.bus.trim(EVERYTHING, not_past={}),
        store.bus.stats(),
        store.subscriptions.list(),
        store.state.get("k"),
        store.state.put("k", b"", expect=None),
    ):
        with pytest.raises(BusUnavailable, match="the store is closed"):
            await asyncio.wait_for(call, 5)


SPANS = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 8), st.integers(0, 12)), min_size=1, max_size=12)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spans=SPANS)
async def test_any_spans_store_every_event_once(bus, spans):
    """Whatever overlaps and in whatever order, each event that was not settled before is stored exactly once."""
    stream = f"s{await _count(bus)}"
    source = f"/devices/{stream}"
    expected, known = set(), set()
    for first, more, settled in spans:
        (outcome,) = await bus.append([span_batch(first, first + more, stream=stream, source=source, settled=settled)])
        new = set(range(first, first + more + 1)) - known
        assert outcome.duplicates == more + 1 - len(new)
        expected |= new
        known |= new | set(range(1, settled + 1))
    rows = [row for row in await read_all(bus) if row.source == source]
    stored = [row.first + n for row in rows for n in range(row.count)]
    assert sorted(stored) == sorted(expected)


async def _count(bus):
    return (await bus.stats()).batches
