"""A cloud service as an MQTT client: durable subscriptions of the bus over real sockets, a real store and real dispatch."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from dispatch_bench import batch, ids
from mqtt_kit import Client, Running, eventually, properties, running
from structlog.testing import capture_logs

from gateway.cursors import BusCursors
from gateway.errors import BusUnavailable
from gateway.mqtt.codec import (
    Disconnect,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    ReasonCode,
    Subscribe,
    Subscription,
    Unsubscribe,
    Version,
)
from gateway.ports.subscriptions import DeferredState, Query, SubscriptionState
from gateway.storage import Storage, open_storage

SHARED = "$share/orders/devices/+/events/#"
NAME = "mqtt:service/orders:devices/+/events/#"
LASTING = properties(session_expiry_interval=600)


@pytest.fixture
async def store(tmp_path) -> AsyncIterator[Storage]:
    opened = await open_storage(f"sqlite:///{tmp_path}/bus.db", min_free_disk_bytes=0)
    yield opened
    await opened.aclose()


class Bench:
    """A server on a store, and what its cursors are."""

    def __init__(self, store: Storage, run: Running, cursors: BusCursors, dispatchers: dict) -> None:
        self.store, self.run, self.cursors, self.dispatchers = store, run, cursors, dispatchers

    async def service(self, client_id: str, **options) -> Client:
        return await self.run.client(
            client_id, **({"role": "service", "claims": {"iss": "id"}, "properties": LASTING} | options)
        )

    async def member(self, client_id: str, filter_: str = SHARED, qos: int = 1, **options) -> Client:
        client = await self.service(client_id, **options)
        assert await subscribe(client, filter_, qos) == qos
        return client

    async def append(self, *batches) -> None:
        await self.store.bus.append(batches)

    async def subscriptions(self) -> dict[str, SubscriptionState]:
        return {state.spec.name: state for state in await self.store.subscriptions.list()}


@asynccontextmanager
async def serving(store: Storage, **options) -> AsyncIterator[Bench]:
    dispatchers = {}
    clock = options.pop("clock", None)
    kind = options.pop("kind", BusCursors)
    cursors = kind(store, dispatchers, **({"clock": clock} if clock else {}))
    async with asyncio.TaskGroup() as tasks:
        task = cursors.start(tasks)
        async with running(storage=store, cursors=cursors, **options) as run:
            yield Bench(store, run, cursors, dispatchers)
        await cursors.aclose()
        task.cancel()


async def subscribe(client: Client, filter_: str, qos: int) -> int:
    client.send(Subscribe(packet_id=9, subscriptions=(Subscription(topic_filter=filter_, qos=qos),)))
    return int((await client.read()).reason_codes[0])


async def take(client: Client, count: int) -> list[str]:
    """Acknowledge so many events; their ids."""
    found = []
    for _ in range(count):
        message = await client.read()
        found.append(event_id(message))
        client.send(Puback(packet_id=message.packet_id))
    return found


def event_id(message: Publish) -> str:
    assert isinstance(message, Publish), message
    return dict(message.properties.user_properties)["id"]


async def lag(bench: Bench, name: str = NAME) -> int:
    return (await bench.subscriptions())[name].lag


async def until_lag(bench: Bench, lag_events: int, name: str = NAME) -> None:
    async with asyncio.timeout(10):
        while await lag(bench, name) != lag_events:  # noqa: ASYNC110 - floors are saved when they are
            await asyncio.sleep(0.01)


async def until_retired(store: Storage) -> None:
    async with asyncio.timeout(5):
        while await store.state.get(f"cursor/{NAME}") is None:  # noqa: ASYNC110 - told by nobody
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("filter_", [SHARED, "devices/+/events/#"])
async def test_events_of_an_absence_come_later(store, filter_):
    """What is stored while the service is away is delivered when it is back, once, in order; its lag is seen meanwhile."""
    async with serving(store) as bench:
        client = await bench.member("svc", filter_)
        (name,) = await bench.subscriptions()
        await bench.append(batch("a", 1, 3))
        assert await take(client, 3) == ids("a", 1, 3)
        await until_lag(bench, 0, name)
        await client.aclose()
        await eventually(lambda: bench.run.server.stats.connections == 0)
        await bench.append(batch("a", 4, 5))
        await until_lag(bench, 5, name)
        await eventually(lambda: bench.dispatchers[name].stats().state == "down")
        assert bench.dispatchers[name].stats().cause == "nobody is connected"
        client = await bench.service("svc", clean_start=False)
        assert await take(client, 5) == ids("a", 4, 8)
        await until_lag(bench, 0, name)


async def test_form_of_an_event(store):
    """An event is one message on its own topic, with the CloudEvents binding of the version, at the granted QoS."""
    async with serving(store) as bench:
        new = await bench.member("v5", "$share/a/devices/a/events/t", 2)
        old = await bench.member("v3", "$share/b/devices/+/events/+", 1, version=Version.V311, clean_start=False)
        await bench.append(batch("a", 1), batch("b", 1, type_="other.type"))
        (message,) = [await new.read()]
        assert (message.topic, message.qos, message.payload) == ("devices/a/events/t", 2, b'{"n":"a-1"}')
        assert dict(message.properties.user_properties)["source"] == "/devices/a"
        plain = await old.read()
        assert (plain.topic, plain.qos, plain.payload[:14]) == ("devices/a/events/t", 1, b'{"specversion"')
        old.send(Puback(packet_id=plain.packet_id))
        new.send(Pubrec(packet_id=message.packet_id))
        assert isinstance(await new.read(), Pubrel)
        new.send(Pubcomp(packet_id=message.packet_id))
        for name in await bench.subscriptions():
            await until_lag(bench, 0, name)


async def test_form_for_whichever_version_comes_back(store):
    """What was stored in a client's absence has the form of the version it comes back with, after a restart too."""
    async with serving(store) as bench:
        client = await bench.member("svc", version=Version.V311, clean_start=False)
        await client.aclose()
        await eventually(lambda: bench.run.server.stats.connections == 0)
        await bench.append(batch("a", 1))
    async with serving(store) as bench:
        old = await bench.service("svc", version=Version.V311, clean_start=False)
        assert b'"specversion"' in (await old.read()).payload
        new = await bench.service("svc", clean_start=False)
        message = await new.read()
        assert (message.payload, event_id(message)) == (b'{"n":"a-1"}', "a-1")
        new.send(Puback(packet_id=message.packet_id))
        await until_lag(bench, 0)


async def test_unacknowledged_events_come_again(store):
    """PUBACK is the acknowledgement: without it an event comes again, as a repetition in the same session."""
    async with serving(store) as bench:
        client = await bench.member("svc")
        await bench.append(batch("a", 1, 2))
        assert not (await client.read()).dup
        await client.aclose()
        await eventually(lambda: bench.run.server.stats.connections == 0)
        client = await bench.service("svc", clean_start=False)
        message = await client.read()
        assert (event_id(message), message.dup) == ("a-1", True)
        client.send(Puback(packet_id=message.packet_id))
        assert await take(client, 1) == ["a-2"]
        await until_lag(bench, 0)
        assert bench.dispatchers[NAME].stats().tally.delivered == 2


async def test_restart(store):
    """After a restart what was not acknowledged and what was stored meanwhile is delivered to the session that lived on."""
    async with serving(store) as bench:
        client = await bench.member("svc")
        await bench.append(batch("a", 1, 2))
        assert await take(client, 1) == ["a-1"]
        assert event_id(await client.read()) == "a-2"
    await store.bus.append([batch("a", 3, 2)])
    async with serving(store) as bench:
        assert NAME in bench.dispatchers
        client = await bench.service("svc", clean_start=False)
        assert client.connack.session_present
        assert await take(client, 3) == ids("a", 2, 4)
        await until_lag(bench, 0)


async def test_restart_in_the_middle_of_qos_2(store):
    """A QoS 2 delivery that had begun goes on after a restart under its identifier, and the event does not come twice."""
    async with serving(store) as bench:
        client = await bench.member("svc", qos=2)
        await bench.append(batch("a", 1, 2))
        first = await client.read()
        await client.aclose()
        await eventually(lambda: bench.run.server.stats.connections == 0)
    async with serving(store) as bench:
        client = await bench.service("svc", clean_start=False)
        got = []
        while len(got) < 2:
            message = await client.read()
            if isinstance(message, Publish):
                client.send(Pubrec(packet_id=message.packet_id))
                got.append((event_id(message), message.dup, message.packet_id))
            else:
                client.send(Pubcomp(packet_id=message.packet_id))
        assert got[0] == ("a-1", True, first.packet_id)
        assert got[1][:2] == ("a-2", False)
        await until_lag(bench, 0)
        assert bench.dispatchers[NAME].stats().tally.delivered == 2


async def test_shared_messages_survive_a_restart(store):
    """An ordinary message that a durable member of a share was given is its own, through a restart too."""
    async with serving(store) as bench:
        member = await bench.service("member", role="operator")
        assert await subscribe(member, "$share/g/chat/#", 1) == 1
        other = await bench.service("other", role="operator")
        assert (await other.publish("chat/a", b"hello")).reason_code == 0
        assert (await member.read()).payload == b"hello"
    async with serving(store) as bench:
        member = await bench.service("member", role="operator", clean_start=False)
        message = await member.read()
        assert (message.payload, message.dup) == (b"hello", True)


async def test_two_members_share(store):
    """Each event goes to one member, a device's always to the same and in order; both get some."""
    devices = [f"d{n}" for n in range(20)]
    async with serving(store) as bench:
        clients = [await bench.member(f"svc{n}") for n in range(2)]
        await bench.append(*(batch(device, 1, 5) for device in devices))
        got = [defaultdict(list), defaultdict(list)]

        async def work(client: Client, mine: dict) -> None:
            while True:
                (one,) = await take(client, 1)
                mine[one.rpartition("-")[0]].append(one)

        tasks = [asyncio.create_task(work(*each)) for each in zip(clients, got, strict=True)]
        await until_lag(bench, 0)
        for task in tasks:
            task.cancel()
        assert got[0]
        assert got[1]
        assert got[0] | got[1] == {device: ids(device, 1, 5) for device in devices}
        assert not set(got[0]) & set(got[1])


@pytest.mark.parametrize("qos", [1, 2])
async def test_a_member_that_ends_leaves_its_events_to_the_others(store, qos):
    """What a member did not acknowledge goes to another once its session has ended, and nothing is lost."""
    devices = [f"d{n}" for n in range(20)]
    async with serving(store) as bench:
        lost = await bench.member("lost", qos=qos, properties=properties())
        other = await bench.member("other")
        await bench.append(*(batch(device, 1) for device in devices))
        first = await lost.read()
        await lost.aclose()
        got = await take(other, 20)
        assert sorted(got) == sorted(f"{device}-1" for device in devices)
        assert event_id(first) in got
        await until_lag(bench, 0)


async def test_a_durable_member_that_is_away(store):
    """Of a durable session that is away QoS 1 goes to another member at once."""
    async with serving(store) as bench:
        away = await bench.member("away")
        await bench.append(batch("a", 1))
        await away.read()
        await away.aclose()
        await eventually(lambda: bench.run.server.stats.connections == 0)
        other = await bench.member("other")
        assert await take(other, 1) == ["a-1"]
        await until_lag(bench, 0)


async def test_a_refusal_is_a_dead_letter(store):
    """An event that a service refuses goes to nobody else; an operator finds it among the dead letters."""
    async with serving(store) as bench:
        client = await bench.member("svc")
        await bench.append(batch("a", 1, 2))
        message = await client.read()
        client.send(Puback(packet_id=message.packet_id, reason_code=ReasonCode.PAYLOAD_FORMAT_INVALID))
        assert await take(client, 1) == ["a-2"]
        await until_lag(bench, 0)
        (dead,) = await store.subscriptions.deferred(Query(subscription=NAME, state=DeferredState.DEAD), limit=9)
        assert (dead.event_id, dead.cause) == ("a-1", "the subscriber answered with a code of 0x80 or more")


async def test_who_has_a_cursor(store):
    """QoS 0, a session that ends with its connection and a device have a live tail; policy covers the whole filter."""
    async with serving(store) as bench:
        client = await bench.service("svc", properties=properties())
        assert await subscribe(client, "devices/+/events/#", 1) == 1
        assert await subscribe(client, "$share/g/devices/+/events/#", 0) == 0
        assert await subscribe(client, "$share/g/devices/+/commands/x/response", 1) == 1
        assert await subscribe(client, "$share/g/#", 1) == ReasonCode.NOT_AUTHORIZED
        assert await bench.subscriptions() == {}
        assert bench.run.server.router.wants_events
        lasting = await bench.service("lasting")
        for n in range(17):
            code = await subscribe(lasting, f"devices/d{n}/events/#", 1)
            assert code == (1 if n < 16 else ReasonCode.QUOTA_EXCEEDED)
        assert len(await bench.subscriptions()) == 16
        assert await subscribe(lasting, "devices/d0/events/#", 0) == 0
        await eventually(lambda: len(bench.dispatchers) == 15)


async def test_names_keep_principals_apart(store):
    """A group belongs to its role, a cursor to its principal and client id, whatever characters they choose."""
    async with serving(store) as bench:
        await bench.member("a:b")
        await bench.member("a", properties=LASTING, role="operator")
        await bench.member("x:y", "devices/+/events/t")
        assert sorted(await bench.subscriptions()) == [
            "mqtt:operator/orders:devices/+/events/#",
            "mqtt:service/orders:devices/+/events/#",
            "mqtt:session:client:id:x%3Ay:x%3Ay:devices/+/events/t",
        ]


async def test_ends_of_cursors(store):
    """A cursor ends with its session or its subscription; a group's is kept, and removed when its time has run out."""
    now_s = 1_000_000.0

    def clock() -> float:
        return now_s

    async with serving(store, clock=clock) as bench:
        own = await bench.member("own", "devices/a/events/#")
        member = await bench.member("member", properties=properties())
        assert len(await bench.subscriptions()) == 2
        own.send(Unsubscribe(packet_id=3, topic_filters=("devices/a/events/#",)))
        await own.read()
        await member.aclose()
        await eventually(lambda: not bench.dispatchers)
        await until_retired(store)
        assert list(await bench.subscriptions()) == [NAME]
        now_s += 7 * 86_400 - 1
        assert await bench.cursors.prune() == 0
        await (await bench.member("member", properties=properties())).aclose()
        now_s += 2
        assert await bench.cursors.prune() == 0
        await until_retired(store)
        now_s += 7 * 86_400
        assert await bench.cursors.prune() == 1
        assert await bench.subscriptions() == {}


async def test_sessions_that_did_not_survive(store):
    """After a restart a group whose members are gone is kept for its time, and the cursor of a session is removed."""
    async with serving(store) as bench:
        await bench.member("member", properties=properties())
        await bench.member("own", "devices/a/events/#")
        own = await store.state.scan("session/", "", 99)
    for entry in own:
        await store.state.delete(entry.key)
    async with serving(store) as bench:
        assert bench.dispatchers == {}
        assert list(await bench.subscriptions()) == [NAME]
        assert await store.state.get(f"cursor/{NAME}") is not None


async def test_held_back_by_policy(store):
    """An event whose topic a deny pattern covers is delivered to nobody, and holds nobody up."""
    from gateway.rules.policy import Policy, PolicyRule

    rule = PolicyRule(role="service", subscribe=("devices/+/events/#",), deny_subscribe=("devices/secret/#",))
    async with serving(store, policy=Policy([rule])) as bench:
        client = await bench.member("svc")
        await bench.append(batch("secret", 1, 3), batch("a", 1))
        assert await take(client, 1) == ["a-1"]
        await until_lag(bench, 0)


async def test_taken_over(store):
    """A client that connects anew under the same name goes on where the old connection was."""
    async with serving(store) as bench:
        old = await bench.member("svc")
        await bench.append(batch("a", 1))
        await old.read()
        new = await bench.service("svc", clean_start=False)
        assert await take(new, 1) == ["a-1"]
        assert isinstance((await old.ended())[-1], Disconnect)
        await until_lag(bench, 0)


class GatedCursors(BusCursors):
    """Opens when the test lets it."""

    gate = asyncio.Event()

    async def open(self, spec, deliverer):
        await self.gate.wait()
        return await super().open(spec, deliverer)


async def test_taken_over_while_a_cursor_is_opened(store):
    """The new connection subscribes to the same filter: what it was promised is not taken back in the old one's name."""
    GatedCursors.gate = asyncio.Event()
    wanted = Subscribe(packet_id=9, subscriptions=(Subscription(topic_filter="devices/a/events/#", qos=1),))
    async with serving(store, kind=GatedCursors) as bench:
        old = await bench.service("svc")
        old.send(wanted)
        new = await bench.service("svc", clean_start=False)
        new.send(wanted)
        assert isinstance((await old.ended())[-1], Disconnect)
        GatedCursors.gate.set()
        assert (await new.read()).reason_codes == (1,)
        await bench.append(batch("a", 1, 3))
        assert await take(new, 3) == ["a-1", "a-2", "a-3"]
        assert len(bench.dispatchers) == 1


class FailingSubscriptions:
    """Those of a store whose disk fails when something is to be removed."""

    def __init__(self, subscriptions) -> None:
        self.is_failing, self._subscriptions = True, subscriptions

    def __getattr__(self, name):
        return getattr(self._subscriptions, name)

    async def remove(self, name):
        if self.is_failing:
            raise BusUnavailable("disk")
        await self._subscriptions.remove(name)


async def test_a_cursor_that_cannot_be_removed_now(store):
    """It is removed when the store works again, without a restart: kept, it would hold back retention for ever."""
    failing = FailingSubscriptions(store.subscriptions)
    async with serving(replace(store, subscriptions=failing)) as bench:
        own = await bench.member("own", "devices/a/events/#")
        with capture_logs() as logs:
            own.send(Unsubscribe(packet_id=3, topic_filters=("devices/a/events/#",)))
            await eventually(lambda: "cursor_not_ended" in [each["event"] for each in logs])
        assert await bench.cursors.prune() == 0
        assert len(await bench.subscriptions()) == 1
        failing.is_failing = False
        assert await bench.cursors.prune() == 0
        assert await bench.subscriptions() == {}
