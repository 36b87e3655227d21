"""Sessions over real sockets: begun, resumed, taken over, expired, and taken up again after a crash (section 4.1)."""

import asyncio
import time
from functools import partial

import pytest
from mqtt_kit import FakeState, eventually, properties, publish, running, token

from edge_protocol.events import Event
from gateway.errors import BusUnavailable
from gateway.mqtt.codec import (
    Disconnect,
    Pingreq,
    Pingresp,
    Puback,
    Publish,
    ReasonCode,
    Subscribe,
    Subscription,
    Unsubscribe,
    Version,
)
from gateway.mqtt.messages import Message
from gateway.ports.identity import Principal, PrincipalKind
from gateway.rules.sharing import Fate

BOTH = pytest.mark.parametrize("version", list(Version))
ANN = Principal(PrincipalKind.CLIENT, "id", "ann")


class Clock:
    """Unix time that a test can move."""

    def __init__(self):
        self.ahead_s = 0.0

    def __call__(self):
        return time.time() + self.ahead_s


def lasting(version=Version.V5, expiry_s=100, **more):
    if version is Version.V311:
        return {"version": version, "clean_start": False}
    return {
        "version": version,
        "clean_start": False,
        "properties": properties(session_expiry_interval=expiry_s, **more),
    }


async def operator(run, client_id="tool", *filters, qos=1, options=None, **connecting):
    client = await run.client(client_id, token_=token("ann", "operator", iss="id"), **connecting)
    if filters:
        wanted = tuple(Subscription(topic_filter=each, qos=qos, **(options or {})) for each in filters)
        client.send(Subscribe(packet_id=1, subscriptions=wanted))
        assert all(code == qos for code in (await client.read()).reason_codes)
    return client


async def gone(run, client):
    before = run.server.stats.connections
    await client.aclose()
    await eventually(lambda: run.server.stats.connections < before)


async def alive(client):
    client.send(Pingreq())
    return await client.read() == Pingresp()


def kept(state):
    return [key for key in state.values if key.startswith("session/")]


@BOTH
async def test_offline_messages(version):
    """What is published at QoS 1 to an absent session is delivered on its return, in order; QoS 0 is not."""
    async with running() as run:
        reader = await operator(run, "r", "chat/#", **lasting(version))
        await gone(run, reader)
        writer = await operator(run, "w")
        for n in range(4):
            writer.send(publish("chat/a", b"%d" % n, qos=n % 2, packet_id=n % 2 * (n + 1)))
        assert [(await writer.read()).packet_id for _ in range(2)] == [2, 4]
        again = await operator(run, "r", **lasting(version))
        assert again.connack.session_present
        got = [await again.read() for _ in range(2)]
        assert [(each.payload, each.dup) for each in got] == [(b"1", False), (b"3", False)]
        assert await alive(again)
        assert run.server.stats.dropped["offline"] == 2


@BOTH
async def test_clean_start(version):
    """A clean start discards the session: nothing is present, subscribed or delivered, then or later [MQTT-3.1.2-4]."""
    async with running() as run:
        reader = await operator(run, "r", "chat/#", **lasting(version))
        await gone(run, reader)
        writer = await operator(run, "w")
        await writer.publish("chat/a")
        for options in ({"version": version}, lasting(version)):
            again = await operator(run, "r", **options)
            assert not again.connack.session_present
            assert await alive(again)
            await gone(run, again)
        assert (await writer.publish("chat/a")).reason_code == ReasonCode.NO_MATCHING_SUBSCRIBERS


async def test_session_that_ends_with_its_connection():
    """With expiry 0 nothing is left, on disk either."""
    async with running() as run:
        reader = await operator(run, "r", "chat/#", clean_start=False)
        await gone(run, reader)
        assert len(run.server._hub.sessions) == 0
        assert kept(run.state) == []
        assert not (await operator(run, "r", clean_start=False)).connack.session_present


@pytest.mark.parametrize(("after_s", "present"), [(99, True), (101, False)])
async def test_session_expiry(after_s, present):
    """A session lives without a connection for its Session Expiry Interval, and is gone from disk after it."""
    clock = Clock()
    async with running(clock=clock) as run:
        reader = await operator(run, "r", "chat/#", **lasting())
        await gone(run, reader)
        await run.server._hub.journal.settled()  # when it was left is on disk, too
        crashed = FakeState(run.state.values)
    clock.ahead_s = after_s
    async with running(clock=clock, state=crashed) as run:
        claims = {"iss": "id", "exp": clock() + 3600}
        again = await run.client("r", token_=token("ann", "operator", **claims), **lasting())
        assert again.connack.session_present == present
        assert bool([key for key in crashed.values if key.endswith("head")])


async def test_background_expiry():
    """A session expires by itself, without anybody asking for it."""
    async with running() as run:
        await gone(run, await operator(run, "r", "chat/#", **lasting(expiry_s=1)))
        assert len(run.server._hub.sessions) == 1
        await eventually(lambda: len(run.server._hub.sessions) == 0)
        await eventually(lambda: not kept(run.state))
        assert not run.server.router.wants("chat/a")


async def test_never_expires():
    """0xFFFFFFFF is for ever (3.1.2.11.2)."""
    clock = Clock()
    async with running(clock=clock) as run:
        await gone(run, await operator(run, "r", "chat/#", **lasting(expiry_s=0xFFFFFFFF)))
        await eventually(lambda: kept(run.state))
        crashed = FakeState(run.state.values)
    clock.ahead_s = 100 * 365 * 86400
    async with running(clock=clock, state=crashed) as run:
        assert len(run.server._hub.sessions) == 1


async def test_expiry_of_311():
    """A 3.1.1 session without clean session lives as long as the limit says."""
    clock = Clock()
    async with running(clock=clock, limits={"session_expiry_311_s": 50}) as run:
        await gone(run, await operator(run, "r", "chat/#", **lasting(Version.V311)))
        (session,) = run.server._hub.sessions.of(ANN)
        assert session.expiry_s == 50


@pytest.mark.parametrize(("expiry_s", "present"), [(0, False), (50, True)])
async def test_disconnect_changes_expiry(expiry_s, present):
    """DISCONNECT may change the interval of a session that has one."""
    async with running() as run:
        reader = await operator(run, "r", **lasting())
        reader.send(Disconnect(properties=properties(session_expiry_interval=expiry_s)))
        assert await reader.ended() == []
        assert (await operator(run, "r", **lasting())).connack.session_present == present


async def test_takeover_keeps_the_session():
    """The new connection resumes; the old one gets 0x8E; what it did not acknowledge comes again with DUP."""
    async with running() as run:
        reader = await operator(run, "r", "chat/#", **lasting())
        await (await operator(run, "w")).publish("chat/a", b"m")
        first = await reader.read()
        again = await operator(run, "r", **lasting())
        assert again.connack.session_present
        assert [each.reason_code for each in await reader.ended()] == [ReasonCode.SESSION_TAKEN_OVER]
        second = await again.read()
        assert (second.payload, second.packet_id, second.dup) == (b"m", first.packet_id, True)


async def test_a_session_is_its_principals():
    """Another principal under the same client id neither sees nor ends it."""
    async with running() as run:
        await gone(run, await operator(run, "r", "chat/#", **lasting()))
        other = await run.client("r", token_=token("bob", "operator", iss="id"), **lasting())
        assert not other.connack.session_present
        assert (await operator(run, "r", **lasting())).connack.session_present


async def test_registered_anew():
    """A device that was removed and added again inherits nothing."""
    async with running() as run:
        device = await run.client(**lasting())
        device.send(
            Subscribe(packet_id=1, subscriptions=(Subscription(topic_filter="devices/dev1/commands/+", qos=1),))
        )
        await device.read()
        await gone(run, device)
        run.authenticator.epoch = 1
        again = await run.client(**lasting())
        assert not again.connack.session_present
        service = await run.client("s", token_=token("svc", "service", iss="id"))
        answer = await service.publish("devices/dev1/commands/x")
        assert answer.reason_code == ReasonCode.NO_MATCHING_SUBSCRIBERS


async def test_revocation_discards():
    """Revocation ends every session of a principal, connected or not, on disk too."""
    async with running() as run:
        await gone(run, await operator(run, "r", "chat/#", **lasting()))
        there = await operator(run, "there", "chat/#", **lasting())
        assert run.server.disconnect(ANN) == 1
        assert [each.reason_code for each in await there.ended()] == [ReasonCode.NOT_AUTHORIZED]
        await eventually(lambda: not kept(run.state))
        assert not run.server.router.wants("chat/a")
        assert not (await operator(run, "r", **lasting())).connack.session_present


@BOTH
async def test_survives_a_crash(version):
    """After a crash: subscriptions with their options, what waits and what is not acknowledged, in order."""
    async with running() as run:
        reader = await operator(run, "r", "chat/#", options={"no_local": version is Version.V5}, **lasting(version))
        writer = await operator(run, "w")
        for n in range(3):
            await writer.publish("chat/a", b"%d" % n, properties=properties(user_properties=(("n", str(n)),)))
        got = [await reader.read() for _ in range(3)]
        reader.send(Puback(packet_id=got[0].packet_id))
        await eventually(lambda: len([key for key in run.state.values if "/out/" in key]) == 2)
        crashed = FakeState(run.state.values)
    async with running(state=crashed) as run:
        writer = await operator(run, "w")
        assert (await writer.publish("chat/b", b"3")).reason_code == 0
        again = await operator(run, "r", **lasting(version))
        assert again.connack.session_present
        repeated = [await again.read() for _ in range(3)]
        assert [each.payload for each in repeated] == [b"1", b"2", b"3"]
        assert [each.packet_id for each in repeated[:2]] == [each.packet_id for each in got[1:]]
        assert [each.dup for each in repeated[:2]] == [True, True]
        if version is Version.V5:
            assert repeated[0].properties.user_properties == (("n", "1"),)
            assert (await again.publish("chat/a")).reason_code == ReasonCode.SUCCESS  # No Local: not sent back
        again.send(Unsubscribe(packet_id=9, topic_filters=("chat/#",)))
        assert (await again.read()).packet_id == 9
        await eventually(lambda: b"chat/#" not in b"".join(crashed.values.values()))


async def test_shutdown_keeps_sessions():
    """A graceful end keeps what a crash keeps; what was never sent comes without DUP."""
    state = FakeState()
    async with running(state=state) as run:
        reader = await operator(run, "r", "chat/#", **lasting(receive_maximum=1))
        writer = await operator(run, "w")
        for n in range(2):
            await writer.publish("chat/a", b"%d" % n)
        assert (await reader.read()).payload == b"0"
        await run.server.aclose()
    async with running(state=state) as run:
        again = await operator(run, "r", **lasting())
        got = [await again.read() for _ in range(2)]
        assert [(each.payload, each.dup) for each in got] == [(b"0", True), (b"1", False)]


async def test_puback_comes_after_the_queues():
    """The publisher's PUBACK waits until the queues of durable subscribers are written; 0x83 if they cannot be."""
    async with running() as run:
        await gone(run, await operator(run, "r", "chat/#", **lasting()))
        writer = await operator(run, "w")
        await writer.publish("chat/a", b"m")
        assert any("/out/" in key for key in run.state.values)
        run.state.failure = BusUnavailable("disk")
        writer.send(publish("chat/a"))
        answer, last = await writer.ended()
        assert (answer.reason_code, last.reason_code) == (0x83, 0x83)
        reason = "queue-unavailable: the message could not be stored for its subscribers"
        assert answer.properties.reason_string == reason
        run.state.failure = None


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


@pytest.mark.parametrize(("messages", "kept_"), [(2, [b"1", b"2"]), (3, [b"1", b"2", b"3"]), (4, [b"1", b"2", b"3"])])
async def test_queue_is_bounded_by_count(messages, kept_):
    """A full queue refuses the newest, counts it, and the publisher is not held up."""
    async with running(limits={"queue_messages": 3}) as run:
        await gone(run, await operator(run, "r", "chat/#", **lasting()))
        writer = await operator(run, "w")
        for n in range(1, messages + 1):
            assert (await writer.publish("chat/a", b"%d" % n)).reason_code == 0
        again = await operator(run, "r", **lasting())
        assert [(await again.read()).payload for _ in kept_] == kept_
        assert await alive(again)
        assert run.server.stats.dropped["queue-full"] == messages - len(kept_)


@pytest.mark.parametrize(("extra", "dropped"), [(-1, 0), (0, 0), (1, 1)])
async def test_queue_is_bounded_by_bytes(extra, dropped):
    """Payloads and topics together fill a queue up to its bound, not beyond."""
    async with running(limits={"queue_bytes": 1000}) as run:
        await gone(run, await operator(run, "r", "chat/#", **lasting()))
        writer = await operator(run, "w")
        await writer.publish("chat/a", b"x" * 494)
        await writer.publish("chat/a", b"x" * (494 + extra))
        assert run.server.stats.dropped["queue-full"] == dropped


async def test_expired_messages_make_room():
    """What has expired leaves a full queue before anything is refused."""
    async with running(limits={"queue_messages": 2}) as run:
        await gone(run, await operator(run, "r", "chat/#", **lasting()))
        writer = await operator(run, "w")
        await writer.publish("chat/a", b"1", properties=properties(message_expiry_interval=1))
        await writer.publish("chat/a", b"2")
        await asyncio.sleep(1.1)  # the interval itself
        await writer.publish("chat/a", b"3")
        again = await operator(run, "r", **lasting())
        assert [(await again.read()).payload for _ in range(2)] == [b"2", b"3"]
        assert run.server.stats.dropped["expired"] == 1


async def test_expiry_is_counted_while_queued():
    """A message's interval goes on while it waits, across a restart too; what is left is sent along [MQTT-3.3.2-6]."""
    clock = Clock()
    async with running(clock=clock) as run:
        await gone(run, await operator(run, "r", "chat/#", **lasting(expiry_s=1000)))
        writer = await operator(run, "w")
        for seconds in (30, 60):
            await writer.publish("chat/a", b"%d" % seconds, properties=properties(message_expiry_interval=seconds))
        crashed = FakeState(run.state.values)
    clock.ahead_s = 40
    async with running(clock=clock, state=crashed) as run:
        again = await operator(run, "r", **lasting())
        got = await again.read()
        assert got.payload == b"60"
        assert got.properties.message_expiry_interval in (18, 19, 20)
        assert run.server.stats.dropped["expired"] == 1


async def test_sessions_of_one_principal_are_bounded():
    """A principal has a bounded number of sessions; its own again is none more."""
    async with running(limits={"sessions": 2}) as run:
        for name in ("a", "b"):
            await gone(run, await operator(run, name, **lasting()))
        refused = await run.raw()
        await refused.connect("c", token_=token("ann", "operator", iss="id"))
        assert refused.connack.reason_code == ReasonCode.QUOTA_EXCEEDED
        assert refused.connack.properties.reason_string == "sessions: this principal has 2 already"
        assert (await operator(run, "a", **lasting())).connack.session_present


async def test_topic_aliases_for_the_client():
    """A client that takes aliases gets each topic once, then its alias; beyond its maximum, and after a return, topics."""
    async with running() as run:
        reader = await operator(run, "r", "chat/#", **lasting(topic_alias_maximum=1))
        writer = await operator(run, "w")

        async def seen(client, *topics):
            found = []
            for topic in topics:
                await writer.publish(topic)
                packet = await client.read()
                client.send(Puback(packet_id=packet.packet_id))
                found.append((packet.topic, packet.properties.topic_alias))
            return found

        assert await seen(reader, "chat/a", "chat/a", "chat/b") == [("chat/a", 1), ("", 1), ("chat/b", None)]
        again = await operator(run, "r", **lasting(topic_alias_maximum=1))
        assert await seen(again, "chat/b", "chat/b") == [("chat/b", 1), ("", 1)]


async def test_alias_that_does_not_fit():
    """Where the alias would make a message too large for the client, it goes without."""
    async with running() as run:
        options = properties(topic_alias_maximum=5, maximum_packet_size=400)
        reader = await operator(run, "r", "chat/#", qos=0, properties=options)
        writer = await operator(run, "w")
        await writer.publish("chat/a", b"x" * (400 - 12))
        got = await reader.read()
        assert (got.topic, got.properties.topic_alias) == ("chat/a", None)


async def test_events_wait_for_durable_sessions():
    """A stored event is queued for an absent session, and has its form for whichever version comes back."""
    async with running() as run:
        await gone(run, await operator(run, "r", "devices/+/events/#", **lasting(Version.V311)))
        run.server.router.publish_event(Event(id="e1", source="/devices/d", type="t", payload=b"1"))
        await eventually(lambda: any("/out/" in key for key in run.state.values))
        crashed = FakeState(run.state.values)
    async with running(state=crashed) as run:
        again = await operator(run, "r", **lasting(Version.V311))
        got = await again.read()
        assert b'"specversion"' in got.payload
        second = await operator(run, "r", **lasting())
        got = await second.read()
        assert (got.payload, dict(got.properties.user_properties)["id"]) == (b"1", "e1")


async def test_handed_deliveries():
    """`on_ack` tells how a delivery ended: taken, or handed back when the session ends; QoS 2 once sent is not."""
    async with running() as run:
        reader = await operator(run, "r", **lasting(receive_maximum=3))
        (session,) = run.server._hub.sessions.of(ANN)
        assert session.is_connected
        ends = {}
        for n, qos in enumerate((1, 2, 1, 1)):
            message = Message("chat/a", b"%d" % n, qos)
            note = partial(ends.__setitem__, n)
            assert session.offer(message, qos, (), retain=False, on_ack=note)
        got = [await reader.read() for _ in range(3)]
        reader.send(Puback(packet_id=got[0].packet_id))
        await eventually(lambda: ends == {0: Fate.TAKEN})
        await gone(run, reader)
        assert not session.is_connected
        assert ends == {0: Fate.TAKEN}
        await operator(run, "r")
        assert ends == {0: Fate.TAKEN, 1: Fate.BROKEN, 2: Fate.UNSENT, 3: Fate.UNSENT}


class Guests:
    def __init__(self):
        self.seen = []

    def session_began(self, principal, client_id, connection):
        self.seen.append(("began", client_id, connection.peer.startswith("127.0.0.1:")))

    def session_ended(self, principal, client_id, connection, reason):
        self.seen.append(("ended", client_id, reason))


async def test_watchers():
    """Watchers hear of each client that was let in, and of its end with the reason; not of those refused."""
    async with running() as run:
        guests = Guests()
        run.server._hub.watchers.append(guests)
        await (await run.raw()).connect(token_=b"bad")
        first = await run.client()
        second = await run.client()
        await first.ended()
        second.send(Disconnect())
        await second.ended()
        third = await run.client()
        third.writer.transport.abort()
        await eventually(lambda: len(guests.seen) == 6)
        assert guests.seen == [
            ("began", "dev1", True),
            ("ended", "dev1", "taken over by a new connection of the same client [MQTT-3.1.4-3]"),
            ("began", "dev1", True),
            ("ended", "dev1", "by client"),
            ("began", "dev1", True),
            ("ended", "dev1", "connection lost"),
        ]


async def test_unreadable_sessions_are_removed():
    """A session of another format, or without its head, is gone; the others are taken up."""
    async with running() as run:
        await gone(run, await operator(run, "r", "chat/#", **lasting()))
        await eventually(lambda: kept(run.state))
        crashed = FakeState(run.state.values)
    crashed.values["session/client/id/ann/lost/out/0000000000000001"] = b"x"
    crashed.values["session/client/id/ann/odd/head"] = b"\xc1"
    async with running(state=crashed) as run:
        await eventually(lambda: {key.split("/")[4] for key in kept(crashed)} == {"r"})
        assert len(run.server._hub.sessions) == 1


async def test_publish_with_nobody_there():
    """Publishing to a durable subscriber only is a success, not 0x10."""
    async with running() as run:
        await gone(run, await operator(run, "r", "chat/#", **lasting()))
        writer = await operator(run, "w")
        assert await writer.publish("chat/a") == Puback(packet_id=1)
        again = await operator(run, "r", **lasting())
        assert isinstance(await again.read(), Publish)
