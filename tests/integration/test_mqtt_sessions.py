"""Sessions over real sockets: begun, resumed, taken over, expired, and taken up again after a crash (section 4.1)."""

import msgspec
import pytest
from lasting import ANN, Clock, alive, clients_kept, gone, kept, lasting, number_kept, operator
from mqtt_kit import becomes, eventually, properties, running, stored, token

from gateway.mqtt.codec import Disconnect, Puback, ReasonCode, Subscribe, Subscription, Unsubscribe, Version
from gateway.mqtt.records import Out

BOTH = pytest.mark.parametrize("version", list(Version))


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
        assert await kept(run) == []
        assert not (await operator(run, "r", clean_start=False)).connack.session_present


@pytest.mark.parametrize(("after_s", "present"), [(99, True), (101, False)])
async def test_session_expiry(tmp_path, after_s, present):
    """A session lives without a connection for its Session Expiry Interval, and is gone from disk after it."""
    clock = Clock()
    async with running(clock=clock, folder=tmp_path) as run:
        reader = await operator(run, "r", "chat/#", **lasting())
        await gone(run, reader)
        await run.server._hub.journal.settled()  # when it was left is on disk, too
        crashed = run.crashed()
    clock.ahead_s = after_s
    async with running(clock=clock, folder=crashed) as run:
        claims = {"iss": "id", "exp": clock() + 3600}
        again = await run.client("r", token_=token("ann", "operator", **claims), **lasting())
        assert again.connack.session_present == present
        assert await kept(run, "/head")


async def test_background_expiry():
    """A session expires by itself, without anybody asking for it."""
    async with running() as run:
        await gone(run, await operator(run, "r", "chat/#", **lasting(expiry_s=1)))
        assert len(run.server._hub.sessions) == 1
        await eventually(lambda: len(run.server._hub.sessions) == 0)
        await becomes(lambda: kept(run), [])
        assert not run.server.router.wants("chat/a")


async def test_never_expires(tmp_path):
    """0xFFFFFFFF is for ever (3.1.2.11.2)."""
    clock, limits = Clock(), {"session_expiry_s": 0xFFFFFFFF}
    async with running(clock=clock, limits=limits, folder=tmp_path) as run:
        await gone(run, await operator(run, "r", "chat/#", **lasting(expiry_s=0xFFFFFFFF)))
        await becomes(lambda: clients_kept(run), {"r"})
        crashed = run.crashed()
    clock.ahead_s = 100 * 365 * 86400
    async with running(clock=clock, folder=crashed) as run:
        assert len(run.server._hub.sessions) == 1


@pytest.mark.parametrize(("longest_s", "granted_s"), [(49, 49), (50, 50), (51, 50)])
async def test_expiry_of_311(longest_s, granted_s):
    """A 3.1.1 session without clean session lives as long as its limit says, and no longer than any may."""
    async with running(limits={"session_expiry_311_s": 50, "session_expiry_s": longest_s}) as run:
        await gone(run, await operator(run, "r", "chat/#", **lasting(Version.V311)))
        (session,) = run.server._hub.sessions.of(ANN)
        assert session.expiry_s == granted_s


@pytest.mark.parametrize(
    ("asked_s", "granted_s", "said_s"),
    [(0, 0, None), (99, 99, None), (100, 100, None), (101, 100, 100), (2**32 - 1, 100, 100)],
)
async def test_longest_expiry(asked_s, granted_s, said_s):
    """A client that asks for a longer Session Expiry Interval than the longest gets that, and is told (3.2.2.3.2)."""
    async with running(limits={"session_expiry_s": 100}) as run:
        client = await operator(run, "r", **lasting(expiry_s=asked_s))
        assert client.connack.properties.session_expiry_interval == said_s
        (session,) = run.server._hub.sessions.of(ANN)
        assert session.expiry_s == granted_s


async def test_disconnect_asks_for_no_longer_expiry_than_the_longest():
    """An interval that DISCONNECT names has the same bound as that of CONNECT."""
    async with running(limits={"session_expiry_s": 100}) as run:
        client = await operator(run, "r", **lasting(expiry_s=50))
        client.send(Disconnect(properties=properties(session_expiry_interval=0xFFFFFFFF)))
        assert await client.ended() == []
        (session,) = run.server._hub.sessions.of(ANN)
        assert session.expiry_s == 100


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
        await run.registry.remove("dev1")
        await run.register("dev1")
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
        await becomes(lambda: kept(run), [])
        assert not run.server.router.wants("chat/a")
        assert not (await operator(run, "r", **lasting())).connack.session_present


@BOTH
async def test_survives_a_crash(tmp_path, version):
    """After a crash: subscriptions with their options, what waits and what is not acknowledged, in order."""
    async with running(folder=tmp_path) as run:
        reader = await operator(run, "r", "chat/#", options={"no_local": version is Version.V5}, **lasting(version))
        writer = await operator(run, "w")
        for n in range(3):
            await writer.publish("chat/a", b"%d" % n, properties=properties(user_properties=(("n", str(n)),)))
        got = [await reader.read() for _ in range(3)]
        reader.send(Puback(packet_id=got[0].packet_id))
        await becomes(lambda: number_kept(run, "/out/"), 2)
        crashed = run.crashed()
    async with running(folder=crashed) as run:
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
        await becomes(lambda: mentioned(run, b"chat/#"), False)


async def mentioned(run, text):
    """Whether a session on disk speaks of something."""
    return text in b"".join((await run.state.kept("session/")).values())


async def test_shutdown_keeps_sessions(tmp_path):
    """A graceful end keeps what a crash keeps; what was never sent comes without DUP."""
    async with running(folder=tmp_path) as run:
        reader = await operator(run, "r", "chat/#", **lasting(receive_maximum=1))
        writer = await operator(run, "w")
        for n in range(2):
            await writer.publish("chat/a", b"%d" % n)
        assert (await reader.read()).payload == b"0"
        await run.server.aclose()
    async with running(folder=tmp_path) as run:
        again = await operator(run, "r", **lasting())
        got = [await again.read() for _ in range(2)]
        assert [(each.payload, each.dup) for each in got] == [(b"0", True), (b"1", False)]


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


async def test_unreadable_sessions_are_removed(tmp_path):
    """A session of another format, without its head, or with a message that is none, is gone; the others are taken up."""
    async with running(folder=tmp_path) as run:
        await gone(run, await operator(run, "r", "chat/#", **lasting()))
        await becomes(lambda: clients_kept(run), {"r"})
    async with stored(tmp_path) as storage:
        head = (await storage.state.get("session/client/id/ann/r/head")).value
        damage = {"lost/out/0000000000000001": b"x", "odd/head": b"\xc1"}
        packet = msgspec.msgpack.encode(Out(b"\xf0\x00"))
        for name, broken in (("x", b"\xc1"), ("y", packet)):
            damage |= {f"{name}/head": head, f"{name}/out/0000000000000001": broken}
        await storage.state.write({f"session/client/id/ann/{key}": value for key, value in damage.items()})
    async with running(folder=tmp_path) as run:
        await becomes(lambda: clients_kept(run), {"r"})
        assert len(run.server._hub.sessions) == 1
        assert run.server.stats.queues.size_bytes == 0


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
