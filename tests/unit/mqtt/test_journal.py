"""The journal: one write at a time, who waits is told in order, a failed write is tried again with what came after."""

import asyncio

import pytest

from gateway.errors import BusUnavailable
from gateway.mqtt import journal as module
from gateway.mqtt.journal import Journal
from gateway.mqtt.turns import Tasks


class Store:
    def __init__(self):
        self.writes = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.fails = 0
        self.failure = None

    async def write(self, changes):
        await self.gate.wait()
        if self.failure:
            raise self.failure
        if self.fails:
            self.fails -= 1
            raise BusUnavailable("disk")
        self.writes.append(dict(changes))


@pytest.fixture
async def store():
    """A store that notes its writes."""
    return Store()


@pytest.fixture
async def journal(store):
    """A journal on it."""
    tasks = Tasks()
    yield Journal(store, tasks)
    await tasks.aclose(timeout_s=1)


async def test_a_turn_is_one_write(store, journal):
    """What one turn changes is written at once, the last value of each key; then who waits is told, in order."""
    told = []
    journal.then(lambda _: told.append("nothing to wait for"))
    assert told == ["nothing to wait for"]
    for n in range(3):
        journal.put("a", b"%d" % n)
        journal.then(lambda is_durable, n=n: told.append((n, is_durable)))
    journal.put("b", None)
    assert await journal.settled()
    assert store.writes == [{"a": b"2", "b": None}]
    assert told[1:] == [(0, True), (1, True), (2, True)]
    assert journal.count == 4


async def test_what_changes_meanwhile_is_the_next_write(store, journal):
    """While a write is under way everything else waits for the next one, whoever waits for it too."""
    store.gate.clear()
    journal.put("a", b"1")
    await asyncio.sleep(0.01)
    journal.put("a", b"2")
    waiting = asyncio.ensure_future(journal.settled())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    store.gate.set()
    assert await waiting
    assert store.writes == [{"a": b"1"}, {"a": b"2"}]


async def test_a_failed_write_is_tried_again(store, journal):
    """Who waits is told that it failed; the changes are kept, and newer ones win over them."""
    store.fails = 1
    journal.put("a", b"1")
    journal.put("b", b"1")
    assert not await journal.settled()
    journal.put("a", b"2")
    assert module.RETRY_S < 1
    assert journal.is_failing
    assert await journal.settled()
    assert not journal.is_failing
    assert store.writes == [{"a": b"2", "b": b"1"}]


async def test_who_waits_surely_is_told_when_it_is_written(store, journal):
    """A failed write is no answer to who must know that it is durable; they are told in order."""
    store.fails = 2
    told = []
    journal.put("a", b"1")
    journal.surely(lambda: told.append((1, list(store.writes))))
    journal.surely(lambda: told.append((2, list(store.writes))))
    assert not await journal.settled()
    assert told == []
    while not await journal.settled():
        pass
    assert told == [(1, [{"a": b"1"}]), (2, [{"a": b"1"}])]


async def test_an_unexpected_failure_is_a_failed_write(store, journal):
    """What nobody foresaw is logged, loses no change and leaves nobody waiting for ever."""
    store.failure = ValueError("too large")
    journal.put("a", b"1")
    assert not await journal.settled()
    store.failure = None
    assert await journal.settled()
    assert store.writes == [{"a": b"1"}]


async def test_one_who_waits_and_breaks(journal):
    """A failure of one who waits is not the others'."""
    told = []
    journal.put("a", b"1")
    journal.then(lambda _: 1 / 0)
    journal.then(told.append)
    assert await journal.settled()
    assert told == [True]


async def test_what_failed_never_replaces_what_is_newer(store, journal):
    """A key that changed again while its write failed is written with its last value, the others with theirs."""
    store.fails = 1
    store.gate.clear()
    journal.put("a", b"old")
    journal.put("b", b"1")
    told = []
    journal.then(told.append)
    await asyncio.sleep(0.01)
    journal.put("a", b"new")
    store.gate.set()
    assert await journal.settled()
    assert told == [False]
    assert store.writes == [{"a": b"new", "b": b"1"}]
