"""QoS 2 over real sockets, both ways: taken once, delivered once, acknowledged when durable (section 4.3.3)."""

from dataclasses import replace

import ingest_parts as parts
import pytest
from lasting import alive, kept, number_kept
from mqtt_kit import POLICY, becomes, eventually, properties, publish, running, token

from gateway.errors import BusUnavailable
from gateway.mqtt.codec import (
    Disconnect,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    ReasonCode,
    Subscribe,
    Subscription,
    Version,
    Will,
)
from gateway.rules.policy import Policy, PolicyRule

BOTH = pytest.mark.parametrize("version", list(Version))
EVENTS = "devices/dev1/events/x"


def lasting(version, **more):
    """Options of a CONNECT that keeps its session."""
    if version is Version.V311:
        return {"version": version, "clean_start": False} | more
    return {"version": version, "clean_start": False, "properties": properties(session_expiry_interval=100)} | more


async def operator(run, client_id="tool", *filters, qos=2, role="operator", **connecting):
    client = await run.client(client_id, token_=token("ann", role, iss="id"), **connecting)
    if filters:
        wanted = tuple(Subscription(topic_filter=each, qos=qos) for each in filters)
        client.send(Subscribe(packet_id=1, subscriptions=wanted))
        assert all(code == qos for code in (await client.read()).reason_codes)
    return client


@BOTH
async def test_pubrec_is_the_receipt(version):
    """PUBREC comes when the event is durable, not before; a repetition is not ingested again; PUBREL frees the id."""
    async with running() as run:
        client = await run.client(version=version)
        run.bus.is_open.clear()
        client.send(publish(EVENTS, qos=2, packet_id=5), publish(EVENTS, qos=2, packet_id=5, dup=True))
        await eventually(lambda: run.bus.appends)
        assert await alive(client)
        run.bus.is_open.set()
        assert [await client.read() for _ in range(2)] == [Pubrec(packet_id=5)] * 2
        client.send(publish(EVENTS, qos=2, packet_id=5, dup=True))
        assert await client.read() == Pubrec(packet_id=5)
        assert await run.types() == ["x"]
        client.send(Pubrel(packet_id=5))
        assert await client.read() == Pubcomp(packet_id=5)
        client.send(publish(EVENTS, qos=2, packet_id=5))
        await becomes(run.types, ["x", "x"])


@BOTH
async def test_unknown_pubrel(version):
    """PUBREL for an identifier that is not known gets PUBCOMP, in 5.0 with 0x92."""
    async with running() as run:
        client = await run.client(version=version)
        client.send(Pubrel(packet_id=9))
        code = ReasonCode.PACKET_IDENTIFIER_NOT_FOUND if version is Version.V5 else ReasonCode.SUCCESS
        assert await client.read() == Pubcomp(packet_id=9, reason_code=code)


@BOTH
async def test_pubrel_before_pubrec_frees_nothing(version):
    """While PUBREC is owed its identifier is in use, whatever a client says: what comes under it is a repetition."""
    async with running() as run:
        client = await run.client(**lasting(version))
        run.state.is_open.clear()
        again = publish(EVENTS, b"2", qos=2, packet_id=5)
        client.send(publish(EVENTS, b"1", qos=2, packet_id=5))
        await becomes(lambda: payloads(run), [b"1"])
        client.send(Pubrel(packet_id=5), again, Pingreq())
        answers = []
        while (packet := await client.read()) != Pingresp():
            answers.append(packet)
        run.state.is_open.set()
        while len(answers) < 3:
            answers.append(await client.read())
        assert sorted(type(each).__name__ for each in answers) == ["Pubcomp", "Pubrec", "Pubrec"]
        assert await payloads(run) == [b"1"]
        assert run.server._hub.budget.used_bytes == 0
        client.send(Pubrel(packet_id=5))
        assert await client.read() == Pubcomp(packet_id=5)
        client.send(again)
        assert await client.read() == Pubrec(packet_id=5)
        assert await payloads(run) == [b"1", b"2"]


async def payloads(run):
    """Data of the events on the bus."""
    return [event.payload for event in await run.events()]


async def test_pubrec_with_an_error_ends_the_flow():
    """A refused message gets PUBREC with its code; the identifier is free again [MQTT-4.3.3-9]."""
    async with running() as run:
        client = await run.client()
        answer = await client.publish("devices/dev2/events/x", qos=2, packet_id=3)
        assert (type(answer), answer.reason_code) == (Pubrec, ReasonCode.NOT_AUTHORIZED)
        assert answer.properties.reason_string == "not-authorized: publishing to 'devices/dev2/events/x' is not allowed"
        client.send(Pubrel(packet_id=3))
        assert (await client.read()).reason_code == ReasonCode.PACKET_IDENTIFIER_NOT_FOUND
        assert await client.publish(EVENTS, qos=2, packet_id=3) == Pubrec(packet_id=3)


async def test_order_among_pubacks_and_pubrecs():
    """PUBACKs and PUBRECs leave in the order of arrival, whatever settles first [MQTT-4.6.0-2, -3]."""
    async with running() as run:
        client = await run.client()
        run.ingest.is_holding = True
        client.send(*(publish(EVENTS, qos=1 + n % 2, packet_id=n + 1) for n in range(6)))
        await eventually(lambda: len(run.ingest.held) == 6)
        for n in (5, 3, 3, 0, 0, 0):
            run.ingest.settle(n)
        answers = [await client.read() for _ in range(6)]
        assert answers == [(Puback, Pubrec)[n % 2](packet_id=n + 1) for n in range(6)]


async def test_strict_311():
    """In 3.1.1 a refused QoS 2 publish is not acknowledged: the connection is closed; lenient, it is received."""
    async with running() as run:
        client = await run.client(version=Version.V311)
        client.send(publish("devices/dev2/events/x", qos=2))
        assert await client.ended() == []
    async with running(strict_311=False) as run:
        client = await run.client(version=Version.V311)
        assert await client.publish("devices/dev2/events/x", qos=2) == Pubrec(packet_id=1)
        client.send(Pubrel(packet_id=1))
        assert await client.read() == Pubcomp(packet_id=1)


@pytest.mark.parametrize(("sent", "ends"), [(2, False), (3, False), (4, True)])
async def test_receive_maximum_counts_to_pubcomp(sent, ends):
    """A QoS 2 publish counts against the announced Receive Maximum until PUBCOMP; repeated, it counts once."""
    async with running(limits={"receive_maximum": 3}) as run:
        client = await run.client()
        for n in range(1, sent + 1):
            client.send(publish(EVENTS, qos=2, packet_id=n))
            answer = await client.read()
        assert (answer.reason_code if ends else type(answer)) == (0x93 if ends else Pubrec)
        if not ends:
            client.send(publish(EVENTS, qos=2, packet_id=1, dup=True), Pubrel(packet_id=1))
            assert [type(await client.read()) for _ in range(2)] == [Pubrec, Pubcomp]
            assert isinstance(await client.publish(EVENTS, qos=2, packet_id=9), Pubrec)


async def test_receive_maximum_is_given_back_by_a_refusal():
    """A PUBREC with an error takes no place any more."""
    async with running(limits={"receive_maximum": 1}) as run:
        client = await run.client()
        for n in range(1, 4):
            answer = await client.publish("devices/dev2/events/x", qos=2, packet_id=n)
            assert answer.reason_code == ReasonCode.NOT_AUTHORIZED


@BOTH
async def test_received_identifiers_survive(tmp_path, version):
    """After a crash an identifier that got PUBREC is still known: the repetition is answered, not ingested."""
    async with running(folder=tmp_path) as run:
        client = await run.client(**lasting(version))
        assert await client.publish(EVENTS, qos=2, packet_id=7) == Pubrec(packet_id=7)
        crashed = run.crashed()
    async with running(folder=crashed) as run:
        client = await run.client(**lasting(version))
        assert client.connack.session_present
        assert await client.publish(EVENTS, qos=2, packet_id=7, dup=True) == Pubrec(packet_id=7)
        assert await run.types() == ["x"]
        client.send(Pubrel(packet_id=7))
        assert await client.read() == Pubcomp(packet_id=7)
        assert await kept(run, "/in/") == []


async def test_no_pubrec_before_the_identifier_is_durable():
    """While the session cannot be written PUBREC waits: an error would have the event sent, and stored, again."""
    async with running() as run:
        client = await run.client(**lasting(Version.V5))
        run.state.failure = BusUnavailable("disk")
        client.send(publish(EVENTS, qos=2, packet_id=7))
        client.send(publish(EVENTS, qos=2, packet_id=7, dup=True))
        assert await alive(client)
        run.state.failure = None
        assert await client.read() == Pubrec(packet_id=7)
        assert await run.types() == ["x"]


async def test_a_repetition_waits_for_the_first():
    """A message that is still being stored when its sender comes back is not ingested twice: one PUBREC, when stored."""
    async with running() as run:
        first = await run.client(**lasting(Version.V5))
        run.bus.is_open.clear()
        first.send(publish(EVENTS, qos=2, packet_id=7))
        await eventually(lambda: run.bus.appends)
        again = await run.client(**lasting(Version.V5))
        again.send(publish(EVENTS, qos=2, packet_id=7, dup=True))
        assert await alive(again)
        run.bus.is_open.set()
        assert await again.read() == Pubrec(packet_id=7)
        assert await run.types() == ["x"]


@BOTH
async def test_delivery_at_qos_2(version):
    """PUBLISH, PUBREC, PUBREL, PUBCOMP; the identifier is used until then."""
    async with running() as run:
        reader = await operator(run, "r", "chat/#", version=version)
        writer = await operator(run, "w", version=version)
        assert isinstance(await writer.publish("chat/a", b"m", qos=2), Pubrec)
        got = await reader.read()
        assert got == Publish(topic="chat/a", payload=b"m", qos=2, packet_id=1)
        reader.send(Pubrec(packet_id=1), Pubrec(packet_id=1))
        assert [await reader.read() for _ in range(2)] == [Pubrel(packet_id=1)] * 2
        reader.send(Pubcomp(packet_id=1), Pubcomp(packet_id=1))
        assert await alive(reader)


@BOTH
async def test_unknown_pubrec(version):
    """PUBREC for an identifier that is not known gets PUBREL, in 5.0 with 0x92; a refusing one gets nothing."""
    async with running() as run:
        client = await run.client(version=version)
        client.send(Pubrec(packet_id=9))
        code = ReasonCode.PACKET_IDENTIFIER_NOT_FOUND if version is Version.V5 else ReasonCode.SUCCESS
        assert await client.read() == Pubrel(packet_id=9, reason_code=code)
        if version is Version.V5:
            client.send(Pubrec(packet_id=9, reason_code=ReasonCode.QUOTA_EXCEEDED))
        assert await alive(client)


async def test_refused_by_the_subscriber():
    """A PUBREC with an error ends the flow: nothing more is sent for it, now or on resumption."""
    async with running() as run:
        reader = await operator(run, "r", "chat/#", **lasting(Version.V5))
        writer = await operator(run, "w")
        await writer.publish("chat/a", b"m", qos=2)
        got = await reader.read()
        reader.send(Pubrec(packet_id=got.packet_id, reason_code=ReasonCode.UNSPECIFIED_ERROR))
        assert await alive(reader)
        await reader.aclose()
        again = await operator(run, "r", **lasting(Version.V5))
        assert await alive(again)


@pytest.mark.parametrize("answer", [Puback, Pubcomp])
async def test_wrong_answer(answer):
    """An answer that the flow does not wait for is a protocol error."""
    async with running() as run:
        reader = await operator(run, "r", "chat/#")
        await (await operator(run, "w")).publish("chat/a", b"m", qos=2)
        got = await reader.read()
        reader.send(answer(packet_id=got.packet_id))
        assert [each.reason_code for each in await reader.ended()] == [ReasonCode.PROTOCOL_ERROR]


@BOTH
async def test_flows_go_on_where_they_stood(version):
    """On resumption: PUBRELs first, then PUBLISHes with DUP, identifiers and order as before [MQTT-4.4.0-1]."""
    async with running() as run:
        reader = await operator(run, "r", "chat/#", **lasting(version))
        writer = await operator(run, "w")
        for n in range(1, 4):
            await writer.publish("chat/a", b"%d" % n, qos=2, packet_id=n)
        got = [await reader.read() for _ in range(3)]
        reader.send(Pubrec(packet_id=got[1].packet_id))
        assert await reader.read() == Pubrel(packet_id=got[1].packet_id)
        await reader.aclose()
        await eventually(lambda: run.server.stats.connections == 1)
        again = await operator(run, "r", **lasting(version))
        assert await again.read() == Pubrel(packet_id=got[1].packet_id)
        repeated = [await again.read() for _ in range(2)]
        assert [(each.packet_id, each.payload, each.dup) for each in repeated] == [
            (got[0].packet_id, b"1", True),
            (got[2].packet_id, b"3", True),
        ]
        again.send(Pubcomp(packet_id=got[1].packet_id))
        assert await alive(again)


@BOTH
async def test_deliveries_survive_a_crash(tmp_path, version):
    """After a crash nothing acknowledged comes again, everything else does, under its old identifier."""
    async with running(folder=tmp_path) as run:
        reader = await operator(run, "r", "chat/#", **lasting(version))
        writer = await operator(run, "w")
        for n in range(1, 5):
            await writer.publish("chat/a", b"%d" % n, qos=2, packet_id=n)
        got = [await reader.read() for _ in range(4)]
        for each in got[:2]:
            reader.send(Pubrec(packet_id=each.packet_id))
            assert await reader.read() == Pubrel(packet_id=each.packet_id)
        reader.send(Pubcomp(packet_id=got[0].packet_id))
        await becomes(lambda: number_kept(run, "/out/"), 3)
        crashed = run.crashed()
    async with running(folder=crashed) as run:
        again = await operator(run, "r", **lasting(version))
        assert again.connack.session_present
        assert await again.read() == Pubrel(packet_id=got[1].packet_id)
        repeated = [await again.read() for _ in range(2)]
        assert [(each.packet_id, each.payload, each.dup) for each in repeated] == [
            (each.packet_id, each.payload, True) for each in got[2:]
        ]
        assert await alive(again)


async def test_pubrel_waits_until_the_release_is_durable():
    """PUBREL lets the client forget the identifier, so a crash must not find us before it: it waits for the write."""
    async with running() as run:
        reader = await operator(run, "r", "chat/#", **lasting(Version.V5))
        writer = await operator(run, "w")
        await writer.publish("chat/a", b"m", qos=2)
        got = await reader.read()
        run.state.failure = BusUnavailable("disk")
        reader.send(Pubrec(packet_id=got.packet_id))
        assert await alive(reader)
        run.state.failure = None
        assert await reader.read() == Pubrel(packet_id=got.packet_id)


async def test_unavailable_at_qos_2():
    """PUBREC 0x83 is followed by DISCONNECT with the code, as at QoS 1."""
    async with running() as run:
        client = await run.client()
        run.bus.failure = parts.unavailable()
        client.send(publish(EVENTS, qos=2))
        answer, last = await client.ended()
        assert (type(answer), answer.reason_code) == (Pubrec, 0x83)
        assert (type(last), last.reason_code) == (Disconnect, 0x83)


async def test_will_at_qos_2():
    """A will may have QoS 2, and is delivered at it."""
    async with running() as run:
        reader = await operator(run, "r", "chat/#")
        lost = await operator(run, "w", will=Will(topic="chat/gone", payload=b"x", qos=2))
        lost.writer.transport.abort()
        assert (await reader.read()).qos == 2


async def test_settles_after_its_session_is_gone():
    """A message whose session ended meanwhile leaves nothing behind in the store."""
    async with running() as run:
        client = await run.client(**lasting(Version.V5))
        run.bus.is_open.clear()
        client.send(publish(EVENTS, qos=2))
        await eventually(lambda: run.bus.appends)
        again = await run.client()
        assert not again.connack.session_present
        run.bus.is_open.set()
        await run.pipeline.drain()
        assert await alive(again)
        await becomes(lambda: kept(run), [])


QUIET = PolicyRule(role="quiet", publish=("chat/#",), subscribe=("other/#",))  # receives nothing
WITH_QUIET = Policy([*POLICY.rules, QUIET])
WITHOUT_MESSAGES = Policy([replace(QUIET, role="operator")])


async def begun(run, version):
    """A durable reader that has a message at QoS 2, and was cut off before it could say so."""
    reader = await operator(run, "r", "chat/#", **lasting(version))
    writer = await operator(run, "w")
    writer.send(publish("chat/a", b"x" * 100, qos=2, packet_id=1))
    assert await writer.read() == Pubrec(packet_id=1)
    first = await reader.read()
    await reader.aclose()
    await eventually(lambda: run.server.stats.connections == 1)
    return first.packet_id


@BOTH
@pytest.mark.parametrize("is_restarted", [False, True])
async def test_a_begun_flow_that_policy_forbids_is_completed(tmp_path, version, is_restarted):
    """The client may hold the identifier of a message that it may not have any more: PUBREL frees it, then the flow is gone."""
    async with running(folder=tmp_path, policy=WITH_QUIET) as run:
        packet_id = await begun(run, version)
        if not is_restarted:
            await completed(run, version, packet_id, role="quiet")
    if is_restarted:
        async with running(folder=tmp_path, policy=WITHOUT_MESSAGES) as run:
            await completed(run, version, packet_id)


async def completed(run, version, packet_id, **connecting):
    """Come back: only PUBREL is owed."""
    again = await operator(run, "r", **(lasting(version) | connecting))
    assert again.connack.session_present
    assert await again.read() == Pubrel(packet_id=packet_id)
    assert await alive(again)
    again.send(Pubcomp(packet_id=packet_id))
    assert await alive(again)
    await becomes(lambda: kept(run, "/out/"), [])
    assert sum(run.server.stats.dropped[cause] for cause in ("not-authorized", "packet-too-large")) == 1


async def test_a_begun_flow_that_is_too_large_now_is_completed():
    """A client that comes back with a smaller Maximum Packet Size gets PUBREL in place of what is over it."""
    async with running() as run:
        packet_id = await begun(run, Version.V5)
        small = properties(session_expiry_interval=100, maximum_packet_size=90)
        await completed(run, Version.V5, packet_id, properties=small)


async def test_a_flow_that_has_not_begun_is_dropped():
    """What the client never saw is discarded as if it had been sent: no PUBREL, and the next message follows."""
    async with running() as run:
        reader = await operator(run, "r", "chat/#", **lasting(Version.V5))
        await reader.aclose()
        await eventually(lambda: run.server.stats.connections == 0)
        writer = await operator(run, "w")
        for packet_id, size in ((1, 100), (2, 1)):
            writer.send(publish("chat/a", b"x" * size, qos=2, packet_id=packet_id))
            assert await writer.read() == Pubrec(packet_id=packet_id)
        small = properties(session_expiry_interval=100, maximum_packet_size=90)
        again = await operator(run, "r", **(lasting(Version.V5) | {"properties": small}))
        assert (await again.read()).payload == b"x"
        assert run.server.stats.dropped["packet-too-large"] == 1


async def test_a_begun_flow_is_given_to_no_other_member():
    """A shared message that one member may hold at QoS 2 goes to no other when policy takes it away [MQTT-4.8.2-5]."""
    async with running(policy=WITH_QUIET) as run:
        reader = await operator(run, "r", "$share/g/chat/#", **lasting(Version.V5))
        writer = await operator(run, "w")
        writer.send(publish("chat/a", b"m", qos=2, packet_id=1))
        assert await writer.read() == Pubrec(packet_id=1)
        packet_id = (await reader.read()).packet_id
        await reader.aclose()
        await eventually(lambda: run.server.stats.connections == 1)
        other = await operator(run, "other", "$share/g/chat/#")
        again = await operator(run, "r", role="quiet", **lasting(Version.V5))
        assert await again.read() == Pubrel(packet_id=packet_id)
        assert await alive(other)


async def test_second_pubrel_waits_for_the_release():
    """PUBCOMP lets the client use the identifier again, so the second one, too, comes when its release is durable."""
    async with running() as run:
        client = await run.client(**lasting(Version.V5))
        await client.publish(EVENTS, qos=2, packet_id=7)
        run.state.failure = BusUnavailable("disk")
        client.send(Pubrel(packet_id=7), Pubrel(packet_id=7))
        assert await alive(client)
        run.state.failure = None
        codes = [(await client.read()).reason_code for _ in range(2)]
        assert codes == [0, ReasonCode.PACKET_IDENTIFIER_NOT_FOUND]
