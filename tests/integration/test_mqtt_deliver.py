"""SUBSCRIBE and deliveries over real sockets: policy, flow control, retained keys, the live tail of events."""

import asyncio
import json

import pytest
from mqtt_kit import eventually, properties, publish, running, token

from edge_protocol.events import Event
from gateway.mqtt.codec import (
    Pingreq,
    Pingresp,
    Puback,
    Publish,
    ReasonCode,
    Suback,
    Subscribe,
    Subscription,
    Unsuback,
    Unsubscribe,
    Version,
)
from gateway.rules.policy import Policy, PolicyRule

BOTH = pytest.mark.parametrize("version", list(Version))


async def subscriber(run, *filters, role="operator", client_id="tool", qos=1, options=None, **connecting):
    client = await run.client(client_id, token_=token("ann", role, iss="id"), **connecting)
    subscriptions = tuple(Subscription(topic_filter=each, qos=qos, **(options or {})) for each in filters)
    client.send(Subscribe(packet_id=1, subscriptions=subscriptions, properties=properties()))
    assert all(code < 0x80 for code in (await client.read()).reason_codes)
    return client


async def test_suback_answers_each_filter():
    """Each filter gets its own code: the granted QoS, or not allowed, shared or not."""
    async with running() as run:
        client = await run.client("x", token_=token("ann", "operator", iss="id"))
        wanted = [
            "devices/+/events/#",
            "devices/+/state",
            "devices/+/commands/+",
            "#",
            "$share/g/devices/+/events/#",
            "$share/g/#",
        ]
        client.send(
            Subscribe(packet_id=7, subscriptions=tuple(Subscription(topic_filter=each, qos=2) for each in wanted))
        )
        answer = await client.read()
        assert [int(code) for code in answer.reason_codes] == [2, 2, 0x87, 0x87, 2, 0x87]
        assert answer.properties.reason_string == "refused: devices/+/commands/+, #, $share/g/#"
        client.send(Unsubscribe(packet_id=8, topic_filters=("devices/+/state", "devices/+/state")))
        codes = (ReasonCode.SUCCESS, ReasonCode.NO_SUBSCRIPTION_EXISTED)
        assert await client.read() == Unsuback(packet_id=8, reason_codes=codes)


async def test_suback_311():
    """In 3.1.1 a refused filter is 0x80, and UNSUBACK has no codes."""
    async with running() as run:
        client = await run.client(version=Version.V311)
        filters = (Subscription(topic_filter="devices/dev1/config", qos=1), Subscription(topic_filter="#"))
        client.send(Subscribe(packet_id=7, subscriptions=filters))
        assert await client.read() == Suback(
            packet_id=7, reason_codes=(ReasonCode.GRANTED_QOS_1, ReasonCode.UNSPECIFIED_ERROR)
        )
        client.send(Unsubscribe(packet_id=8, topic_filters=("devices/dev1/config",)))
        assert await client.read() == Unsuback(packet_id=8)


@pytest.mark.parametrize(("count", "last"), [(2, 1), (3, 1), (4, 0x97)])
async def test_subscriptions_are_bounded(count, last):
    """A session has a bounded number of subscriptions; the same one again is none more."""
    async with running(limits={"subscriptions": 3}) as run:
        client = await run.client("x", token_=token("ann", "operator", iss="id"))
        filters = [f"chat/{n}" for n in range(count)]
        client.send(
            Subscribe(
                packet_id=7,
                subscriptions=tuple(Subscription(topic_filter=each, qos=1) for each in [*filters, "chat/0"]),
            )
        )
        assert [int(code) for code in (await client.read()).reason_codes] == [1] * (count - 1) + [last, 1]


@pytest.mark.parametrize(("length", "code"), [(8575, 1), (8576, 1), (8577, 0x97), (1024, 1)])
async def test_filters_of_a_session_are_bounded(length, code):
    """All filters of a session have one bound, since they are one value in the store; the same one again is none more."""
    async with running() as run:
        client = await run.client("x", token_=token("ann", "operator", iss="id"))
        long = [f"chat/{n:02d}".ljust(65_000, "x") for n in range(16)]
        for filter_ in (*long, long[0], "chat/last".ljust(length, "x")):
            client.send(Subscribe(packet_id=7, subscriptions=(Subscription(topic_filter=filter_, qos=1),)))
            answer = await client.read()
        assert [int(each) for each in answer.reason_codes] == [code]


async def test_malformed_filter():
    """A filter that is none is malformed, and ends the connection."""
    async with running() as run:
        other = await run.client()
        other.writer.write(b"\x82\x08\x00\x07\x00\x00\x02a#\x00")
        assert [packet.reason_code for packet in await other.ended()] == [ReasonCode.MALFORMED_PACKET]


@BOTH
async def test_messages_between_clients(version):
    """An ordinary topic that policy allows is routed at the lower QoS of both; nobody there is 0x10 in 5.0."""
    async with running() as run:
        writer = await run.client("w", token_=token("ann", "operator", iss="id"), version=version)
        lonely = await writer.publish("chat/a")
        assert lonely.reason_code == (0x10 if version is Version.V5 else 0)
        qos1 = await subscriber(run, "chat/#", client_id="one", version=version)
        qos0 = await subscriber(run, "chat/+", client_id="zero", qos=0, version=version)
        assert await writer.publish("chat/a", b"hello") == Puback(packet_id=1)
        assert await qos1.read() == Publish(topic="chat/a", payload=b"hello", qos=1, packet_id=1)
        assert await qos0.read() == Publish(topic="chat/a", payload=b"hello")


async def test_properties_are_passed_on():
    """Properties of the message arrive unaltered, those of the hop do not; identifiers are the subscriber's."""
    async with running() as run:
        reader = await run.client("r", token_=token("ann", "operator", iss="id"))
        wanted = properties(subscription_identifiers=(11,))
        reader.send(Subscribe(packet_id=1, subscriptions=(Subscription(topic_filter="chat/#"),), properties=wanted))
        await reader.read()
        reader.send(Subscribe(packet_id=2, subscriptions=(Subscription(topic_filter="chat/a", qos=1),)))
        await reader.read()
        writer = await run.client("w", token_=token("ann", "operator", iss="id"))
        sent = properties(
            topic_alias=1,
            content_type="text/plain",
            response_topic="r/s",
            correlation_data=b"7",
            payload_format_indicator=1,
            message_expiry_interval=60,
            user_properties=(("b", "1"), ("a", "2"), ("b", "3")),
        )
        await writer.publish("chat/a", b"x", properties=sent)
        got = await reader.read()
        assert got.qos == 1
        assert got.properties.subscription_identifiers == (11,)
        assert got.properties.user_properties == sent.user_properties
        assert got.properties.message_expiry_interval in (59, 60)
        names = ("content_type", "response_topic", "correlation_data", "payload_format_indicator")
        assert [getattr(got.properties, name) for name in names] == [getattr(sent, name) for name in names]
        assert got.properties.topic_alias is None


async def test_no_local():
    """No Local keeps a session's own messages from it."""
    async with running() as run:
        client = await subscriber(run, "chat/#", options={"no_local": True})
        assert (await client.publish("chat/a")).reason_code == ReasonCode.SUCCESS
        client.send(Pingreq())
        assert await client.read() == Pingresp()


async def test_payload_that_is_not_text():
    """A payload said to be UTF-8 that is not gets 0x99."""
    async with running() as run:
        client = await run.client("w", token_=token("ann", "operator", iss="id"))
        answer = await client.publish("chat/a", b"\xff", properties=properties(payload_format_indicator=1))
        assert answer.reason_code == ReasonCode.PAYLOAD_FORMAT_INVALID


async def test_commands_and_responses():
    """A service's command reaches its device with the gateway's Response Topic; the response goes back."""
    async with running() as run:
        service = await subscriber(run, "devices/+/commands/+/response", role="service")
        device = await run.client()
        device.send(
            Subscribe(packet_id=1, subscriptions=(Subscription(topic_filter="devices/dev1/commands/+", qos=1),))
        )
        await device.read()
        await service.publish("devices/dev1/commands/reboot", b'{"id":1}', properties=properties(response_topic="evil"))
        command = await device.read()
        assert command.properties.response_topic == "devices/dev1/commands/reboot/response"
        device.send(Puback(packet_id=command.packet_id))
        assert (await device.publish(command.properties.response_topic, b'{"id":1}')).reason_code == 0
        assert (await service.read()).payload == b'{"id":1}'
        denied = await device.publish("devices/dev1/commands/reboot")
        assert denied.reason_code == ReasonCode.NOT_AUTHORIZED


async def test_retained_keys():
    """The key set is shown with RETAIN to who subscribes later, without it to who is there when it changes."""
    async with running() as run:
        run.server.publish_retained("gateway/keys", b"v1")
        device = await run.client()
        wanted = Subscribe(packet_id=1, subscriptions=(Subscription(topic_filter="gateway/keys", qos=1),))
        device.send(wanted)
        assert isinstance(await device.read(), Suback)
        first = await device.read()
        assert (first.payload, first.retain, first.qos) == (b"v1", True, 1)
        run.server.publish_retained("gateway/keys", b"v2")
        second = await device.read()
        assert (second.payload, second.retain) == (b"v2", False)
        only_new = Subscription(topic_filter="gateway/keys", qos=1, retain_handling=1)
        device.send(Subscribe(packet_id=2, subscriptions=(only_new,)), Pingreq())
        assert [type(await device.read()) for _ in range(2)] == [Suback, Pingresp]


EVENT = Event(
    id="e1",
    source="/devices/dev1",
    type="door.opened",
    time="2026-11-23T09:30:00Z",
    payload=b'{"by":"ann"}',
    extensions={"stream": "s", "sequence": "4", "priority": 2},
)


async def test_stored_events_in_5_0():
    """A stored event appears in binary mode: attributes as user properties, data as payload."""
    async with running() as run:
        assert not run.server.router.wants_events
        client = await subscriber(run, "devices/+/events/#")
        assert run.server.router.wants_events
        assert run.server.router.publish_event(EVENT) == 1
        got = await client.read()
        assert (got.topic, got.payload, got.qos) == ("devices/dev1/events/door/opened", b'{"by":"ann"}', 1)
        assert got.properties.content_type == "application/json"
        assert dict(got.properties.user_properties) == {
            "specversion": "1.0",
            "id": "e1",
            "source": "/devices/dev1",
            "type": "door.opened",
            "time": "2026-11-23T09:30:00Z",
            "stream": "s",
            "sequence": "4",
            "priority": "2",
        }


async def test_stored_events_in_311():
    """In 3.1.1 it is structured JSON."""
    async with running() as run:
        client = await subscriber(run, "devices/+/events/#", version=Version.V311)
        run.server.router.publish_event(EVENT)
        got = json.loads((await client.read()).payload)
        assert (got["id"], got["type"], got["data"], got["sequence"]) == ("e1", "door.opened", {"by": "ann"}, "4")


async def test_event_that_mqtt_cannot_hold():
    """An attribute that no MQTT string can hold costs that delivery, counted, and nothing else."""
    async with running() as run:
        client = await subscriber(run, "devices/+/events/#")
        run.server.router.publish_event(Event(id="e", source="/devices/d", type="t", extensions={"x": "a\0b"}))
        run.server.router.publish_event(EVENT)
        assert (await client.read()).payload == EVENT.payload
        assert run.server.stats.dropped["not-encodable"] == 1


async def test_receive_maximum_of_the_client():
    """No more QoS 1 messages are in flight than the client takes; acknowledgements let the others go, in order."""
    async with running() as run:
        client = await subscriber(run, "devices/+/events/#", properties=properties(receive_maximum=2))
        for n in range(5):
            run.server.router.publish_event(Event(id=str(n), source="/devices/d", type="t", payload=b"%d" % n))
        first, second = await client.read(), await client.read()
        with pytest.raises(TimeoutError):
            await client.read(0.1)
        client.send(Puback(packet_id=second.packet_id), Puback(packet_id=first.packet_id), Puback(packet_id=99))
        assert [(await client.read()).payload for _ in range(2)] == [b"2", b"3"]


async def test_packet_too_large_for_the_client():
    """A message larger than the client accepts is not sent to it, and counted [MQTT-3.1.2-24]."""
    async with running() as run:
        client = await subscriber(run, "chat/#", properties=properties(maximum_packet_size=400))
        writer = await run.client("w", token_=token("ann", "operator", iss="id"))
        await writer.publish("chat/a", b"x" * 400)
        await writer.publish("chat/a", b"small")
        assert (await client.read()).payload == b"small"
        assert run.server.stats.dropped["packet-too-large"] == 1


async def test_expired_message():
    """A message that waited beyond its expiry is not delivered, and counted [MQTT-3.3.2-5]."""
    async with running() as run:
        client = await subscriber(run, "chat/#", properties=properties(receive_maximum=1))
        writer = await run.client("w", token_=token("ann", "operator", iss="id"))
        await writer.publish("chat/a", b"1")
        await writer.publish("chat/a", b"2", properties=properties(message_expiry_interval=1))
        await writer.publish("chat/a", b"3")
        first = await client.read()
        await asyncio.sleep(1.1)
        client.send(Puback(packet_id=first.packet_id))
        assert (await client.read()).payload == b"3"
        assert run.server.stats.dropped["expired"] == 1


@pytest.mark.parametrize("qos", [0, 1])
async def test_slow_reader(qos):
    """A subscriber that does not read: QoS 0 is dropped and counted, QoS 1 ends with 0x97; others are not held up."""
    async with running(limits={"queue_messages": 50}) as run:
        slow = await subscriber(run, "chat/#", client_id="slow", qos=qos)
        quick = await subscriber(run, "chat/#", client_id="quick")
        slow.writer.transport.pause_reading()
        writer = await run.client("w", token_=token("ann", "operator", iss="id"))
        stats = run.server.stats
        for _ in range(400):
            await writer.publish("chat/a", b"x" * 60_000)
            quick.send(Puback(packet_id=(await quick.read()).packet_id))
            if stats.dropped["queue-full"]:
                break
        assert stats.dropped["queue-full"]
        await eventually(lambda: stats.connections == (3 if qos == 0 else 2))
        assert bool(stats.ended[0x97]) == (qos == 1)
        if qos == 0:
            slow.writer.transport.resume_reading()
            got = await slow.read()
            assert got.payload == b"x" * 60_000


async def test_stuck_peer():
    """A peer that takes nothing for too long is sent off, even if it goes on writing."""
    async with running(limits={"slow_reader_s": 0.5, "linger_s": 0.3}) as run:
        stuck = await subscriber(run, "chat/#", client_id="stuck", qos=0)
        stuck.writer.transport.pause_reading()
        writer = await run.client("w", token_=token("ann", "operator", iss="id"))
        for _ in range(200):
            await writer.publish("chat/a", b"x" * 60_000)
        await eventually(lambda: run.server.stats.ended[0x97] == 1)
        await eventually(lambda: run.server.stats.connections == 1)


async def test_deny_patterns_hold_deliveries_back():
    """What a deny pattern covers in part is subscribed and then held back, message by message."""
    rules = Policy([PolicyRule(role="r", publish=("a/#",), subscribe=("a/#",), deny_subscribe=("a/+/secret",))])
    async with running(policy=rules) as run:
        client = await run.client("x", token_=token("ann", "r", iss="id"))
        wanted = (Subscription(topic_filter="a/#"), Subscription(topic_filter="a/b/secret"))
        client.send(Subscribe(packet_id=1, subscriptions=wanted))
        assert [int(code) for code in (await client.read()).reason_codes] == [0, 0x87]
        client.send(publish("a/b/secret", packet_id=1), publish("a/b/open", packet_id=2))
        got = [await client.read() for _ in range(3)]
        assert [packet.topic for packet in got if isinstance(packet, Publish)] == ["a/b/open"]
