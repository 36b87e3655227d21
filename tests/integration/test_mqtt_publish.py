"""PUBLISH over real sockets: acknowledgements, refusals, order, backpressure (wire protocol, sections 3, 6, 7)."""

import asyncio
import random
import time

import ingest_parts as parts
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mqtt_kit import eventually, properties, publish, running, token
from mqtt_tokens import sealed

from edge_protocol.envelope_keys import Suite, new_open_key
from gateway.errors import BusUnavailable
from gateway.mqtt.codec import (
    Disconnect,
    Pingreq,
    Pingresp,
    Puback,
    ReasonCode,
    Subscribe,
    Subscription,
    Version,
    encode,
)
from gateway.rules.policy import Policy, PolicyRule

BOTH = pytest.mark.parametrize("version", list(Version))


async def test_nothing_is_acknowledged_before_it_is_settled():
    """PUBACK comes when the event is on the bus, not before; the event says whose it is."""
    async with running() as run:
        client = await run.client()
        run.bus.is_open.clear()
        said = properties(content_type="application/json", user_properties=(("id", "7"),))
        client.send(publish("devices/dev1/events/door/opened", b"[1]", packet_id=5, properties=said))
        await eventually(lambda: run.bus.appends)
        with pytest.raises(TimeoutError):
            await client.read(0.1)
        run.bus.is_open.set()
        assert await client.read() == Puback(packet_id=5)
        (event,) = await run.events()
        assert (event.source, event.type, event.payload) == ("/devices/dev1", "door.opened", b"[1]")
        assert (event.datacontenttype, event.id) == ("application/json", "7")


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(order=st.permutations(range(8)), refused=st.sets(st.integers(0, 7)))
async def test_acknowledgements_keep_the_order_of_arrival(order, refused):
    """However ingest settles, and whatever is refused at once in between, answers come in the order of arrival."""
    async with running() as run:
        client = await run.client()
        run.ingest.is_holding = True
        topics = ["devices/dev2/events/x" if n in refused else "devices/dev1/events/x" for n in range(8)]
        client.send(*(publish(topic, packet_id=n + 1) for n, topic in enumerate(topics)))
        await eventually(lambda: len(run.ingest.held) == 8 - len(refused))
        waiting = tuple(run.ingest.held)
        for n in sorted(range(len(waiting)), key=order.index):
            waiting[n]()
            await asyncio.sleep(0)
        answers = [await client.read() for _ in range(8)]
        assert [packet.packet_id for packet in answers] == list(range(1, 9))
        assert [packet.reason_code == 0x87 for packet in answers] == [n in refused for n in range(8)]


@pytest.mark.parametrize(
    ("topic", "options", "code", "reason"),
    [
        ("devices/dev2/events/x", {}, 0x87, "not-authorized: publishing to 'devices/dev2/events/x' is not allowed"),
        ("devices/dev2/events", {}, 0x87, "not-authorized: publishing to 'devices/dev2/events' is not allowed"),
        ("devices/dev1/config", {}, 0x87, "not-authorized: publishing to 'devices/dev1/config' is not allowed"),
        ("gateway/keys", {}, 0x87, "not-authorized: publishing to 'gateway/keys' is not allowed"),
        ("elsewhere", {}, 0x87, "not-authorized: publishing to 'elsewhere' is not allowed"),
        ("devices/dev1/nothing", {}, 0x90, "topic: topic 'devices/dev1/nothing'"),
        ("gateway/other", {}, 0x90, "topic: topic 'gateway/other'"),
        ("devices/dev1/events/x", {"retain": True}, 0x87, "retain: expected no RETAIN under devices/ and gateway/"),
        ("devices/dev1/state", {"payload": b"[]"}, 0x99, "bad-state: expected a JSON object"),
        ("devices/dev1/state", {"payload": b'{"a":' * 40 + b"1" + b"}" * 40}, 0x99, "json-too-deep"),
    ],
)
async def test_refusals(topic, options, code, reason):
    """A refused publish gets its code and a reason in 5.0; at QoS 0 it is dropped; the connection goes on."""
    async with running() as run:
        client = await run.client()
        answer = await client.publish(topic, **options)
        assert answer.reason_code == code
        assert answer.properties.reason_string.startswith(reason)
        client.send(publish(topic, **({"qos": 0, "packet_id": 0} | options)), Pingreq())
        assert await client.read() == Pingresp()
        assert run.server.stats.publishes[code] == 2
        assert await run.types() == []
        assert await run.state.kept("state/") == {}


async def test_envelopes_required():
    """A role that requires envelopes gets 0x87 for a typed topic at once; `events` is told apart by ingest."""
    async with running() as run:
        client = await run.client("sealed", role="device")
        typed = await client.publish("devices/sealed/events/x")
        assert typed.properties.reason_string == "envelope-required: plain events are not accepted from this role"
        assert (await client.publish("devices/sealed/events", parts.event())).reason_code == ReasonCode.NOT_AUTHORIZED
        assert await run.types() == []
        envelope = sealed(parts.event(type_="x"), device="sealed")
        assert (await client.publish("devices/sealed/events", envelope)).reason_code == 0
        assert await run.types() == ["x"]


async def test_no_reasons_where_none_are_wanted():
    """Request Problem Information 0: PUBACK has no Reason String and no user properties [MQTT-3.1.2-29]."""
    async with running() as run:
        client = await run.client(properties=properties(request_problem_information=False))
        assert await client.publish("devices/dev2/events/x") == Puback(
            packet_id=1, reason_code=ReasonCode.NOT_AUTHORIZED
        )


async def test_reason_that_does_not_fit():
    """A PUBACK larger than the client accepts goes without its Reason String [MQTT-3.4.2-2]."""
    async with running() as run:
        client = await run.client(properties=properties(maximum_packet_size=200))
        long = "devices/dev2/events/" + "x" * 150
        assert await client.publish(long) == Puback(packet_id=1, reason_code=ReasonCode.NOT_AUTHORIZED)


@pytest.mark.parametrize(
    ("failure", "code", "reason"),
    [
        (parts.unavailable(), 0x83, "bus-unavailable: events cannot be stored now, send them again"),
        (parts.full(8.2), 0x97, "bus-full: no room for events now, send them later"),
    ],
)
async def test_unavailable_ends_the_connection(failure, code, reason):
    """After the first 0x83 or 0x97: answers before it, its PUBACK, then DISCONNECT with code and `retry-after`."""
    async with running() as run:
        client = await run.client()
        run.bus.failures = [None, failure]
        run.bus.is_open.clear()
        client.send(publish("devices/dev1/events/x", packet_id=1))
        await eventually(lambda: run.bus.appends)
        behind = [publish("devices/dev1/events/x", packet_id=2), publish("devices/dev1/events/y", packet_id=3)]
        client.send(*behind, Pingreq())
        assert await client.read() == Pingresp()
        run.bus.is_open.set()
        first, second, last = await client.ended()
        assert first == Puback(packet_id=1)
        assert (second.packet_id, second.reason_code) == (2, code)
        assert isinstance(last, Disconnect)
        assert (last.reason_code, last.properties.reason_string) == (code, reason)
        ((name, seconds),) = last.properties.user_properties
        assert name == "retry-after"
        assert seconds == "9" or code == 0x83
        assert await run.types() == ["x"]


async def test_reseal():
    """A refusal that asks to seal again says `action: reseal`."""
    async with running() as run:
        client = await run.client()
        client.send(publish("devices/dev1/events", sealed(to=new_open_key(Suite.X25519_AES128))))
        puback, last = await client.ended()
        assert puback.properties.user_properties == (("action", "reseal"),)
        assert last.properties.user_properties[0] == ("action", "reseal")


@pytest.mark.parametrize("topic", ["devices/dev2/events/x", "devices/dev1/nothing"])
async def test_strict_311(topic):
    """In 3.1.1 a refused publish is not acknowledged; those before it are, and the connection is closed."""
    async with running() as run:
        client = await run.client(version=Version.V311)
        client.send(
            publish("devices/dev1/events/x", packet_id=1),
            publish(topic, packet_id=2),
            publish("devices/dev1/events/x", packet_id=3),
        )
        assert await client.ended() == [Puback(packet_id=1)]


async def test_lenient_311():
    """With `strict_311` off a refused publish is acknowledged and counted; one that could not be stored still closes."""
    async with running(strict_311=False) as run:
        client = await run.client(version=Version.V311)
        assert await client.publish("devices/dev2/events/x") == Puback(packet_id=1)
        assert run.server.stats.publishes[0x87] == 1
        run.bus.failure = parts.unavailable()
        client.send(publish("devices/dev1/events/x", packet_id=2))
        assert await client.ended() == []


@pytest.mark.parametrize(("sent", "ends"), [(2, False), (3, False), (4, True)])
async def test_receive_maximum(sent, ends):
    """As many unacknowledged publishes as announced are taken; one more ends with 0x93."""
    async with running(limits={"receive_maximum": 3}) as run:
        client = await run.client()
        run.bus.is_open.clear()
        client.send(*(publish("devices/dev1/events/x", packet_id=n + 1) for n in range(sent)))
        if ends:
            assert [packet.reason_code for packet in await client.ended()] == [0x93]
        else:
            client.send(Pingreq())
            assert await client.read() == Pingresp()


@pytest.mark.parametrize(("extra", "ends"), [(-1, False), (0, False), (1, True)])
async def test_maximum_packet_size(extra, ends):
    """A packet over the announced size ends with 0x95."""
    async with running(limits={"packet_bytes": 5000}) as run:
        client = await run.client()
        assert client.connack.properties.maximum_packet_size == 5000
        bare = len(encode(publish("devices/dev1/events/x", b"x" * 4000), Version.V5))
        client.send(publish("devices/dev1/events/x", b"x" * (4000 + 5000 - bare + extra)))
        answer = await client.read()
        assert answer.reason_code == (0x95 if ends else 0)


async def test_topic_alias():
    """An alias that was set stands for its topic; one that was not, or is over the maximum, ends the connection."""
    async with running() as run:
        client = await run.client()
        alias = properties(topic_alias=16)
        assert (await client.publish("devices/dev1/events/x", properties=alias)).reason_code == 0
        assert (await client.publish("", properties=alias)).reason_code == 0
        assert await run.types() == ["x", "x"]
        client.send(publish("", properties=properties(topic_alias=2)))
        assert [packet.reason_code for packet in await client.ended()] == [ReasonCode.PROTOCOL_ERROR]
        other = await run.client()
        other.send(publish("devices/dev1/events/x", properties=properties(topic_alias=17)))
        assert [packet.reason_code for packet in await other.ended()] == [ReasonCode.TOPIC_ALIAS_INVALID]


@BOTH
async def test_budget_stops_reading(version):
    """Beyond the connection's share of unsettled bytes its socket is not read; settling lets it go on."""
    async with running(limits={"connection_inflight_bytes": 20_000}) as run:
        client = await run.client(version=version)
        run.ingest.is_holding = True
        for n in range(1, 41):
            client.send(publish("devices/dev1/events/x", b"x" * 4000, packet_id=n))
            await client.writer.drain()
            await asyncio.sleep(0.001)
        await eventually(lambda: run.ingest.submitted >= 5)
        await asyncio.sleep(0.1)
        assert run.ingest.submitted <= 8
        assert run.server.stats.connections == 1
        for _ in range(40):
            await eventually(lambda: run.ingest.held)
            run.ingest.settle()
        assert [(await client.read()).packet_id for _ in range(40)] == list(range(1, 41))


async def test_budget_of_all():
    """The bound of all connections holds those that publish, and only those."""
    async with running(limits={"inflight_bytes": 20_000}) as run:
        run.ingest.is_holding = True
        first, second, third = [await run.client(f"dev{n}") for n in (1, 2, 3)]
        first.send(*(publish("devices/dev1/events/x", b"x" * 4000, packet_id=n) for n in range(1, 9)))
        await eventually(lambda: run.ingest.submitted >= 5)
        of_first = run.ingest.submitted
        second.send(publish("devices/dev2/events/x", b"x", packet_id=1), publish("devices/dev2/events/x", packet_id=2))
        await eventually(lambda: run.ingest.submitted > of_first)
        third.send(Pingreq())
        assert await third.read() == Pingresp()
        for _ in range(10):
            await eventually(lambda: run.ingest.held)
            run.ingest.settle()
        assert [(await second.read()).packet_id for _ in range(2)] == [1, 2]
        assert [(await first.read()).packet_id for _ in range(8)] == list(range(1, 9))


async def test_rate():
    """A role's rate is answered by reading later, not by refusing."""
    rule = PolicyRule(
        role="r", publish=("devices/{device}/events/#",), require_envelope=False, events_per_s=50, burst=0.2
    )
    async with running(policy=Policy([rule])) as run:
        client = await run.client(role="r")
        started = time.monotonic()
        client.send(*(publish("devices/dev1/events/x", packet_id=n) for n in range(1, 41)))
        assert [(await client.read()).reason_code for _ in range(40)] == [0] * 40
        assert 0.4 < time.monotonic() - started < 2


async def test_keep_alive_while_held():
    """A client that is not read, because its publishes are not settled, is not given up."""
    limits = {"connection_inflight_bytes": 1000}
    async with running(limits=limits) as run:
        client = await run.client(keep_alive_s=1)
        run.bus.is_open.clear()
        client.send(publish("devices/dev1/events/x", b"x" * 2000))
        with pytest.raises(TimeoutError):
            await client.read(2)
        run.bus.is_open.set()
        assert await client.read() == Puback(packet_id=1)


async def test_state_is_kept_before_it_is_acknowledged():
    """Reported state stands in the store when PUBACK comes, the last one wins, and operators see it."""
    async with running() as run:
        operator = await run.client("x", token_=token("ann", "operator", iss="id"))
        operator.send(Subscribe(packet_id=1, subscriptions=(Subscription(topic_filter="devices/+/state", qos=1),)))
        await operator.read()
        client = await run.client()
        client.send(*(publish("devices/dev1/state", b'{"n": %d}' % n, packet_id=n) for n in range(1, 6)))
        assert [(await client.read()).packet_id for _ in range(5)] == [1, 2, 3, 4, 5]
        assert await run.state.kept("state/") == {"state/dev1": b'{"n": 5}'}
        assert [(await operator.read()).payload for _ in range(5)] == [b'{"n": %d}' % n for n in range(1, 6)]


async def test_state_that_cannot_be_kept():
    """A store that fails is answered 0x83: nothing is acknowledged that is not kept."""
    async with running() as run:
        run.state.failure = BusUnavailable("disk")
        client = await run.client()
        client.send(publish("devices/dev1/state", b"{}"))
        puback, last = await client.ended()
        assert (puback.reason_code, last.reason_code) == (0x83, 0x83)
        assert puback.properties.reason_string == "state-unavailable: the state could not be stored"


@BOTH
async def test_malformed_packets(version):
    """Broken bytes end their connection, in 5.0 with a reason; the next good client is served within a second."""
    async with running() as run:
        for broken in (
            b"\x00\x00",
            b"\x30\xff\xff\xff\xff",
            b"\x32\x05\x00\x01a\x00\x00",
            b"\x82\x02\x00\x01",
            b"\x10\x00",
            b"\x20\x02\x00\x00",
        ):
            client = await run.client(version=version)
            client.writer.write(broken)
            last = await client.ended()
            assert [type(packet) for packet in last] == ([Disconnect] if version is Version.V5 else [])
            if last:
                assert "[" in last[0].properties.reason_string
            started = time.monotonic()
            good = await run.client(version=version)
            assert (await good.publish("devices/dev1/events/x")).reason_code == 0
            assert time.monotonic() - started < 1


async def test_random_bytes():
    """Random bytes, before and behind a CONNECT, leave the server serving."""
    source = random.Random(7)
    async with running() as run:
        for n in range(40):
            client = await run.raw() if n % 2 else await run.client()
            client.writer.write(source.randbytes(source.randrange(1, 400)))
            client.writer.write_eof()
            await client.aclose()
        good = await run.client("dev2")
        assert (await good.publish("devices/dev2/events/x")).reason_code == 0
        await eventually(lambda: run.server.stats.connections == 1)


async def test_gone_before_it_is_settled():
    """A publisher that goes away changes nothing: its publish settles, and its budget is given back."""
    async with running() as run:
        client = await run.client()
        run.bus.is_open.clear()
        client.send(publish("devices/dev1/events/x", b"x" * 1000))
        await eventually(lambda: run.bus.appends)
        await client.aclose()
        await eventually(lambda: run.server.stats.connections == 0)
        run.bus.is_open.set()
        assert await run.server.drain(1)
        await run.pipeline.drain()
        assert await run.types() == ["x"]
        assert run.server._hub.budget.used_bytes == 0
