"""Last wills over real sockets: delay, cancellation, session end, restart, and policy when they fire (section 3.1.2.5)."""

import time

import pytest
from mqtt_kit import becomes, eventually, properties, running, token
from structlog.testing import capture_logs

from gateway.mqtt.codec import Disconnect, Pingreq, Pingresp, ReasonCode, Subscribe, Subscription, Version, Will
from gateway.ports.identity import Principal, PrincipalKind
from gateway.rules.policy import Policy, PolicyRule

ANN = Principal(PrincipalKind.CLIENT, "id", "ann")


def will(delay_s=0, **more):
    said = properties(will_delay_interval=delay_s) if delay_s else properties()
    return Will(**({"topic": "chat/gone", "payload": b"x", "qos": 1, "properties": said} | more))


async def operator(run, client_id="tool", **connecting):
    return await run.client(client_id, token_=token("ann", "operator", iss="id"), **connecting)


async def reader_of(run):
    client = await operator(run, "reader")
    client.send(Subscribe(packet_id=1, subscriptions=(Subscription(topic_filter="chat/#", qos=2),)))
    await client.read()
    return client


async def lost(run, client):
    before = run.server.stats.connections
    client.writer.transport.abort()
    await eventually(lambda: run.server.stats.connections < before)


async def silent(client, seconds=0.3):
    with pytest.raises(TimeoutError):
        await client.read(seconds)


def lasting(expiry_s=100, **more):
    return {"clean_start": False, "properties": properties(session_expiry_interval=expiry_s), **more}


async def test_delay():
    """A will with a delay is published when that has passed, not before; with its properties, less the delay."""
    async with running() as run:
        reader = await reader_of(run)
        said = properties(
            will_delay_interval=1,
            content_type="text/plain",
            response_topic="r",
            correlation_data=b"7",
            user_properties=(("a", "1"), ("a", "2")),
        )
        await lost(run, await operator(run, **lasting(will=will(properties=said))))
        started = time.monotonic()
        got = await reader.read()
        assert 0.8 <= time.monotonic() - started <= 2
        assert (got.topic, got.payload, got.qos) == ("chat/gone", b"x", 1)
        assert got.properties.user_properties == said.user_properties
        names = ("content_type", "response_topic", "correlation_data")
        assert [getattr(got.properties, name) for name in names] == [getattr(said, name) for name in names]
        assert got.properties.will_delay_interval is None
        assert run.server.stats.wills == 1


async def test_return_cancels():
    """A client that is back before the delay has passed takes its will with it [MQTT-3.1.3-9]."""
    async with running() as run:
        reader = await reader_of(run)
        await lost(run, await operator(run, **lasting(will=will(1))))
        again = await operator(run, **lasting())
        await silent(reader, 1.5)
        again.send(Pingreq())
        assert await again.read() == Pingresp()
        assert run.server.stats.wills == 0


async def test_takeover():
    """Taken over: a will without delay is published; with one it is not, unless a clean start ends the session."""
    async with running() as run:
        reader = await reader_of(run)
        await operator(run, **lasting(will=will(payload=b"at once")))
        await operator(run, **lasting(will=will(60, payload=b"later")))
        assert (await reader.read()).payload == b"at once"
        await operator(run, **lasting(will=will(60, payload=b"at the end")))
        await silent(reader)
        await operator(run)
        assert (await reader.read()).payload == b"at the end"


@pytest.mark.parametrize("expiry_s", [0, 1])
async def test_session_end_is_earlier(expiry_s):
    """The will is published when the session ends, if that is before its delay [MQTT-3.1.2-8]."""
    async with running() as run:
        reader = await reader_of(run)
        await lost(run, await operator(run, **lasting(expiry_s, will=will(60))))
        started = time.monotonic()
        assert (await reader.read()).payload == b"x"
        assert expiry_s - 0.2 <= time.monotonic() - started <= expiry_s + 1


@pytest.mark.parametrize(("code", "fires"), [(0x00, False), (0x04, True), (0x80, True)])
async def test_goodbye(code, fires):
    """DISCONNECT 0x00 discards the will [MQTT-3.14.4-3]; every other code fires it."""
    async with running() as run:
        reader = await reader_of(run)
        client = await operator(run, **lasting(will=will()))
        client.send(Disconnect(reason_code=ReasonCode(code)))
        await client.ended()
        if fires:
            assert (await reader.read()).payload == b"x"
        else:
            await silent(reader)


async def test_after_a_crash(tmp_path):
    """A will of a session that survives is published after its delay, counted from the restart if nobody knows better."""
    async with running(folder=tmp_path) as run:
        await operator(run, **lasting(will=will(1)))
        crashed = run.crashed()
    async with running(folder=crashed) as run:
        reader = await reader_of(run)
        assert (await reader.read()).payload == b"x"
        await becomes(lambda: is_kept(run), False)


async def is_kept(run):
    """Whether the will is on disk."""
    return b"chat/gone" in b"".join((await run.state.kept()).values())


async def test_after_a_shutdown(tmp_path):
    """A shutdown defers wills to the restart; a client that is back before the delay cancels it there too."""
    async with running(folder=tmp_path) as run:
        await operator(run, "one", **lasting(will=will(payload=b"one")))
        await operator(run, "two", **lasting(will=will(60, payload=b"two")))
        await operator(run, "three", will=will(payload=b"ends with its connection"))
        reader = await run.client("reader", token_=token("bob", "operator", iss="id"), **lasting())
        reader.send(Subscribe(packet_id=1, subscriptions=(Subscription(topic_filter="chat/#", qos=1),)))
        await reader.read()
        await run.server.aclose()
        assert run.server.stats.wills == 0
    async with running(folder=tmp_path) as run:
        await operator(run, "two", **lasting())
        reader = await run.client("reader", token_=token("bob", "operator", iss="id"), **lasting())
        assert (await reader.read()).payload == b"one"
        await silent(reader)


async def test_policy_is_asked_when_it_fires(tmp_path):
    """A delayed will is published with what its client may do by then; otherwise it is dropped."""
    async with running(folder=tmp_path) as run:
        await lost(run, await operator(run, **lasting(will=will(1))))
    reading_only = Policy([PolicyRule(role="operator", subscribe=("chat/#",))])
    with capture_logs() as logs:
        async with running(folder=tmp_path, policy=reading_only) as run:
            reader = await reader_of(run)
            await eventually(lambda: run.server.stats.wills)
            await silent(reader)
    (refused,) = [each for each in logs if each["event"] == "will_refused"]
    assert refused["reason"] == "not-authorized: publishing to 'chat/gone' is not allowed"


async def test_revocation_discards():
    """A revoked principal's wills are never published, those that wait neither."""
    async with running() as run:
        reader = await run.client("reader", token_=token("bob", "operator", iss="id"))
        reader.send(Subscribe(packet_id=1, subscriptions=(Subscription(topic_filter="chat/#", qos=1),)))
        await reader.read()
        await lost(run, await operator(run, "one", **lasting(will=will(1))))
        await operator(run, "two", **lasting(will=will()))
        run.server.disconnect(ANN)
        await silent(reader, 1.5)


async def test_will_of_311():
    """In 3.1.1 a will has no delay: it is published when the connection is lost, whatever becomes of the session."""
    async with running() as run:
        reader = await reader_of(run)
        options = {"version": Version.V311, "clean_start": False}
        await lost(run, await operator(run, will=will(qos=2), **options))
        got = await reader.read()
        assert (got.payload, got.qos) == (b"x", 2)


async def test_no_will_is_left_from_before():
    """A CONNECT without a will clears the one of the connection before."""
    async with running() as run:
        reader = await reader_of(run)
        await operator(run, **lasting(will=will(60)))
        again = await operator(run, **lasting())
        await lost(run, again)
        await silent(reader)
