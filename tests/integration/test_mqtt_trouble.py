"""What breaks inside, and what is written down about it: one connection's trouble is its own, logs hold no secrets."""

import time

import structlog
from mqtt_kit import connect, properties, publish, running, token

from gateway.errors import BusUnavailable
from gateway.mqtt.codec import Auth, Puback, ReasonCode, Will

SECRET = "s3cr3t-7f41"


def later(device):
    """A token that expires later than those that connected."""
    return token(device, exp=time.time() + 7200)


async def test_registry_unavailable():
    """A token that cannot be decided on is answered with 0x88 and `retry-after`, at CONNECT; a renewal with 0x83."""
    async with running(replay_protection=True) as run:
        live = await run.client("dev2")
        run.state.failure = BusUnavailable("disk")
        client = await run.raw()
        refused = await client.connect()
        assert refused.reason_code == ReasonCode.SERVER_UNAVAILABLE
        names = [name for name, _ in refused.properties.user_properties]
        assert names == ["server-time", "retry-after"]
        live.send(publish("devices/dev2/token", later("dev2")))
        (last,) = await live.ended()
        assert last.reason_code == ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR
        assert last.properties.user_properties[0][0] == "retry-after"


async def test_a_bug_while_deciding():
    """An unexpected failure of the registry ends that connection with 0x80, is logged, and leaks nothing."""
    async with running(replay_protection=True) as run:
        live = await run.client("dev2")
        method = properties(authentication_method="jwt", authentication_data=token("dev3"))
        extended = await run.client("dev3", properties=method)
        run.state.failure = RuntimeError("a bug")
        with structlog.testing.capture_logs() as logs:
            client = await run.raw()
            assert (await client.connect()).reason_code == ReasonCode.UNSPECIFIED_ERROR
            live.send(publish("devices/dev2/token", later("dev2")))
            assert (await live.ended())[-1].reason_code == ReasonCode.UNSPECIFIED_ERROR
            fresh = properties(authentication_method="jwt", authentication_data=later("dev3"))
            extended.send(Auth(reason_code=ReasonCode.RE_AUTHENTICATE, properties=fresh))
            assert [packet.reason_code for packet in await extended.ended()] == [ReasonCode.UNSPECIFIED_ERROR]
        failed = [entry["task"] for entry in logs if entry["event"] == "mqtt_task_failed"]
        assert failed == ["connect", "renew", "renew"]
        assert run.server._hub.budget.used_bytes == 0


async def test_a_bug_while_publishing():
    """An unexpected failure of ingest ends that connection with 0x80; others go on, and no budget is lost."""
    async with running() as run:
        other, client = await run.client("dev2"), await run.client("dev1")
        run.ingest.failure = RuntimeError("a bug")
        client.send(publish("devices/dev1/events/x"))
        assert [packet.reason_code for packet in await client.ended()][-1] == ReasonCode.UNSPECIFIED_ERROR
        run.ingest.failure = None
        assert await other.publish("devices/dev2/events/x") == Puback(packet_id=1)
        assert run.server._hub.budget.used_bytes == 0


async def test_logs_name_events_and_no_secrets():
    """Connecting, refusing and leaving are logged by fixed names; no token and no payload ever is."""
    async with running() as run:
        with structlog.testing.capture_logs() as logs:
            will = Will(topic="devices/dev2/events/x", payload=SECRET.encode())
            for options in ({"token_": SECRET.encode()}, {"will": will}):
                client = await run.raw()
                await client.connect(**options)
            client = await run.client(claims={"jti": SECRET})
            for topic in ("devices/dev1/events/x", "devices/dev2/events/x", "devices/dev1/state", "devices/dev1/y"):
                await client.publish(topic, SECRET.encode())
            client.send(publish("devices/dev1/token", SECRET.encode()))
            await client.ended()
            again = await run.client()
            again.send(connect(token_=SECRET.encode()))
            await again.ended()
    assert SECRET not in repr(logs)
    events = {entry["event"] for entry in logs}
    assert events == {
        "token_refused",
        "renewal_refused",
        "connected",
        "connect_refused",
        "publish_refused",
        "disconnected",
    }
    refused = [(entry["code"], entry["rule"]) for entry in logs if entry["event"] == "publish_refused"]
    assert refused == [("0x87", "not-authorized"), ("0x99", "bad-state"), ("0x90", "topic")]
