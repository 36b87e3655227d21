"""Turns write once a connection, the wheel looks in time, tasks tell of failures."""

import asyncio
import random

import structlog

from gateway.mqtt.turns import TICK_S, Tasks, Turn, Wheel


class Writer:
    def __init__(self, log):
        self.log = log

    def finish_turn(self):
        self.log.append(self)


async def test_one_write_a_turn():
    """However often a connection is added in a turn, ingest is flushed first, once, and it writes once."""
    log = []
    turn = Turn(asyncio.get_running_loop(), lambda: log.append("flush"))
    first, second = Writer(log), Writer(log)
    for writer in (first, second, first):
        turn.add(writer)
        turn.submitted()
    assert log == []
    await asyncio.sleep(0)
    assert log == ["flush", first, second]
    await asyncio.sleep(0)
    assert len(log) == 3


class Broken:
    """Fails whatever it is asked."""

    check_at_s = float("inf")

    def __init__(self):
        self.count = 0

    def finish_turn(self):
        raise RuntimeError("a bug")

    def check(self, _now_s):
        self.count += 1
        raise RuntimeError("a bug")


async def test_what_fails_in_a_turn_is_its_own():
    """A flush or a connection that fails is logged; the others of the turn write, and so does every turn behind it."""
    log = []
    turn = Turn(asyncio.get_running_loop(), Broken().finish_turn)
    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            turn.submitted()
            for writer in (Broken(), Writer(log)):
                turn.add(writer)
            await asyncio.sleep(0)
    assert len(log) == 2
    assert [each["event"] for each in logs] == ["turn_failed"] * 4


async def test_a_deadline_that_fails_does_not_stop_the_wheel():
    """Others in the same tick are looked at, later ones too, and the one that failed is looked at again."""
    loop = asyncio.get_running_loop()
    wheel, broken, same, later = Wheel(loop), Broken(), Member(loop), Member(loop)
    wheel.start()
    now_s = loop.time()
    for member, at_s in ((broken, now_s), (same, now_s), (later, now_s + 2 * TICK_S)):
        wheel.schedule(member, at_s)
    with structlog.testing.capture_logs() as logs:
        async with asyncio.timeout(5):
            while broken.count < 2:  # noqa: ASYNC110 - told by nobody
                await asyncio.sleep(0.01)
    wheel.stop()
    assert (len(same.seen), len(later.seen)) == (1, 1)
    assert {each["event"] for each in logs} == {"deadline_failed"}


class Member:
    def __init__(self, loop):
        self.check_at_s = float("inf")
        self.loop = loop
        self.seen = []

    def check(self, now_s):
        self.seen.append(now_s)
        return float("inf")


async def test_wheel_is_never_early_and_a_tick_late():
    """Members are looked at after their time; earlier times replace later ones, not the other way round."""
    loop = asyncio.get_running_loop()
    wheel, source = Wheel(loop), random.Random(3)
    wheel.start()
    started = loop.time()
    members = [(Member(loop), started + source.uniform(0, 0.5)) for _ in range(50)]
    for member, at_s in members:
        wheel.schedule(member, at_s + 0.3)
        wheel.schedule(member, at_s)
        wheel.schedule(member, at_s + 9)
    gone = Member(loop)
    wheel.schedule(gone, started + 0.1)
    wheel.forget(gone)
    await asyncio.sleep(0.5 + 3 * TICK_S)
    wheel.stop()
    for member, at_s in members:
        assert len(member.seen) == 1
        assert at_s <= member.seen[0] <= at_s + 2.5 * TICK_S
    assert gone.seen == []


async def test_tasks_tell_of_failures():
    """What escapes from a task is logged by its name, and whoever started it is told; closing waits, then cancels."""
    tasks, failed = Tasks(), []

    async def fail():
        raise ValueError("x")

    with structlog.testing.capture_logs() as logs:
        tasks.start(fail(), name="doomed", failed=lambda: failed.append(1))
        tasks.start(asyncio.sleep(60), name="slow")
        tasks.start(asyncio.sleep(0.01), name="quick")
        await tasks.aclose(timeout_s=0.05)
    assert failed == [1]
    assert [entry["task"] for entry in logs] == ["doomed"]
    assert not tasks._tasks
