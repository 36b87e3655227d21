"""CONNECT over real sockets: who is let in, what CONNACK says, and how connections end."""

import asyncio
import time

import ingest_parts as parts
import pytest
from mqtt_kit import (
    Client,
    becomes,
    connect,
    eventually,
    properties,
    publish,
    running,
    token,
)
from mqtt_tokens import sealed

from edge_protocol.envelope import Place
from gateway.mqtt.codec import (
    Auth,
    Connack,
    Connect,
    Disconnect,
    Pingreq,
    Pingresp,
    Puback,
    ReasonCode,
    Subscribe,
    Subscription,
    Version,
    Will,
    encode,
)
from gateway.ports.identity import Principal, PrincipalKind
from gateway.rules.policy import Permissions

BOTH = pytest.mark.parametrize("version", list(Version))
DEV1 = Principal(PrincipalKind.DEVICE, "", "dev1")


def pairs(packet, name):
    return [value for key, value in packet.properties.user_properties if key == name]


async def test_connack_announces():
    """CONNACK tells the server's time, its promise, its limits, and how far each named stream is stored."""
    async with running() as run:
        device = await run.client()
        measured = [parts.event(n) for n in range(7)]
        await device.publish("devices/dev1/events", sealed(*measured, place=Place("s1", 1, 0)))
        streams = properties(user_properties=(("stream", "s1"), ("stream", "s2")))
        client = await run.client(properties=streams, keep_alive_s=0)
        said = client.connack.properties
        assert pairs(client.connack, "stored-through") == ["s1 7", "s2 0"]
        assert pairs(client.connack, "receipts") == ["durable"]
        assert pairs(client.connack, "server-time")[0].endswith("Z")
        assert (said.maximum_qos, said.session_expiry_interval) == (None, None)
        assert (said.receive_maximum, said.topic_alias_maximum, said.server_keep_alive) == (256, 16, 1200)
        assert not client.connack.session_present


async def test_streams_looked_up_are_bounded():
    """Of the streams a CONNECT names, 64 are looked up."""
    async with running() as run:
        for n in (63, 64, 65):
            streams = properties(user_properties=tuple(("stream", f"s{i}") for i in range(n)))
            client = await run.client(f"dev{n}", properties=streams)
            assert len(pairs(client.connack, "stored-through")) == min(n, 64)


async def test_refusal_has_reason_and_time():
    """A refused token gets 0x87, a Reason String and the server's time; in 3.1.1 return code 5."""
    async with running() as run:
        client = await run.raw()
        refused = await client.connect(token_=b"nonsense")
        assert refused.reason_code == ReasonCode.NOT_AUTHORIZED
        assert refused.properties.reason_string == "token-malformed: expected three parts joined by dots"
        assert pairs(refused, "server-time")
        assert await client.ended() == []
        old = await run.raw(Version.V311)
        assert (await old.connect(token_=b"nonsense")).reason_code == ReasonCode.NOT_AUTHORIZED
        assert await old.ended() == []
        assert run.server.stats.refused[0x87] == 2


@BOTH
async def test_client_id_must_be_the_device(version):
    """A device connects under its own id only: its token proves nobody else, so 0x87, in 3.1.1 return code 5; closed."""
    async with running() as run:
        client = await run.raw(version)
        refused = await client.connect("dev2", token_=token("dev1"))
        assert refused.reason_code == ReasonCode.NOT_AUTHORIZED
        if version is Version.V5:
            assert refused.properties.reason_string == "wrong-subject: sub: expected the client id, found 'dev1'"
        assert await client.ended() == []


async def test_operator_ids_are_free():
    """An operator's client id may be empty: MQTT 5 is told the one it got."""
    async with running() as run:
        first = await run.client("", token_=token("ann", "operator", iss="id"))
        second = await run.client("", token_=token("ann", "operator", iss="id"))
        names = {each.connack.properties.assigned_client_identifier for each in (first, second)}
        assert len(names - {None, ""}) == 2


@BOTH
async def test_takeover(version):
    """A second connection of the same client ends the first: DISCONNECT 0x8E, in 3.1.1 a close."""
    async with running() as run:
        first = await run.client(version=version)
        second = await run.client(version=version)
        last = await first.ended()
        assert [packet.reason_code for packet in last] == (
            [ReasonCode.SESSION_TAKEN_OVER] if version is Version.V5 else []
        )
        second.send(Pingreq())
        assert await second.read() == Pingresp()
        assert run.server.stats.connections == 1


async def test_foreign_principal_takes_nothing_over():
    """Another principal under the same client id has a session of its own."""
    async with running() as run:
        device = await run.client("dev1")
        operator = await run.client("dev1", token_=token("dev1", "operator", iss="id"))
        for client in (device, operator):
            client.send(Pingreq())
            assert await client.read() == Pingresp()
        assert run.server.stats.connections == 2


async def test_authentication_method():
    """With method `jwt` the token is in the Authentication Data and AUTH renews; other methods get 0x8C."""
    async with running() as run:
        method = properties(authentication_method="jwt", authentication_data=token("dev1"))
        client = await run.client(properties=method)
        assert client.connack.properties.authentication_method == "jwt"
        fresh = properties(authentication_method="jwt", authentication_data=token("dev1"))
        client.send(Auth(reason_code=ReasonCode.RE_AUTHENTICATE, properties=fresh))
        assert await client.read() == Auth(properties=properties(authentication_method="jwt"))
        other = await run.raw()
        refused = await other.connect(properties=properties(authentication_method="scram"))
        assert refused.reason_code == ReasonCode.BAD_AUTHENTICATION_METHOD


async def test_auth_without_method():
    """AUTH is a protocol error where CONNECT named no method, and so is another method [MQTT-4.12.0-7]."""
    async with running() as run:
        client = await run.client()
        fresh = properties(authentication_method="jwt", authentication_data=token("dev1"))
        client.send(Auth(reason_code=ReasonCode.RE_AUTHENTICATE, properties=fresh))
        (last,) = await client.ended()
        assert last.reason_code == ReasonCode.PROTOCOL_ERROR
        assert "AUTH without an authentication method in CONNECT" in last.properties.reason_string


async def test_anonymous():
    """A client without a token is let in on loopback if there is a role for it, never after a bad token."""
    async with running(anonymous_role="operator") as run:
        client = await run.raw()
        client.send(Connect(version=Version.V5, client_id="tool"))
        assert (await client.read()).reason_code == 0
        bad = await run.raw()
        assert (await bad.connect(token_=b"bad")).reason_code == ReasonCode.NOT_AUTHORIZED
    async with running() as run:
        client = await run.raw(Version.V311)
        client.send(Connect(version=Version.V311, client_id="tool"))
        assert (await client.read()).reason_code == ReasonCode.NOT_AUTHORIZED


async def test_pipelined_behind_connect():
    """What is sent behind CONNECT waits for the decision, then is processed in order; a refused client's is not."""
    async with running() as run:
        run.authenticator.is_open.clear()
        client = await run.raw()
        client.send(
            connect(), publish("devices/dev1/events/t", packet_id=1), publish("devices/dev1/events/t", packet_id=2)
        )
        await eventually(lambda: run.authenticator.calls)
        assert run.ingest.submitted == run.ingest.runs == 0
        run.authenticator.is_open.set()
        assert isinstance(await client.read(), Connack)
        assert [await client.read(), await client.read()] == [Puback(packet_id=1), Puback(packet_id=2)]
        bad = await run.raw()
        bad.send(connect("dev2", token_=b"bad"), publish("devices/dev2/events/t"))
        assert [packet.reason_code for packet in await bad.ended()] == [ReasonCode.NOT_AUTHORIZED]
        assert await run.types() == ["t", "t"]


async def test_connect_deadline():
    """A socket that brings no complete CONNECT in time is closed."""
    async with running(limits={"connect_s": 0.3}) as run:
        silent, partial = await run.raw(), await run.raw()
        partial.writer.write(encode(connect(), Version.V5)[:20])
        assert await silent.ended(2) == []
        assert await partial.ended(2) == []
        assert run.server.stats.refused[-1] == 2


@pytest.mark.parametrize(("extra", "is_read"), [(-1, True), (0, True), (1, False)])
async def test_connect_size(extra, is_read):
    """A CONNECT may have 16 KiB; one byte more is closed by its length."""
    async with running() as run:
        client = await run.raw()
        bare = len(encode(connect(token_=b"x" * 1000), Version.V5))
        client.send(connect(token_=b"x" * (1000 + 16384 - bare + extra)))
        assert bool(await client.ended()) == is_read


async def test_wrong_version():
    """Another protocol level is refused in the words of the nearest version."""
    async with running() as run:
        client = await run.raw(Version.V311)
        packet = bytearray(encode(connect(version=Version.V311), Version.V311))
        packet[packet.index(b"MQTT") + 4] = 3
        client.writer.write(packet)
        assert (await client.read()).reason_code == ReasonCode.UNSUPPORTED_PROTOCOL_VERSION


async def test_connection_cap():
    """Beyond the cap CONNACK says 0x97 and when to come back; a place that gets free is given away."""
    async with running(limits={"connections": 2}) as run:
        first, _second = await run.client("dev1"), await run.client("dev2")
        third = await run.raw()
        refused = await third.connect("dev3")
        assert refused.reason_code == ReasonCode.QUOTA_EXCEEDED
        assert 2 <= int(pairs(refused, "retry-after")[0]) <= 30
        old = await run.raw(Version.V311)
        assert (await old.connect("dev4")).reason_code == ReasonCode.SERVER_UNAVAILABLE
        for client in (first, third, old):
            await client.aclose()
        await eventually(lambda: run.server.stats.connections == 1)
        await run.client("dev5")


@pytest.mark.parametrize(("number", "code"), [(1, 0), (2, 0), (3, 0x9F)])
async def test_connection_rate(number, code):
    """Beyond so many CONNECTs a second CONNACK says 0x9F and when to come back, before any token is checked."""
    async with running(limits={"connects_per_s": 1.0}) as run:
        for n in range(1, number + 1):
            client = await run.raw()
            await client.connect(f"dev{n}")
        assert client.connack.reason_code == code
        assert run.authenticator.calls == min(number, 2)
        if code:
            assert 2 <= int(pairs(client.connack, "retry-after")[0]) <= 30
            reason = "overloaded: too many connections a second"
            assert client.connack.properties.reason_string == reason
            assert await client.ended() == []
            old = await run.raw(Version.V311)
            assert (await old.connect("dev4")).reason_code == ReasonCode.SERVER_UNAVAILABLE


async def test_low_connection_rate():
    """However low the rate, one client is let in at once: a rate is not a closed door."""
    async with running(limits={"connects_per_s": 0.01}) as run:
        for n in range(2):
            await run.client(f"dev{n}")
        assert (await (await run.raw()).connect("dev3")).reason_code == 0x9F


async def test_refused_connections_cost_no_rate():
    """Who is refused for the rate takes nothing from it: a second later one is let in, however many try."""
    async with running(limits={"connects_per_s": 1.0}) as run:
        for n in range(2):
            await run.client(f"dev{n}")
        tries = 0
        async with asyncio.timeout(5):
            while run.server.stats.accepted < 3:
                tries += 1
                await (await run.raw()).connect("dev3")
        assert tries > 1


@BOTH
async def test_keep_alive(version):
    """A client that was not heard for one and a half intervals is ended; one that pings is not."""
    async with running() as run:
        silent = await run.client("dev1", keep_alive_s=1, version=version)
        lively = await run.client("dev2", keep_alive_s=1, version=version)
        started = time.monotonic()
        silence = asyncio.create_task(silent.ended())
        while not silence.done():
            lively.send(Pingreq())
            assert await lively.read() == Pingresp()
            await asyncio.wait([silence], timeout=0.4)
        assert 1.4 <= time.monotonic() - started <= 2.5
        wanted = [ReasonCode.KEEP_ALIVE_TIMEOUT] if version is Version.V5 else []
        assert [packet.reason_code for packet in silence.result()] == wanted
        lively.send(Pingreq())
        assert await lively.read() == Pingresp()


async def test_expiry_fires_will():
    """A connection ends with 0x87 when its token expires, and its will is published."""
    async with running() as run:
        will = Will(topic="devices/dev1/events/gone", payload=b"{}", qos=1)
        client = await run.client(will=will, claims={"exp": time.time() + 2})
        (last,) = await client.ended()
        assert last.reason_code == ReasonCode.NOT_AUTHORIZED
        assert last.properties.reason_string == "token-expired: renew the token before its exp"
        await becomes(run.types, ["gone"])


async def test_renewal_by_publish():
    """A fresh token published with QoS 1 keeps the connection; it reaches nobody."""
    async with running() as run:
        client = await run.client(claims={"exp": time.time() + 2})
        answer = await client.publish("devices/dev1/token", token("dev1"))
        assert answer == Puback(packet_id=1)
        client.send(publish("devices/dev1/events/t", packet_id=2))
        assert await client.read() == Puback(packet_id=2)
        with pytest.raises(TimeoutError):
            await client.read(2.2)
        client.send(Pingreq())
        assert await client.read() == Pingresp()
        assert await run.types() == ["t"]


async def test_bad_renewal():
    """A bad or a foreign token closes with 0x87; on another's token topic, or retained, it is refused."""
    async with running() as run:
        client = await run.client()
        assert (await client.publish("devices/dev2/token", token("dev2"))).reason_code == ReasonCode.NOT_AUTHORIZED
        retained = await client.publish("devices/dev1/token", token("dev1"), retain=True)
        assert retained.reason_code == ReasonCode.NOT_AUTHORIZED
        client.send(publish("devices/dev1/token", token("dev2")))
        (last,) = await client.ended()
        assert last.reason_code == ReasonCode.NOT_AUTHORIZED
        assert last.properties.reason_string == "wrong-subject: sub: expected the client id, found 'dev2'"


async def test_operator_renews_on_gateway_token():
    """Those who are no devices renew on `gateway/token`."""
    async with running() as run:
        claims = {"iss": "id"}
        client = await run.client("x", token_=token("ann", "operator", exp=time.time() + 2, **claims))
        assert await client.publish("gateway/token", token("ann", "operator", **claims)) == Puback(packet_id=1)
        with pytest.raises(TimeoutError):
            await client.read(2.2)


async def test_renewal_changes_permissions():
    """A fresh token with another role rules what may be published from then on, and what is subscribed."""
    async with running() as run:
        client = await run.client("x", token_=token("ann", "operator", iss="id"))
        client.send(Subscribe(packet_id=9, subscriptions=(Subscription(topic_filter="chat/#", qos=1),)))
        assert (await client.read()).reason_codes == (ReasonCode.GRANTED_QOS_1,)
        client.send(publish("gateway/token", token("ann", "service", iss="id", exp=time.time() + 7200)))
        client.send(publish("chat/a", packet_id=2))
        assert [packet.reason_code for packet in [await client.read(), await client.read()]] == [0, 0x87]
        assert run.server.router.publish_retained("chat/a", b"x") == 0


async def test_revocation():
    """A revoked principal is cut off within a second, and its will is discarded; others are not touched."""
    async with running() as run:
        will = Will(topic="devices/dev1/events/gone", payload=b"{}")
        revoked, other = await run.client("dev1", will=will), await run.client("dev2")
        started = time.monotonic()
        await run.registry.set_enabled("dev1", enabled=False)
        (last,) = await revoked.ended()
        assert time.monotonic() - started < 1
        assert (last.reason_code, last.properties.reason_string) == (ReasonCode.NOT_AUTHORIZED, "device disabled")
        other.send(Pingreq())
        assert await other.read() == Pingresp()
        await run.pipeline.drain()
        assert await run.types() == []


async def test_revoked_while_being_let_in():
    """A revocation reaches a client whose token was proved already but whose CONNACK was not written yet."""
    async with running() as run:
        run.bus.is_open.clear()
        client = await run.raw()
        client.send(connect(properties=properties(user_properties=(("stream", "s"),))))
        await eventually(lambda: run.server.disconnect(DEV1))
        run.bus.is_open.set()
        (refused,) = await client.ended()
        assert refused.reason_code == ReasonCode.NOT_AUTHORIZED
        assert not run.server.is_connected(DEV1)
        await run.client()
        assert run.server.is_connected(DEV1)


async def test_session_expiry_cannot_be_invented_at_the_end():
    """DISCONNECT with a session expiry where CONNECT named none is a protocol error; the will is published."""
    async with running() as run:
        client = await run.client(will=Will(topic="devices/dev1/events/gone", payload=b"{}"))
        client.send(Disconnect(properties=properties(session_expiry_interval=9)))
        assert [packet.reason_code for packet in await client.ended()] == [ReasonCode.PROTOCOL_ERROR]
        await becomes(run.types, ["gone"])


async def test_refresh():
    """Changed permissions hold from the next packet on."""
    async with running() as run:
        client = await run.client()
        run.server.refresh(DEV1, Permissions())
        answer = await client.publish("devices/dev1/events/t")
        assert answer.reason_code == ReasonCode.NOT_AUTHORIZED


@pytest.mark.parametrize(
    ("will", "code"),
    [
        (Will(topic="devices/dev2/events/x", payload=b""), ReasonCode.NOT_AUTHORIZED),
        (Will(topic="devices/dev1/token", payload=b""), ReasonCode.NOT_AUTHORIZED),
        (Will(topic="devices/dev1/events/x", payload=b"", retain=True), ReasonCode.NOT_AUTHORIZED),
        (Will(topic="devices/dev1/nothing", payload=b""), ReasonCode.NOT_AUTHORIZED),
    ],
)
async def test_wills_refused(will, code):
    """A will that policy forbids is refused at CONNECT."""
    async with running() as run:
        client = await run.raw()
        refused = await client.connect(will=will)
        assert refused.reason_code == code
        assert refused.properties.reason_string.startswith("will: ")


@pytest.mark.parametrize("topic", ["devices/sealed/events/x", "devices/sealed/events"])
async def test_will_of_plain_events_where_envelopes_are_required(topic):
    """A role that requires envelopes may not leave a plain event as will."""
    async with running() as run:
        await run.register("sealed", role="device")
        client = await run.raw()
        refused = await client.connect("sealed", will=Will(topic=topic, payload=b"{}"))
        assert (
            refused.properties.reason_string == "will: envelope-required: plain events are not accepted from this role"
        )


@pytest.mark.parametrize(("code", "fires"), [(0x00, False), (0x04, True), (None, True)])
async def test_will_fires_unless_the_client_said_goodbye(code, fires):
    """The will is published when the connection is lost or the client asks for it, not after DISCONNECT 0x00."""
    async with running() as run:
        client = await run.client(will=Will(topic="devices/dev1/events/gone", payload=b"{}"))
        if code is not None:
            client.send(Disconnect(reason_code=ReasonCode(code)))
        else:
            client.writer.transport.abort()
        await eventually(lambda: run.server.stats.connections == 0)
        await run.pipeline.drain()
        assert await run.types() == ["gone"] * fires


async def test_goes_away_while_deciding():
    """A client that leaves while its token is proved is not let in afterwards."""
    async with running() as run:
        run.authenticator.is_open.clear()
        client = await run.raw()
        client.send(connect())
        await eventually(lambda: run.authenticator.calls)
        client.writer.transport.abort()
        await asyncio.sleep(0.05)
        run.authenticator.is_open.set()
        again = await run.client()
        again.send(Pingreq())
        assert await again.read() == Pingresp()
        assert run.server.stats.connections == 1


async def test_shutdown():
    """Draining answers what was read, then DISCONNECT 0x8B ends every connection; nothing is accepted afterwards."""
    async with running() as run:
        client, port = await run.client(), run.port
        run.bus.is_open.clear()
        client.send(publish("devices/dev1/events/t"))
        await eventually(lambda: run.bus.appends)
        drained = asyncio.create_task(run.server.drain(5))
        await asyncio.sleep(0.05)
        assert not drained.done()
        run.bus.is_open.set()
        assert await drained
        await run.server.aclose()
        assert [type(packet) for packet in await client.ended()] == [Puback, Disconnect]
        with pytest.raises(ConnectionError):
            await Client.open(port)
