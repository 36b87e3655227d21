"""gateway.rules.plan: the whole plan against a world of sources, verdicts, saves, crashes and operators."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from soak import SOAK

from edge_protocol.events import Event
from gateway.rules.breaker import Health
from gateway.rules.delivery import Aside, Changes, Item, Row, Stage
from gateway.rules.handling import HandlerSettings
from gateway.rules.plan import Plan
from gateway.rules.retry import PausePolicy, RetryPolicy

WINDOW = 12


class World:
    """A log, a store that keeps what was saved, and the shell's part of dispatch, without waiting."""

    def __init__(
        self, rows: list[tuple[int, int]], *, ordering: str = "device", block: bool = False, batch: int = 1
    ) -> None:
        self.settings = HandlerSettings(
            ordering=ordering,  # type: ignore[arg-type]  # checked by the callers
            retry=RetryPolicy(max_attempts=5, first_s=1, max_s=8),
            pause=PausePolicy(first_s=1, max_s=8),
            give_up_after_s=1000,
            on_dead_letter="block" if block else "continue",
            window_events=WINDOW,
            batch=batch,
        )
        self.rows = [self._row(number, f"/devices/d{who}", count) for number, (who, count) in enumerate(rows, 1)]
        self.source_of = {at: row.source for row in self.rows for at, _ in row.events}
        self.entries: dict[int, Aside] = {}
        self.floors: dict[int, tuple[int, Any]] = {0: (0, ())}
        self.now_s = 0.0
        self.delivered: Counter[int] = Counter()
        self.since_save: set[int] = set()
        self.given_up: set[int] = set()  # dead once, or discarded
        self.replayed: set[int] = set()
        self.settled: set[int] = set()  # delivered when something was last saved
        self.restart()

    @staticmethod
    def _row(number: int, source: str, count: int) -> Row:
        first = number << 10
        events = [
            (first + n, Event(id=str(first + n), source=source, type="t" if n % 5 != 3 else "other", payload=b"1"))
            for n in range(count)
        ]
        events = [(at, event) for at, event in events if event.type == "t"]  # as the selection does
        return Row(row=number, source=source, received_ms=0, first=first, end=first + count - 1, events=events)

    def restart(self) -> None:
        self.plan = Plan(self.settings, self.floors)
        self.running: list[list[Item]] = []  # by request
        self.looking = self._look()
        assert len(self.since_save) <= WINDOW, "a crash delivers more than a window again"
        self.since_save = set()
        for at, entry in sorted(self.entries.items()):
            self.plan.recall(entry.source, at, entry.state)
        self.next_row = next((n for n, row in enumerate(self.rows) if row.end > self.floors[0][0]), len(self.rows))

    def read(self) -> None:
        if self.next_row >= len(self.rows) or not self.plan.has_room:
            return
        row = self.rows[self.next_row]
        self.next_row += 1
        if self.plan.blocks(row.source):
            self.plan.refer(0, row.source, row.first, row.end)
        else:
            self.plan.feed(0, row)

    def start(self) -> None:
        item = self.plan.start(self.now_s)
        if item is None:
            return
        batch = self.plan.join(item, self.now_s)
        request = batch.items if batch else [item]
        assert 1 <= len(request) <= self.settings.batch
        assert len(request) == 1 or not any(each.probe or each.attempts or each.home is None for each in request)
        if self.settings.ordering == "device":
            busy = {running.lane.source for others in self.running for running in others}
            assert len({each.lane.source for each in request} - busy) == 1, "two requests at a time for one source"
        for n, each in enumerate(request):
            self._check_turn(each, request[:n])
        self.running.append(request)
        assert self.plan.running == sum(map(len, self.running))
        assert self.plan.running + len(self.since_save) <= WINDOW, "a crash delivers more than a window again"

    def _check_turn(self, item: Item, before: list[Item]) -> None:
        at, source = item.position, self.source_of[item.position]
        assert item.event.id == str(at)
        assert at not in self.settled or at in self.replayed, f"{at} was delivered and saved"
        if self.settings.ordering == "none":
            return
        gone = self.given_up | {each.position for each in before}
        missing = {
            earlier
            for earlier, owner in self.source_of.items()
            if owner == source and earlier < at and not self.delivered[earlier] and earlier not in gone
        }
        assert at in self.replayed or missing <= self.replayed, f"{at} overtakes {missing}"

    def end(self, verdict: int, which: int) -> None:
        if not self.running:
            return
        request = self.running.pop(which % len(self.running))
        item, *others = request
        if verdict == 0:
            for each in request:
                self.plan.delivered(each)
                self.delivered[each.position] += 1
                self.since_save.add(each.position)
        elif verdict < 3 and others:
            self.plan.give_back(request, alone=True)
        elif verdict == 1:
            if self.plan.failed(item, "500", now_s=self.now_s, jitter=0.5) is Stage.DEAD:
                self._died(item.position)
        elif verdict == 2:
            self.plan.refused(item, "400")
            self._died(item.position)
        else:
            self.plan.give_back(others, alone=False)
            if self.plan.down(item, "503", now_s=self.now_s, jitter=0.5) is Stage.DEAD:
                self._died(item.position)

    def _died(self, at: int) -> None:
        if self.settings.on_dead_letter == "continue" or self.settings.ordering == "none":
            self.given_up.add(at)

    def save(self) -> None:
        """A whole look, whatever part of one is under way."""
        while self.step_look():
            pass
        while self.step_look():
            pass

    def step_look(self) -> bool:
        """Do one step of what the keeper does; other things happen between them. False after the last."""
        try:
            next(self.looking)
        except StopIteration:
            self.looking = self._look()
            return False
        return True

    def _look(self) -> Iterator[None]:
        sources = self.plan.wanted()
        covered = set(self.since_save)
        changes = self.plan.take()
        yield
        if changes is not None:
            self._commit(changes)
            self.plan.saved()
        self.since_save -= covered
        self.settled |= covered
        yield
        for source in sources:
            rows = self._read_back(source)
            yield
            self.plan.refill(source, rows)
        due = [e for _, e in sorted(self.entries.items()) if e.state == "waiting" and e.next_s <= self.now_s]
        yield
        for entry in due:
            assert entry.event is not None
            since_s = entry.since_s or 0.0
            self.plan.admit(entry.source, entry.position, entry.event, attempts=entry.attempts, first_s=since_s)
        gone = [(source, at) for source, at in self.plan.held() if at not in self.entries]
        yield
        for source, at in gone:
            self.plan.release(source, at)

    def _commit(self, changes: Changes) -> None:
        assert not {aside.position for aside in changes.asides} & set(changes.resolved)
        for aside in changes.asides:
            self.entries[aside.position] = aside
        for at in changes.resolved:
            self.entries.pop(at, None)
        self.floors = changes.floors
        self._check_saved()

    def _read_back(self, source: str) -> list[Row]:
        refs = [e for _, e in sorted(self.entries.items()) if e.source == source and e.state == "blocked"][:2]
        rows = []
        for at in (ref.position for ref in refs):
            row = self.rows[(at >> 10) - 1]
            events = [(position, event) for position, event in row.events if position >= at]
            rows.append(
                Row(row=row.row, source=source, received_ms=0, first=row.first, end=row.end, events=events, at=at)
            )
        return rows

    def _check_saved(self) -> None:
        floor, done = self.floors[0]
        blocked = {at >> 10: at for at, entry in self.entries.items() if entry.state == "blocked"}
        for at in self.source_of:
            if at <= floor or any(first <= at <= end for first, end in done):
                kept = at in self.entries or blocked.get(at >> 10, at + 1) <= at
                assert kept or self.delivered[at] or at in self.given_up, f"{at} is lost"

    def operate(self, which: int, *, discard: bool) -> None:
        """An operator replays or discards a dead letter."""
        dead = [at for at, entry in sorted(self.entries.items()) if entry.state == "dead"]
        if not dead:
            return
        at = dead[which % len(dead)]
        entry = self.entries[at]
        if discard:
            del self.entries[at]
            self.given_up.add(at)
        else:
            self.replayed.add(at)
            self.entries[at] = Aside(position=at, source=entry.source, state="waiting", event=entry.event)

    def finish(self) -> None:
        """From now on all goes well."""
        for _ in range(20 * len(self.source_of) + 200):
            self.read()
            self.start()
            self.end(0, 0)
            self.save()
            self.now_s += 10
            if self.settings.on_dead_letter == "block":
                self.operate(0, discard=False)
        self.save()


def _act(world: World, chance: random.Random, weights: list[int]) -> None:
    action = chance.choices(range(len(weights)), weights)[0]
    if action == 0:
        world.read()
    elif action == 1:
        world.start()
    elif action <= 5:
        world.end(action - 2, chance.randrange(4))
    elif action == 6:
        world.step_look()
    elif action == 7:
        world.now_s += chance.choice((0.5, 3, 10))
    elif action == 8:
        world.operate(chance.randrange(8), discard=chance.random() < 0.3)
    else:
        world.restart()


@pytest.mark.soak
@settings(max_examples=150 * SOAK, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    ordering=st.sampled_from(("device", "device", "none")),
    block=st.booleans(),
    batch=st.sampled_from((1, 1, 2, 5, WINDOW + 1)),
    trouble=st.tuples(st.integers(0, 8), st.integers(0, 2), st.integers(0, 2), st.integers(0, 2), st.integers(0, 1)),
)
def test_nothing_is_lost_or_overtaken(
    seed: int, ordering: str, block: bool, batch: int, trouble: tuple[int, int, int, int, int]
) -> None:
    """Whatever services, crashes and operators do, every event is delivered or a dead letter, in order per source."""
    chance = random.Random(seed)
    failed, refused, down, operators, crashes = trouble
    rows = [(chance.randrange(3), chance.randint(1, 6)) for _ in range(40)]
    world = World(rows, ordering=ordering, block=block, batch=batch)
    for _ in range(500):
        _act(world, chance, [6, 8, 4, failed, refused, down, 16, 3, operators, crashes])
    world.finish()
    for at in world.source_of:
        entry = world.entries.get(at)
        assert world.delivered[at] or at in world.given_up or (entry is not None and entry.state == "dead"), at
    assert all(entry.state == "dead" for entry in world.entries.values()), world.entries
    assert world.floors[0] == (world.rows[-1].end, ())
    assert world.plan.events == world.plan.running == 0
    assert sum(lane.refs for lane in world.plan._agenda.lanes.values()) == 0


def _fed(rows: list[tuple[int, int]], **how: Any) -> World:
    world = World(rows, **how)
    for _ in rows:
        world.read()
    return world


def test_third_failure_defers_and_the_floor_moves_on() -> None:
    """At its third failure an event is stored with its cause, its source's rows become references, others flow."""
    world = _fed([(0, 2), (0, 2), (1, 1)])
    for n in range(3):
        world.now_s = 100.0 * n
        world.start()
        world.end(1, 0)
        if n == 0:
            world.start()
            world.end(0, 0)
    world.save()
    states = {at: (entry.state, entry.attempts, entry.cause) for at, entry in world.entries.items()}
    assert states == {1 << 10: ("waiting", 3, "500"), (1 << 10) + 1: ("blocked", 0, ""), 2 << 10: ("blocked", 0, "")}
    assert world.entries[1 << 10].next_s == 202.0
    assert world.floors == {0: (3 << 10, ())}


def test_hogging_source_is_deferred_at_its_first_failure() -> None:
    """A source that fills half the window while it fails is put aside at once."""
    world = _fed([(0, 3), (0, 4)])  # 6 of 12 events are selected
    world.start()
    world.end(1, 0)
    world.save()
    assert [entry.state for entry in world.entries.values()] == []
    world = _fed([(0, 3), (0, 3), (0, 2)])
    world.start()
    world.end(1, 0)
    world.save()
    assert [entry.state for entry in world.entries.values()] == ["waiting", "blocked", "blocked", "blocked"]


def test_source_that_comes_to_fill_half_the_window_is_deferred() -> None:
    """A head that waits for its retry is put aside when what is read behind it fills half the window."""
    world = World([(0, 2), (0, 3), (0, 1)])
    world.read()
    world.start()
    world.end(1, 0)
    world.read()
    world.save()
    assert world.entries == {}
    world.read()
    world.save()
    assert [entry.state for entry in world.entries.values()] == ["waiting", "blocked", "blocked", "blocked"]


def test_down_uses_up_no_attempt_and_pauses_all() -> None:
    """While the target is down nothing starts, then one probe, then all; the event is in its first attempt still."""
    world = _fed([(0, 1), (1, 1), (2, 1)])
    world.start()
    world.start()
    world.end(3, 0)
    assert world.plan.start(0.0) is None
    assert world.plan.next_due_s(0.0) == 0.5
    world.now_s = 0.5
    world.start()
    (probe,) = world.running[-1]
    assert (probe.position, probe.attempts, probe.probe) == (1 << 10, 0, True)
    assert world.plan.start(1000.0) is None
    world.end(0, 1)
    assert world.plan.breaker.health is Health.UP
    world.start()
    assert len(world.running) == 2


@pytest.mark.parametrize(("tried_s", "dies"), [(999.0, False), (1000.0, True), (1001.0, True)])
def test_gives_up_when_down_for_too_long(tried_s: float, dies: bool) -> None:
    """An event first tried give_up_after ago is a dead letter when the target is still down; later ones have their time."""
    world = _fed([(0, 1), (1, 1)])
    world.start()
    world.end(3, 0)
    world.now_s = tried_s
    world.start()
    world.end(3, 0)
    world.save()
    causes = [entry.cause for entry in world.entries.values()]
    assert causes == ([f"gave up after the target was down for {tried_s:.0f} s: 503"] if dies else [])
    assert world.plan.events == (1 if dies else 2)


def test_paused_by_an_operator_starts_nothing() -> None:
    """Paused, the plan gives no delivery and keeps all it has."""
    world = _fed([(0, 1)])
    world.plan.paused = True
    assert world.plan.start(0.0) is None
    world.plan.paused = False
    assert world.plan.start(0.0) is not None


def test_window_bounds_what_is_read_and_what_is_unsaved() -> None:
    """The window is full at its bound, and what is delivered but not saved counts until it is."""
    world = World([(n % 3, 3) for n in range(10)])
    for _ in range(10):
        world.read()
    assert world.plan.events == WINDOW
    for _ in range(WINDOW):
        world.start()
        world.end(0, 0)
        world.read()
    assert world.plan.start(0.0) is None
    assert world.plan.is_save_due
    world.save()
    assert world.plan.start(0.0) is not None


def _positions(world: World) -> list[list[int]]:
    """What runs: row and place in it, by request."""
    return [[(item.position >> 10) * 10 + item.position % 1024 for item in request] for request in world.running]


@pytest.mark.parametrize(("batch", "sizes"), [(3, [3, 1]), (4, [4]), (5, [4])])
def test_batch_is_what_is_ready_of_one_source(batch: int, sizes: list[int]) -> None:
    """A request holds consecutive events of one source, up to the limit, and is not waited for; one at a time."""
    world = _fed([(0, 2), (1, 1), (0, 2)], batch=batch)
    world.start()
    world.start()
    world.start()
    assert _positions(world) == [[10, 11, 30, 31][:batch], [20]]
    world.end(0, 0)
    world.start()
    assert [len(request) for request in world.running] == [1, *sizes[1:]]


def test_batch_without_ordering_takes_any_source() -> None:
    """Where order does not matter a request holds what is ready, of whatever source, in the order of the log."""
    world = _fed([(0, 1), (1, 1), (0, 1), (2, 1)], ordering="none", batch=3)
    world.start()
    world.start()
    assert _positions(world) == [[10, 20, 30], [40]]
    world.end(1, 0)
    for _ in range(3):
        world.start()
    assert _positions(world) == [[40], [10], [20], [30]]


@pytest.mark.parametrize("verdict", [1, 2])
def test_batch_that_failed_goes_one_by_one(verdict: int) -> None:
    """A request that is not taken uses up nothing; each event goes alone, in order; what comes behind is batched again."""
    world = _fed([(0, 3), (0, 3)], batch=3)
    world.start()
    world.end(verdict, 0)
    world.save()
    assert world.entries == {}
    for at in (10, 11, 12):
        world.start()
        assert _positions(world) == [[at]]
        assert world.running[0][0].attempts == 0
        world.end(0, 0)
    world.start()
    assert _positions(world) == [[20, 21, 22]]


def test_poisoned_event_in_a_batch_hits_itself_only() -> None:
    """One refused among others is the one dead letter, after one request for all and one for each."""
    world = _fed([(0, 3)], batch=10)
    requests = 0
    while world.plan.events:
        world.start()
        requests += 1
        world.end(2 if any(item.position == 1025 for item in world.running[0]) else 0, 0)
    world.save()
    assert [(at, entry.state, entry.attempts) for at, entry in world.entries.items()] == [(1025, "dead", 1)]
    assert requests == 4


def test_batch_meets_an_outage() -> None:
    """Down gives all back in order and unharmed; one event is the probe, the others follow as a batch."""
    world = _fed([(0, 3), (0, 1), (1, 1)], batch=10)
    world.start()
    world.end(3, 0)
    world.now_s = 0.5
    world.start()
    assert _positions(world) == [[10]]
    assert world.running[0][0].probe
    assert world.plan.start(0.5) is None
    world.end(0, 0)
    world.start()
    world.start()
    assert sorted(_positions(world)) == [[11, 12, 20], [30]]
    assert {item.attempts for request in world.running for item in request} == {0}


def test_batch_that_brings_the_target_down_is_not_repeated_for_ever() -> None:
    """A service that drops every request with several events gets them one by one after the second time."""
    world = _fed([(0, 3), (0, 3)], batch=3)
    useless = 0
    for _ in range(20):
        world.now_s += 10
        world.start()
        if world.running:
            useless += len(world.running[0]) > 1
            world.end(3 if len(world.running[0]) > 1 else 0, 0)
        world.save()
    assert world.plan.events == 0
    assert world.entries == {}
    assert useless <= 4


@pytest.mark.parametrize("block", [False, True])
def test_batch_gives_up_as_single_events_do(block: bool) -> None:
    """After a day down the head of a batch is the dead letter; those behind it stay, or wait for it."""
    world = _fed([(0, 3)], batch=3, block=block)
    world.start()
    world.now_s = 1000.0
    world.end(3, 0)
    world.save()
    states = [(at - 1024, entry.state) for at, entry in sorted(world.entries.items())]
    assert states == ([(0, "dead"), (1, "blocked")] if block else [(0, "dead")])
    assert world.plan.events == (0 if block else 2)


def test_entry_that_comes_back_goes_alone() -> None:
    """A replayed dead letter does not share a request, though others of its source are ready."""
    world = World([(0, 1), (0, 2)], batch=5)
    world.read()
    world.start()
    world.end(2, 0)
    world.save()
    world.read()
    world.operate(0, discard=False)
    world.save()
    world.start()
    assert _positions(world) == [[10]]
    world.end(0, 0)
    world.start()
    assert _positions(world) == [[20, 21]]


def test_lane_told_to_wait_while_its_last_row_is_delivered() -> None:
    """A stored entry found damaged while a row read back is with the target: that row is finished all the same."""
    world = World([(0, 1), (0, 1)], block=True)
    world.read()
    world.start()
    world.end(2, 0)  # the first event is a dead letter, the second waits for it
    world.read()
    world.save()
    world.operate(0, discard=True)
    world.save()
    world.save()
    world.start()
    world.plan.lose("/devices/d0", 1024, "damaged")
    world.end(0, 0)
    world.save()
    assert [(entry.position, entry.state) for entry in world.entries.values()] == [(1024, "dead")]


def test_damaged_row_is_a_dead_letter() -> None:
    """What cannot be read is stored as a dead letter with its cause; blocking mode lets its source wait."""
    world = World([(0, 1), (0, 1)], block=True)
    world.plan.skip(0, 1 << 10)
    world.plan.lose("/devices/d0", 1 << 10, "damaged")
    world.next_row = 1
    assert world.plan.blocks("/devices/d0")
    world.read()
    world.save()
    assert [(e.state, e.cause) for e in world.entries.values()] == [("dead", "damaged"), ("blocked", "")]
