"""Dispatch on real stores: retries, targets that are down, dead letters, replay, crashes; order and loss throughout."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from dispatch_bench import Bench, batch, ids, make_bench, until

from edge_protocol.events import Event
from gateway.dispatch import DispatchState
from gateway.errors import BusUnavailable, NotFound
from gateway.ports.subscriptions import DeferredState, Done, SubscriptionSpec, Waiting
from gateway.ports.target import Delivered, Down, Failed, Refused, Verdict
from gateway.rules.retry import RetryPolicy
from gateway.storage import Storage, open_storage

DEAD, WAITING, BLOCKED = DeferredState.DEAD, DeferredState.WAITING, DeferredState.BLOCKED


@pytest.fixture(params=["memory://", "sqlite:///{directory}/bus.db"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Storage]:
    opened = await open_storage(request.param.format(directory=tmp_path), min_free_disk_bytes=0)
    yield opened
    await opened.aclose()


def fails(*bad: str, cause: str = "HTTP 500", times: int = 10**9) -> Any:
    """An answer that fails some events a number of times."""
    counts = dict.fromkeys(bad, 0)

    def answer(event: Event, _attempt: int) -> Verdict:
        if event.id in counts and counts[event.id] < times:
            counts[event.id] += 1
            return Failed(cause)
        return Delivered()

    return answer


async def floor(bench: Bench) -> int:
    return (await bench.store.subscriptions.list())[0].floors[0].position


async def test_delivers_in_order_and_saves_where_it_stands(store: Storage) -> None:
    """Events of a device come in order with stream and sequence; after a stop nothing is delivered again."""
    bench = await make_bench(store)
    await bench.append(batch("a", 1, 50), batch("b", 1, 50), batch("a", 51, 50))
    async with bench.running():
        await until(lambda: bench.target.taken == 150)
    assert bench.target.took == {"/devices/a": ids("a", 1, 100), "/devices/b": ids("b", 1, 50)}
    assert (await store.subscriptions.list())[0].lag == 0
    async with bench.running():
        await bench.append(batch("b", 51))
        await until(lambda: bench.target.taken == 151)
    assert bench.target.tries[-1] == ("b-51", "/devices/b#b-51", 1)


async def test_poison_event_is_dead_lettered_and_others_flow(store: Storage) -> None:
    """A failing event is retried to its last attempt, then a dead letter with cause; its device's order holds."""
    bench = await make_bench(store)
    bench.target.answer = fails("a-2")
    await bench.append(batch("a", 1, 3), batch("b", 1, 20), batch("a", 4, 2))
    async with bench.running() as dispatcher:
        await until(lambda: bench.target.taken == 24)
        (dead,) = await bench.until_entries(1, DEAD)
        await bench.until_entries(0, BLOCKED)
    assert await bench.entries() == [dead]
    assert bench.target.took == {"/devices/a": ["a-1", "a-3", "a-4", "a-5"], "/devices/b": ids("b", 1, 20)}
    assert [attempt for id_, _, attempt in bench.target.tries if id_ == "a-2"] == [1, 2, 3, 4, 5]
    assert (dead.event_id, dead.type, dead.attempts, dead.source) == ("a-2", "t", 5, "/devices/a")
    assert dead.cause == "failed 5 of 5 attempts: HTTP 500"
    assert b'"sequence":"2"' in dead.event
    tally = dispatcher.stats().tally
    assert (tally.delivered, tally.failed, tally.retried, tally.dead) == (24, 5, 4, 1)


async def test_refused_event_is_a_dead_letter_at_once(store: Storage) -> None:
    """What the service will never take is not tried again."""
    bench = await make_bench(store)
    bench.target.answer = lambda event, _: Refused("HTTP 422: no") if event.id == "a-1" else Delivered()
    await bench.append(batch("a", 1, 2))
    async with bench.running():
        (dead,) = await bench.until_entries(1, DEAD)
        await until(lambda: bench.target.taken == 1)
    assert (dead.cause, dead.attempts) == ("HTTP 422: no", 1)


async def test_replay_delivers_under_the_same_key(store: Storage) -> None:
    """A dead letter that is replayed comes under its old idempotency key, at its first attempt, and is forgotten."""
    bench = await make_bench(store)
    bench.target.answer = fails("a-1", times=5)
    await bench.append(batch("a", 1, 2))
    async with bench.running() as dispatcher:
        (dead,) = await bench.until_entries(1, DEAD)
        await store.subscriptions.resolve([dead.key], Waiting(int(time.time() * 1000)))
        dispatcher.wake()
        await until(lambda: bench.target.taken == 2)
        await bench.until_entries(0, WAITING)
        await bench.until_entries(0, BLOCKED)
    assert await bench.entries() == []
    assert {key for id_, key, _ in bench.target.tries if id_ == "a-1"} == {"/devices/a#a-1"}
    assert bench.target.tries[-1] == ("a-1", "/devices/a#a-1", 1)


async def test_replay_is_noticed_without_a_wake(store: Storage) -> None:
    """Due entries are looked for every second, so a replay by another process works too."""
    bench = await make_bench(store)
    bench.target.answer = fails("a-1", times=5)
    await bench.append(batch("a", 1))
    async with bench.running():
        (dead,) = await bench.until_entries(1, DEAD)
        await store.subscriptions.resolve([dead.key], Waiting(int(time.time() * 1000)))
        await until(lambda: bench.target.taken == 1, timeout_s=3)


@pytest.mark.parametrize("operator", ["replay", "discard"])
async def test_block_mode_waits_for_the_operator(store: Storage, operator: str) -> None:
    """With `block` a device's later events wait for its dead letter, over a restart; other devices do not."""
    bench = await make_bench(store, on_dead_letter="block")
    bench.target.answer = fails("a-2", times=5)
    await bench.append(batch("a", 1, 3), batch("b", 1, 3), batch("a", 4, 2))
    async with bench.running():
        await bench.until_entries(1, DEAD)
        await until(lambda: bench.target.taken == 4)
    async with bench.running() as dispatcher:
        await bench.append(batch("a", 6), batch("b", 4))
        await until(lambda: bench.target.taken == 5)
        await bench.until_entries(3, BLOCKED)
        (dead,) = await bench.entries(DEAD)
        await store.subscriptions.resolve([dead.key], Waiting(0) if operator == "replay" else Done())
        dispatcher.wake()
        expected = ids("a", 1, 6) if operator == "replay" else ["a-1", *ids("a", 3, 6)]
        await until(lambda: bench.target.took["/devices/a"] == expected)
        await bench.append(batch("a", 7))
        await until(lambda: bench.target.took["/devices/a"] == [*expected, "a-7"])
        await bench.until_entries(0, BLOCKED)
    assert await bench.entries() == []
    assert (await store.subscriptions.list())[0].lag == 0


async def test_deferred_event_blocks_only_its_device(store: Storage) -> None:
    """While an event waits for its retry its device's batches are references, the floor moves, order holds after."""
    bench = await make_bench(store, retry=RetryPolicy(max_attempts=5, first_s=0.2, max_s=0.8))
    bench.target.answer = fails("a-1", times=3)
    await bench.append(batch("a", 1, 2), batch("b", 1, 2))
    async with bench.running(random=lambda: 0.99) as dispatcher:
        await bench.until_entries(1, WAITING)
        await bench.append(*(batch("a", n, 2) for n in range(3, 23, 2)), batch("b", 3))
        await until(lambda: bench.target.took["/devices/b"] == ids("b", 1, 3))
        await bench.until_entries(11, BLOCKED)
        (state,) = await store.subscriptions.list()
        assert (state.lag, state.waiting, state.blocked) == (0, 1, 11)
        assert dispatcher.stats().window == 0
        await until(lambda: bench.target.taken == 25)
        await bench.until_entries(0, BLOCKED)
    assert bench.target.took["/devices/a"] == ids("a", 1, 22)
    assert await bench.entries() == []


async def test_target_that_is_down_costs_no_dead_letter_and_no_order(store: Storage) -> None:
    """Down for longer than all retries together: paused with cause, one probe at a time, resumed by itself."""
    bench = await make_bench(store)
    down = True
    bench.target.answer = lambda *_: Down("cannot connect") if down else Delivered()
    await bench.append(*(batch(device, n, 5) for n in (1, 6) for device in "abcdefgh"))
    async with bench.running() as dispatcher:
        await until(lambda: len(bench.target.tries) > 40)
        stats = dispatcher.stats()
        assert (stats.state, stats.cause, stats.inflight <= 1) == (DispatchState.DOWN, "cannot connect", True)
        assert abs(stats.since_ms - time.time() * 1000) < 10_000
        down = False
        await until(lambda: bench.target.taken == 80)
        assert dispatcher.stats().state is DispatchState.RUNNING
        assert dispatcher.stats().since_ms is None
        assert dispatcher.stats().tally.down == 1
    assert bench.target.took == {f"/devices/{device}": ids(device, 1, 10) for device in "abcdefgh"}
    assert {attempt for _, _, attempt in bench.target.tries} == {1}
    assert await bench.entries() == []


async def test_retry_after_is_honoured_by_the_pause(store: Storage) -> None:
    """No probe comes before the Retry-After of a service that is down, on the injected clock."""
    bench = await make_bench(store)
    now_s = 1000.0
    bench.target.answer = lambda *_: Down("HTTP 503", 60.0) if now_s < 1060 else Delivered()
    await bench.append(batch("a", 1))
    async with bench.running(monotonic=lambda: now_s) as dispatcher:
        await until(lambda: dispatcher.stats().state is DispatchState.DOWN)
        now_s = 1059.0
        dispatcher.wake()
        await asyncio.sleep(0.05)
        assert len(bench.target.tries) == 1
        now_s = 1060.0
        dispatcher.wake()
        await until(lambda: bench.target.taken == 1)


async def test_gives_up_after_a_day_down(store: Storage) -> None:
    """An event whose first attempt lies give_up_after back is a dead letter with the reason."""
    bench = await make_bench(store, give_up_after_s=86_400)
    ahead_s = 0.0
    bench.target.answer = lambda *_: Down("cannot connect")
    await bench.append(batch("a", 1, 2))
    async with bench.running(monotonic=lambda: time.monotonic() + ahead_s) as dispatcher:
        await until(lambda: bench.target.tries)
        ahead_s = 86_400
        dispatcher.wake()
        (dead,) = await bench.until_entries(1, DEAD)
        assert dead.cause == "gave up after the target was down for 86400 s: cannot connect"
        assert (dead.event_id, dead.attempts) == ("a-1", 0)


async def test_crash_loses_nothing_and_repeats_at_most_a_window(store: Storage) -> None:
    """Killed at random moments, with failures: all arrives, in order, and a window at most comes again each time."""
    bench = await make_bench(store, window_events=20)
    bench.target.answer = fails("a-7", "b-20", times=4)
    for n in range(1, 60, 3):
        await bench.append(batch("a", n, 3), batch("b", n, 3))
    repeated = 0
    for kill_at in (5, 17, 40, 80):
        async with bench.doomed():
            await until(lambda at=kill_at: len({id_ for took in bench.target.took.values() for id_ in took}) >= at)
        repeated += 20
    async with bench.running():
        await until(
            lambda: (bench.target.took["/devices/a"][-1:], bench.target.took["/devices/b"][-1:]) == (["a-60"], ["b-60"])
        )
        await bench.until_entries(0, WAITING)
        await bench.until_entries(0, BLOCKED)
    assert await bench.entries() == []
    for device in "ab":
        took = bench.target.took[f"/devices/{device}"]
        assert list(dict.fromkeys(took)) == ids(device, 1, 60)
    assert bench.target.taken <= 120 + repeated


async def test_stop_waits_for_what_runs(store: Storage) -> None:
    """A stop lets running deliveries end and saves them; nothing new starts."""
    bench = await make_bench(store)
    bench.target.gate = asyncio.Event()
    await bench.append(batch("a", 1, 3), batch("b", 1))
    dispatcher = bench.dispatcher()
    async with asyncio.TaskGroup() as group:
        group.create_task(dispatcher.run())
        await until(lambda: dispatcher.stats().inflight == 2)
        stopping = group.create_task(dispatcher.stop(5.0))
        await asyncio.sleep(0)
        bench.target.gate.set()
        await stopping
    assert bench.target.took == {"/devices/a": ["a-1"], "/devices/b": ["b-1"]}
    assert dispatcher.stats().state is DispatchState.STOPPED
    async with bench.running():
        await until(lambda: bench.target.taken == 4)
    assert bench.target.took == {"/devices/a": ids("a", 1, 3), "/devices/b": ["b-1"]}


async def test_stop_cancels_what_hangs(store: Storage) -> None:
    """A delivery that outlasts the timeout is cancelled and comes again at the next start."""
    bench = await make_bench(store)
    bench.target.gate = asyncio.Event()
    await bench.append(batch("a", 1))
    async with asyncio.TaskGroup() as group:
        dispatcher = bench.dispatcher()
        group.create_task(dispatcher.run())
        await until(lambda: dispatcher.stats().inflight == 1)
        await dispatcher.stop(0.01)
    assert bench.target.tries == []
    bench.target.gate = None
    async with bench.running():
        await until(lambda: bench.target.taken == 1)


async def test_operator_pauses_and_resumes(store: Storage) -> None:
    """Paused, nothing is delivered and the floor stays, over a restart; resumed, all comes in order."""
    bench = await make_bench(store)
    await store.subscriptions.pause("orders", paused=True)
    await bench.append(batch("a", 1, 3))
    async with bench.running() as dispatcher:
        await until(lambda: dispatcher.stats().state is DispatchState.PAUSED)
        await until(lambda: dispatcher.stats().window == 3)
        assert await floor(bench) == 0
        await store.subscriptions.pause("orders", paused=False)
        dispatcher.wake()
        await until(lambda: bench.target.taken == 3)
        await store.subscriptions.pause("orders", paused=True)
        dispatcher.wake()
        await until(lambda: dispatcher.stats().state is DispatchState.PAUSED)
        await bench.append(batch("a", 4))
    assert bench.target.took == {"/devices/a": ids("a", 1, 3)}


async def test_fenced_dispatcher_stops(store: Storage) -> None:
    """Another owner's claim ends the run, with the reason in the stats and without an exception."""
    bench = await make_bench(store)
    dispatcher = bench.dispatcher()
    async with asyncio.TaskGroup() as group:
        group.create_task(dispatcher.run())
        await until(lambda: dispatcher.stats().state is DispatchState.RUNNING)
        await store.subscriptions.claim("orders", ttl_s=60)
        await bench.append(batch("a", 1))
    assert dispatcher.stats().state is DispatchState.STOPPED
    assert dispatcher.stats().cause == "fenced: subscription 'orders' was claimed by another owner"


async def test_unknown_subscription_is_told(store: Storage) -> None:
    """Running a handler whose subscription was never opened raises."""
    bench = await make_bench(store)
    bench.spec = SubscriptionSpec(name="nobody")
    with pytest.raises(NotFound, match="no subscription 'nobody'"):
        await bench.dispatcher().run()


async def test_selects_by_type_device_and_label(store: Storage) -> None:
    """Only events of the types, devices and labels asked for come; the rest is finished unread."""
    spec = SubscriptionSpec(name="some", types=("order_*",), devices=("cart-*",), labels=(("site", "north"),))
    bench = await make_bench(store, spec)
    await bench.append(
        batch("cart-1", 1, type_="order_placed"),
        batch("cart-1", 2, type_="cart_updated"),
        batch("till-1", 1, type_="order_placed"),
        batch("cart-2", 1, type_="order_placed"),
        batch("x", 1, type_="order_placed", source="/services/shop"),
        batch("cart-1", 3, type_="order_paid"),
    )
    async with bench.running(labels_of=lambda device: {"site": "south" if device == "cart-2" else "north"}):
        await until(lambda: bench.target.taken == 2)
    assert bench.target.took == {"/devices/cart-1": ["cart-1-1", "cart-1-3"]}
    assert next(state.lag for state in await store.subscriptions.list()) == 0


async def test_without_ordering_a_failing_event_holds_nothing_up(store: Storage) -> None:
    """With ordering "none" later events of a device pass one that is retried, and several run at a time."""
    bench = await make_bench(store, ordering="none", concurrency=4)
    bench.target.answer = fails("a-1", times=4)
    bench.target.running = type("Any", (set,), {"__contains__": lambda *_: False})()
    await bench.append(batch("a", 1, 30), batch("a", 31))
    async with bench.running():
        await until(lambda: bench.target.taken == 31)
        await bench.until_entries(0, WAITING)
    assert sorted(bench.target.took["/devices/a"]) == sorted(ids("a", 1, 31))
    assert bench.target.took["/devices/a"][0] == "a-2"
    assert await bench.entries() == []


class Moody:
    """A real port that is unavailable at every other call."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self._calls = 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        if not callable(found):
            return found

        async def call(*args: Any, **how: Any) -> Any:
            self._calls += 1
            if self._calls % 2:
                raise BusUnavailable("the disk is gone")
            return await found(*args, **how)

        return call


async def test_unavailable_storage_is_waited_for(store: Storage) -> None:
    """Storage that fails at every other call slows dispatch down and loses nothing."""
    bench = await make_bench(store)
    bench.target.answer = fails("a-2", times=4)
    await bench.append(batch("a", 1, 4), batch("b", 1, 4))
    parts = {"bus": Moody(store.bus), "subscriptions": Moody(store.subscriptions), "random": lambda: 0.05}
    async with bench.running(**parts):
        await until(lambda: bench.target.taken == 8)
        await bench.until_entries(0, WAITING)
    assert bench.target.took == {"/devices/a": ids("a", 1, 4), "/devices/b": ids("b", 1, 4)}


async def test_tells_each_success(store: Storage) -> None:
    """The service's callback gets the event, when it arrived and how long the delivery took."""
    bench = await make_bench(store)
    told: list[tuple[str, int | None, float]] = []
    await bench.append(batch("a", 1))
    async with bench.running(on_delivered=lambda event, at_ms, took_s: told.append((event.id, at_ms, took_s))):
        await until(lambda: told)
    ((id_, at_ms, took_s),) = told
    assert (id_, at_ms) == ("a-1", 1_700_000_000_000)
    assert 0 <= took_s < 5


async def test_small_window_never_stalls(store: Storage) -> None:
    """A window of two events passes a backlog of many, with one device stuck all the time."""
    bench = await make_bench(store, window_events=2)
    bench.target.answer = fails("a-1", "a-2")
    await bench.append(*(batch(device, n, 2) for n in range(1, 21, 2) for device in "abc"))
    async with bench.running():
        await until(lambda: bench.target.taken == 58, timeout_s=30)
        await bench.until_entries(2, DEAD)
    assert bench.target.took["/devices/b"] == ids("b", 1, 20)
    assert bench.target.took["/devices/a"] == ids("a", 3, 20)
