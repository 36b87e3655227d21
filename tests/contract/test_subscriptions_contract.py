"""What `Subscriptions` promises, on every backend."""

from __future__ import annotations

from dataclasses import replace

import pytest
from batches import plain_batch

from gateway.errors import Fenced, NotFound, SubscriptionDiffers
from gateway.ports.bus import Beginning, End, Position
from gateway.ports.subscriptions import (
    Deferred,
    DeferredState,
    Done,
    Floor,
    Key,
    Query,
    SubscriptionSpec,
    Waiting,
)

SPEC = SubscriptionSpec(name="orders", types=("order_*",), labels=(("site", "a"),))


def entry(at, state=DeferredState.WAITING, *, subscription="orders", **more):
    return Deferred(subscription=subscription, position=Position(at), source="/devices/d", state=state, **more)


@pytest.fixture
async def lease(subscriptions):
    await subscriptions.open(SPEC, Beginning())
    return await subscriptions.claim("orders", ttl_s=30)


async def test_opening_is_idempotent_and_keeps_the_floor(subscriptions, lease):
    """The same spec again changes nothing; another one of that name is refused."""
    await subscriptions.save(lease, {0: Floor(Position(7))})
    await subscriptions.open(SPEC, End())
    (found,) = await subscriptions.list()
    assert (found.spec, found.floors) == (SPEC, {0: Floor(Position(7))})
    with pytest.raises(SubscriptionDiffers, match="'orders' exists with another specification"):
        await subscriptions.open(replace(SPEC, live=False), End())


async def test_a_subscription_opened_at_the_end_misses_the_past_only(store):
    """Events appended before it are not its own, those after are."""
    await store.bus.append([plain_batch("a", "b")])
    await store.subscriptions.open(SPEC, End())
    await store.bus.append([plain_batch("c", "d", "e")])
    (found,) = await store.subscriptions.list()
    assert found.lag == 3
    page = await store.bus.read(0, found.floors[0].position, max_bytes=1 << 20)
    assert [batch.count for batch in page.batches] == [3]


async def test_lag_counts_events_above_the_floor(store):
    """Events inside a row count one by one, those at or below the floor not at all."""
    outcomes = await store.bus.append([plain_batch("a", "b", "c"), plain_batch("d", "e")])
    await store.subscriptions.open(SPEC, Beginning())
    lease = await store.subscriptions.claim("orders", ttl_s=1)
    lags = []
    for at in (0, outcomes[0].position - 1, outcomes[0].position, outcomes[0].position | 1023, outcomes[1].position):
        await store.subscriptions.save(lease, {0: Floor(Position(at))})
        lags.append((await store.subscriptions.list())[0].lag)
    assert lags == [5, 3, 2, 2, 0]


async def test_replacing_the_spec_keeps_the_floor(subscriptions, lease):
    """A changed configuration goes on where the old one stood, and its owner stays."""
    await subscriptions.save(lease, {0: Floor(Position(7))})
    await subscriptions.replace(replace(SPEC, types=()))
    await subscriptions.save(lease, {0: Floor(Position(8))})
    (found,) = await subscriptions.list()
    assert (found.spec.types, found.floors[0].position) == ((), 8)


async def test_a_new_claim_fences_the_old_owner(subscriptions, lease):
    """The earlier owner writes nothing more; the epoch grows; the new one starts where it stood."""
    floor = Floor(Position(7), ((Position(9), Position(11)), (Position(13), Position(13))))
    await subscriptions.save(lease, {0: floor})
    newer = await subscriptions.claim("orders", ttl_s=30)
    assert (newer.epoch > lease.epoch, newer.floors) == (True, {0: floor})
    with pytest.raises(Fenced, match="'orders' was claimed by another owner"):
        await subscriptions.save(lease, {0: Floor(Position(99))}, [entry(5)])
    assert await subscriptions.deferred(Query(), limit=10) == []
    assert (await subscriptions.list())[0].floors == {0: floor}


async def test_saving_moves_floor_and_entries_together(subscriptions, lease):
    """Entries are inserted or replaced by key, resolved ones forgotten."""
    one = entry(5, attempts=1, next_ms=50, cause="503", since_ms=9, event_id="e", type="t", event=b'{"id":"e"}')
    await subscriptions.save(lease, {0: Floor(Position(9))}, [one, entry(6)])
    await subscriptions.save(lease, {}, [replace(one, attempts=2)], [Key("orders", Position(6))])
    assert await subscriptions.deferred(Query(subscription="orders"), limit=10) == [replace(one, attempts=2)]
    assert (await subscriptions.list())[0].floors == {0: Floor(Position(9))}


async def test_entries_are_found_by_every_field(subscriptions, lease):
    """A query gives what matches all its fields, in order, up to its limit."""
    entries = [
        entry(1, DeferredState.DEAD, event_id="x"),
        entry(2, next_ms=30),
        entry(3, DeferredState.BLOCKED),
        entry(4, next_ms=10),
        entry(5, next_ms=31),
    ]
    await subscriptions.save(lease, {}, entries)

    async def positions(limit=10, **fields):
        return [found.position for found in await subscriptions.deferred(Query(**fields), limit=limit)]

    assert await positions() == [1, 2, 3, 4, 5]
    assert await positions(limit=2, after=Position(1)) == [2, 3]
    assert await positions(due_ms=30) == [4, 2]
    assert await positions(state=DeferredState.BLOCKED) == [3]
    assert await positions(event_id="x", source="/devices/d", subscription="orders") == [1]
    assert await positions(source="/devices/e") == []
    assert await positions(subscription="other") == []


async def test_entries_are_discarded_or_replayed(subscriptions, lease):
    """An operator's will is applied to what exists, and counted."""
    await subscriptions.save(lease, {}, [entry(n, DeferredState.DEAD, attempts=9) for n in (1, 2)])
    keys = [Key("orders", Position(n)) for n in (1, 3)]
    assert await subscriptions.resolve(keys, Waiting(77)) == 1
    (due,) = await subscriptions.deferred(Query(due_ms=77), limit=10)
    assert (due.position, due.attempts, due.state) == (1, 0, DeferredState.WAITING)
    assert await subscriptions.resolve([*keys, Key("orders", Position(2))], Done()) == 2
    assert await subscriptions.deferred(Query(), limit=10) == []


async def test_seeking_keeps_dead_letters_only_and_fences(store, lease):
    """A rewind sets the floor, forgets what is only waiting, and takes the right from the owner."""
    await store.bus.append([plain_batch("a")])
    await store.subscriptions.save(
        lease,
        {0: Floor(Position(1), ((Position(3), Position(4)),))},
        [entry(1), entry(2, DeferredState.BLOCKED), entry(3, DeferredState.DEAD)],
    )
    await store.subscriptions.seek("orders", End())
    (found,) = await store.subscriptions.list()
    assert (found.lag, found.waiting, found.blocked, found.dead) == (0, 0, 0, 1)
    assert found.floors[0] == Floor((await store.bus.locate(End()))[0])
    with pytest.raises(Fenced):
        await store.subscriptions.save(lease, {0: Floor(Position(0))})


async def test_blocked_references_hold_the_log(subscriptions, lease):
    """`needed` is the floor, or just below the oldest blocked reference; waiting and dead entries need nothing."""
    await subscriptions.save(lease, {0: Floor(Position(9000))}, [entry(50), entry(60, DeferredState.DEAD)])
    assert (await subscriptions.list())[0].needed == {0: 9000}
    await subscriptions.save(lease, {}, [entry(70, DeferredState.BLOCKED), entry(80, DeferredState.BLOCKED)])
    (found,) = await subscriptions.list()
    assert (found.needed, found.waiting, found.blocked, found.dead) == ({0: 69}, 1, 2, 1)


async def test_pausing_is_remembered(subscriptions, lease):
    """An operator's wish is shown until it is taken back."""
    for paused in (True, False):
        await subscriptions.pause("orders", paused=paused)
        assert (await subscriptions.list())[0].paused is paused


async def test_removing_forgets_everything_of_one(subscriptions, lease):
    """The other's entries stay; removing what does not exist is no error; the owner finds nothing."""
    await subscriptions.open(SubscriptionSpec(name="carts"), End())
    await subscriptions.save(lease, {}, [entry(1), entry(1, subscription="carts")])
    await subscriptions.remove("orders")
    await subscriptions.remove("orders")
    assert [found.spec.name for found in await subscriptions.list()] == ["carts"]
    assert [found.subscription for found in await subscriptions.deferred(Query(), limit=10)] == ["carts"]
    with pytest.raises(NotFound, match="no subscription 'orders'"):
        await subscriptions.save(lease, {})


async def test_unknown_names_are_not_found(subscriptions):
    """Calls about a subscription that does not exist say how to list those that do."""
    for call in (
        subscriptions.claim("x", ttl_s=1),
        subscriptions.seek("x", End()),
        subscriptions.pause("x", paused=True),
        subscriptions.replace(SubscriptionSpec(name="x")),
    ):
        with pytest.raises(NotFound, match="no subscription 'x'; `gateway handlers list` shows those there are"):
            await call
