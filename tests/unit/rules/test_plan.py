"""gateway.rules.plan: the whole plan against a world of sources, verdicts, saves, crashes and operators."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_world import WINDOW, World, fed
from soak import SOAK

from gateway.rules.breaker import Health


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


def test_third_failure_defers_and_the_floor_moves_on() -> None:
    """At its third failure an event is stored with its cause, its source's rows become references, others flow."""
    world = fed([(0, 2), (0, 2), (1, 1)])
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
    world = fed([(0, 3), (0, 4)])  # 6 of 12 events are selected
    world.start()
    world.end(1, 0)
    world.save()
    assert [entry.state for entry in world.entries.values()] == []
    world = fed([(0, 3), (0, 3), (0, 2)])
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
    world = fed([(0, 1), (1, 1), (2, 1)])
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
    world = fed([(0, 1), (1, 1)])
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
    world = fed([(0, 1)])
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
