"""gateway.rules.plan where deliveries share requests: which do, and what becomes of them when one is not taken."""

from __future__ import annotations

import pytest
from plan_world import World, fed


def _positions(world: World) -> list[list[int]]:
    """What runs: row and place in it, by request."""
    return [[(item.position >> 10) * 10 + item.position % 1024 for item in request] for request in world.running]


@pytest.mark.parametrize(("batch", "sizes"), [(3, [3, 1]), (4, [4]), (5, [4])])
def test_batch_is_what_is_ready_of_one_source(batch: int, sizes: list[int]) -> None:
    """A request holds consecutive events of one source, up to the limit, and is not waited for; one at a time."""
    world = fed([(0, 2), (1, 1), (0, 2)], batch=batch)
    world.start()
    world.start()
    world.start()
    assert _positions(world) == [[10, 11, 30, 31][:batch], [20]]
    world.end(0, 0)
    world.start()
    assert [len(request) for request in world.running] == [1, *sizes[1:]]


def test_batch_without_ordering_takes_any_source() -> None:
    """Where order does not matter a request holds what is ready, of whatever source, in the order of the log."""
    world = fed([(0, 1), (1, 1), (0, 1), (2, 1)], ordering="none", batch=3)
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
    world = fed([(0, 3), (0, 3)], batch=3)
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
    world = fed([(0, 3)], batch=10)
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
    world = fed([(0, 3), (0, 1), (1, 1)], batch=10)
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
    world = fed([(0, 3), (0, 3)], batch=3)
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
    world = fed([(0, 3)], batch=3, block=block)
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
