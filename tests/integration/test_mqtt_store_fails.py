"""A store that fails under sessions: nothing is promised from memory, what was routed is never refused afterwards."""

import pytest
from lasting import alive, gone, kept, lasting, operator
from mqtt_kit import connect, eventually, publish, running, token

from gateway.errors import BusUnavailable
from gateway.mqtt.codec import Puback, Pubrec, ReasonCode, Subscribe, Subscription, Version, Will

BOTH = pytest.mark.parametrize("version", list(Version))


async def failing(run):
    await eventually(lambda: run.server._hub.journal.is_failing)


async def test_puback_comes_after_the_queues():
    """The publisher's PUBACK waits until the queues of durable subscribers are written."""
    async with running() as run:
        await gone(run, await operator(run, "r", "chat/#", **lasting()))
        writer = await operator(run, "w")
        await writer.publish("chat/a", b"m")
        assert await kept(run, "/out/")
        run.state.failure = BusUnavailable("disk")
        writer.send(publish("chat/a"))
        await failing(run)
        assert await alive(writer)
        run.state.failure = None
        assert await writer.read() == Puback(packet_id=1)


@BOTH
@pytest.mark.parametrize("qos", [1, 2])
async def test_what_was_routed_is_delivered_once(version, qos):
    """A store that fails after a message was routed: its publisher is not refused, so nobody gets it a second time."""
    async with running() as run:
        live, kept_one = (
            await operator(run, "live", "chat/#", qos=2),
            await operator(run, "kept", "chat/#", qos=2, **lasting()),
        )
        writer = await operator(run, "w", **lasting(version))
        run.state.failure = BusUnavailable("disk")
        writer.send(publish("chat/a", b"m", qos=qos, packet_id=3))
        await failing(run)
        assert (await live.read()).payload == b"m"
        assert await alive(writer)
        assert await alive(kept_one)
        if qos == 2:  # a client that loses patience sends it again, on a new connection or on this one
            writer.send(publish("chat/a", b"m", qos=2, packet_id=3, dup=True))
            assert await alive(writer)
        run.state.failure = None
        assert (await kept_one.read()).payload == b"m"
        assert await writer.read() == (Puback if qos == 1 else Pubrec)(packet_id=3)
        assert await alive(live)
        assert await alive(kept_one)


async def test_refused_while_the_store_fails():
    """While the store is known to fail, what needs it is refused before anybody gets it; QoS 0 between clients goes on."""
    async with running() as run:
        live = await operator(run, "live", "chat/#")
        first, second = await operator(run, "a", **lasting()), await operator(run, "b")
        run.state.failure = BusUnavailable("disk")
        first.send(Subscribe(packet_id=1, subscriptions=(Subscription(topic_filter="chat/x", qos=1),)))
        await failing(run)
        second.send(publish("chat/a", b"live", qos=0, packet_id=0))
        assert (await live.read()).payload == b"live"
        second.send(publish("chat/a"))
        answer, last = await second.ended()
        assert (answer.reason_code, last.reason_code) == (0x83, 0x83)
        assert answer.properties.reason_string == "queue-unavailable: no message can be stored for its subscribers now"
        assert last.properties.user_properties[0][0] == "retry-after"
        assert await alive(live)
        run.state.failure = None
        await eventually(lambda: not run.server._hub.journal.is_failing)
        assert await (await operator(run, "b")).publish("chat/a") == Puback(packet_id=1)


async def test_a_will_is_published_while_the_store_fails():
    """Nobody would repeat a will: it is routed, and kept for durable subscribers as soon as that works."""
    async with running() as run:
        live, away = await operator(run, "live", "chat/#"), await operator(run, "away", "chat/#", **lasting())
        await gone(run, away)
        lost = await operator(run, "lost", will=Will(topic="chat/will", payload=b"lost", qos=1))
        run.state.failure = BusUnavailable("disk")
        run.server._hub.journal.put("any", b"")
        await failing(run)
        lost.writer.transport.abort()
        assert (await live.read()).payload == b"lost"
        run.state.failure = None
        assert (await (await operator(run, "away", **lasting())).read()).payload == b"lost"


async def test_no_will_of_a_connection_that_was_not_accepted():
    """A CONNECT that is refused since its session cannot be written leaves no will behind [MQTT-3.1.2-7]."""
    async with running() as run:
        live = await operator(run, "live", "chat/#")
        run.state.failure = BusUnavailable("disk")
        refused = await run.raw()
        will = Will(topic="chat/will", payload=b"", qos=0)
        await refused.connect("r", token_=token("ann", "operator", iss="id"), will=will, **lasting())
        assert refused.connack.reason_code == ReasonCode.SERVER_UNAVAILABLE
        assert await refused.ended() == []
        assert await alive(live)
        assert run.server.stats.wills == 0
        run.state.failure = None


async def test_no_will_of_a_connection_that_was_taken_over_before_connack():
    """Nor does one whose session is another's before it was written; the will of the other is published."""
    async with running() as run:
        live = await operator(run, "live", "chat/#")
        run.state.is_open.clear()
        proof = token("ann", "operator", iss="id")
        will = Will(topic="chat/will", payload=b"", qos=0)
        for _ in range(2):
            client = await run.raw()
            client.send(connect("r", token_=proof, will=will, **lasting()))
            await eventually(lambda: run.server.stats.connections == 2)
        await eventually(lambda: run.server.stats.refused[-1] == 1)
        run.state.is_open.set()
        assert (await client.read()).reason_code == 0
        assert await alive(live)
        await gone(run, client)
        assert (await live.read()).topic == "chat/will"
        assert run.server.stats.wills == 1


@BOTH
async def test_deliveries_and_identifier_are_one_write(version):
    """A crash leaves the queued message and the identifier it was taken under, or neither: it is not taken twice."""
    async with running() as run:
        await gone(run, await operator(run, "r", "chat/#", qos=2, **lasting()))
        writer = await operator(run, "w", **lasting(version))
        writer.send(publish("chat/a", b"m", qos=2, packet_id=3))
        assert await writer.read() == Pubrec(packet_id=3)
        (write,) = [each for each in run.state.writes if any("/out/" in key for key in each)]
        assert [key for key in write if key.endswith("/w/in/00003")]
        assert len([each for each in run.state.writes if any("/in/" in key for key in each)]) == 1


async def test_suback_comes_after_the_subscription():
    """SUBACK of a durable session waits until the subscription is written."""
    async with running() as run:
        client = await operator(run, "r", **lasting())
        run.state.failure = BusUnavailable("disk")
        client.send(Subscribe(packet_id=1, subscriptions=(Subscription(topic_filter="chat/#", qos=1),)))
        assert await alive(client)
        run.state.failure = None
        assert (await client.read()).packet_id == 1


async def test_connack_comes_after_the_session():
    """A session that cannot be written is not promised: CONNACK 0x88 with `retry-after`; others are let in."""
    async with running() as run:
        run.state.failure = BusUnavailable("disk")
        client = await run.raw()
        refused = await client.connect(**lasting())
        assert refused.reason_code == ReasonCode.SERVER_UNAVAILABLE
        assert refused.properties.reason_string == "session-unavailable: try again later"
        assert await alive(await run.client("dev2"))
        run.state.failure = None
