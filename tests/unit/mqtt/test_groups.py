"""gateway.mqtt.groups and .sharing: who of a group gets a message, and what becomes of it; sessions are small and honest."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_protocol.events import Event
from edge_protocol.topics import TopicFilter, TopicName
from gateway.mqtt.messages import Message
from gateway.mqtt.router import Router, Subscribed
from gateway.mqtt.sharing import Sharing
from gateway.ports.target import Delivered, Down, Refused
from gateway.rules.sharing import Fate

SHARE = TopicFilter("$share/g/a/#")


class Session:
    """Takes what it is offered while it is connected, or durable; the test says how each delivery ends."""

    def __init__(self, *, is_durable: bool = False, may: bool = True) -> None:
        self.is_connected = True
        self.is_durable = is_durable
        self.may = may
        self.has: list[tuple[Message, int, object]] = []

    def offer(self, message, qos, identifiers, *, retain, on_ack=None, key="", share=b""):
        if not self.may:
            return False
        self.has.append((message, qos, on_ack))
        return True

    @property
    def payloads(self) -> list[bytes]:
        return [message.payload for message, _, _ in self.has]

    def say(self, fate: Fate, n: int = 0) -> None:
        self.has.pop(n)[2](fate)

    def end(self) -> None:
        self.is_connected = False
        while self.has:
            self.say(Fate.BROKEN if self.has[0][1] == 2 else Fate.UNSENT)


def message(n: int = 0, qos: int = 2) -> Message:
    return Message(TopicName("a/b"), b"%d" % n, qos)


def shared(*sessions: Session, qos: int = 1) -> Router:
    router = Router()
    for session in sessions:
        assert router.subscribe(SHARE, session, Subscribed(qos=qos))
        assert not router.subscribe(SHARE, session, Subscribed(qos=qos))
    return router


@pytest.mark.parametrize("qos", [0, 1])
def test_fair(qos):
    """Messages are spread evenly; whoever acknowledges gets more than who does not."""
    sessions = [Session() for _ in range(3)]
    router = shared(*sessions, qos=qos)
    for n in range(30):
        assert router.route(message(n)) == 1
    assert [len(each.has) for each in sessions] == [10, 10, 10]
    if qos:
        while sessions[0].has:
            sessions[0].say(Fate.TAKEN)
        for n in range(10):
            router.route(message(n))
        assert [len(each.has) for each in sessions] == [10, 10, 10]


def test_hand_over():
    """What a session gives up at QoS 1 goes to another; what had begun at QoS 2 or was refused goes to nobody."""
    first, second = Session(), Session()
    router = shared(first, second, qos=2)
    for n, qos in enumerate([1, 1, 2, 2, 1, 1]):
        router.route(message(n, qos))
    assert (first.payloads, second.payloads) == ([b"0", b"2", b"4"], [b"1", b"3", b"5"])
    second.say(Fate.REFUSED)
    router.unsubscribe(SHARE, first)
    first.end()
    assert second.payloads == [b"3", b"5", b"0", b"4"]
    router.unsubscribe(SHARE, second)
    second.end()
    assert not router.wants(TopicName("a/b"))


def test_members_that_are_away():
    """A connected member comes first; with none, a durable one keeps QoS 1, and QoS 0 is for nobody."""
    there, away = Session(), Session(is_durable=True)
    router = shared(there, away)
    away.is_connected = False
    for n in range(3):
        router.route(message(n))
    assert (len(there.has), len(away.has)) == (3, 0)
    there.is_connected = False
    router.unsubscribe(SHARE, there)
    assert router.route(message(3)) == 1
    assert router.route(message(4, 0)) == 0
    assert away.payloads == [b"3"]


def test_forbidden_to_one():
    """A member that may not have a message is passed over."""
    first, second = Session(may=False), Session()
    router = shared(first, second)
    assert [router.route(message(n)) for n in range(4)] == [1] * 4
    assert len(second.has) == 4
    second.may = False
    assert router.route(message()) == 0


class Full(Session):
    """Hands everything back at once."""

    def offer(self, message, qos, identifiers, *, retain, on_ack=None, key="", share=b""):
        on_ack(Fate.UNSENT)
        return True


def test_a_large_group_that_is_full():
    """However many members hand a message back at once, the one that has room gets it."""
    there = Session()
    router = shared(*(Full() for _ in range(1500)), there, qos=1)
    router.route(message(1, 1))
    assert there.payloads == [b"1"]


@given(st.lists(st.sampled_from(["publish", "take", "end", "refuse"]), max_size=60))
def test_nothing_is_lost_while_somebody_is_there(steps):
    """Whatever members do, a QoS 1 message is taken once, refused once, or with somebody, as long as one member stays."""
    sessions = [Session() for _ in range(4)]
    router, ended, sent = shared(*sessions), Counter(), 0
    for step in steps:
        busy = next((each for each in sessions if each.has), None)
        if step == "publish":
            sent += router.route(message(sent, 1))
        elif step == "end" and len(sessions) > 1:
            gone = sessions.pop(0)
            router.unsubscribe(SHARE, gone)
            gone.end()
        elif busy is not None and step in {"take", "refuse"}:
            ended[busy.payloads[0]] += 1
            busy.say(Fate.TAKEN if step == "take" else Fate.REFUSED)
    held = Counter(payload for each in sessions for payload in each.payloads)
    assert held + ended == Counter(b"%d" % n for n in range(sent))


# ---- events, by a cursor


def event(device: str = "d", n: int = 1, type_: str = "t") -> Event:
    return Event(id=f"{device}-{n}", source=f"/devices/{device}", type=type_, payload=b"%d" % n)


class Bench:
    def __init__(self, *sessions: Session, qos: int = 1, filter_: str = "devices/+/events/#") -> None:
        self.sharing = Sharing("s", TopicFilter(filter_))
        for n, session in enumerate(sessions):
            self.sharing.join(session, f"s{n}", Subscribed(qos=qos))

    async def start(self, what: Event) -> asyncio.Task:
        task = asyncio.create_task(self.sharing.deliver(what, key=what.id, attempt=1))
        await settle()
        return task

    async def connect(self, session: Session, *, is_there: bool) -> None:
        session.is_connected = is_there
        self.sharing.stir()
        await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("fate", "verdict"),
    [
        (Fate.TAKEN, Delivered()),
        (Fate.REFUSED, Refused("the subscriber answered with a code of 0x80 or more")),
        (
            Fate.UNSENDABLE,
            Refused("no packet takes it to this subscriber: too large for it, or not to be written as MQTT"),
        ),
        (Fate.UNSENT, Down("the subscriber does not keep up")),
    ],
)
async def test_verdicts(fate, verdict):
    """What a delivery ended with is what dispatch is told; a member that gives back is not asked again at once."""
    session = Session()
    task = await Bench(session).start(event())
    session.say(fate)
    assert await task == verdict


async def test_nobody_there():
    """Without a connected member the target is down, and what a session has stays with it: it is not handed over twice."""
    session = Session(is_durable=True)
    bench = Bench(session)
    task = await bench.start(event())
    await bench.connect(session, is_there=False)
    assert await task == Down("nobody is connected")
    assert await (await bench.start(event())) == Down("nobody is connected")
    await bench.connect(session, is_there=True)
    task = await bench.start(event())
    assert len(session.has) == 1
    session.say(Fate.TAKEN)
    assert await task == Delivered()


async def test_acknowledged_while_nobody_waits():
    """An acknowledgement that comes during a pause counts."""
    session = Session(is_durable=True)
    bench = Bench(session)
    task = await bench.start(event())
    await bench.connect(session, is_there=False)
    await task
    session.is_connected = True
    session.say(Fate.TAKEN)
    assert await (await bench.start(event())) == Delivered()
    assert session.has == []


@pytest.mark.parametrize(("qos", "moves"), [(1, True), (2, False)])
async def test_a_member_that_is_away(qos, moves):
    """Of a member that is away QoS 1 goes to another, QoS 2 waits until it is back or its session has ended."""
    sessions = [Session(is_durable=True), Session()]
    bench = Bench(*sessions, qos=qos)
    task = await bench.start(event())
    had, other = sorted(sessions, key=lambda each: not each.has)
    await bench.connect(had, is_there=False)
    assert bool(other.has) is moves
    if not moves:
        bench.sharing.leave(had)
        await settle()
    other.say(Fate.TAKEN)
    assert await task == Delivered()


async def test_room():
    """A member is handed at most a mebibyte at a time; the next waits for an acknowledgement."""
    session = Session()
    bench = Bench(session)
    big = [Event(id=str(n), source=f"/devices/d{n}", type="t", payload=b"x" * (512 << 10)) for n in range(3)]
    tasks = [await bench.start(each) for each in big]
    assert len(session.has) == 2
    session.say(Fate.TAKEN)
    await settle()
    assert len(session.has) == 2
    session.say(Fate.TAKEN)
    session.say(Fate.TAKEN)
    assert await asyncio.gather(*tasks) == [Delivered()] * 3


async def test_not_the_filters():
    """What the cursor selects beyond the filter, or policy forbids, is settled without a delivery."""
    session, forbidden = Session(), Session(may=False)
    assert await (await Bench(session, filter_="devices/+/events/+/x").start(event())) == Delivered()
    assert await (await Bench(forbidden).start(event())) == Delivered()
    assert not session.has


async def test_closed():
    """When it is closed, whoever waits is let go."""
    session = Session()
    bench = Bench(session)
    task = await bench.start(event())
    await bench.sharing.aclose()
    assert await task == Down("nobody is connected")


async def test_room_of_events_that_are_never_asked_for_again():
    """An event that ended while dispatch had moved elsewhere takes no room from those that come."""
    session = Session()
    bench = Bench(session)
    for n in range(4):
        task = await bench.start(Event(id=f"e{n}", source="/devices/d", type="t", payload=b"x" * 600_000))
        assert len(session.has) == 1, n
        task.cancel()
        await settle()
        session.say(Fate.TAKEN)
