"""Mutated packet streams over a real socket: nothing leaks, nothing is logged as a failure, good clients are served."""

import asyncio
import gc
import random
import time

import psutil
import pytest
import structlog
from mqtt_kit import connect, eventually, publish, running, token
from soak import SOAK

from gateway.mqtt.codec import (
    Auth,
    Disconnect,
    Pingreq,
    Properties,
    Puback,
    Pubrel,
    ReasonCode,
    Subscribe,
    Subscription,
    Unsubscribe,
    Version,
    Will,
    encode,
)

STREAMS = 300 * SOAK


def stream(source, version):
    """A legal CONNECT and some legal packets, as bytes."""
    will = Will(topic="devices/dev1/events/gone", payload=b"{}") if source.random() < 0.3 else None
    packets = [connect(version=version, will=will, keep_alive_s=source.choice([0, 60]))]
    choices = [
        publish("devices/dev1/events/x", b"{}"),
        publish("devices/dev1/state", b'{"a":1}', packet_id=7),
        publish("devices/dev1/token", token("dev1"), packet_id=8),
        publish("devices/dev1/events/x", qos=0, packet_id=0),
        Subscribe(packet_id=3, subscriptions=(Subscription(topic_filter="devices/dev1/commands/+", qos=1),)),
        Unsubscribe(packet_id=4, topic_filters=("devices/dev1/commands/+",)),
        Puback(packet_id=9),
        Pubrel(packet_id=9),
        Pingreq(),
        Disconnect(),
    ]
    if version is Version.V5:
        choices.append(
            publish("devices/dev1/events/x", properties=Properties(topic_alias=3, user_properties=(("a", "b"),)))
        )
        choices.append(Auth(reason_code=ReasonCode.RE_AUTHENTICATE, properties=Properties(authentication_method="jwt")))
    packets += source.choices(choices, k=source.randrange(6))
    return b"".join(encode(packet, version) for packet in packets)


def mutated(source, data):
    data = bytearray(data)
    for _ in range(source.choice([0, 1, 1, 2, 8])):
        at = source.randrange(len(data))
        match source.randrange(4):
            case 0:
                data[at] ^= 1 << source.randrange(8)
            case 1:
                del data[at : at + source.randrange(1, 9)]
            case 2:
                data[at:at] = source.randbytes(source.randrange(1, 9))
            case _:
                data[at] = source.choice([0, 0x7F, 0x80, 0xFF])
        if not data:
            return b"\0"
    return bytes(data)


async def attack(run, source):
    client = await run.raw()
    data = mutated(source, stream(source, source.choice(list(Version))))
    cut = source.randrange(len(data))
    client.writer.write(data[:cut])
    await asyncio.sleep(0)
    client.writer.write(data[cut:])
    if source.random() < 0.5:
        await asyncio.sleep(0.002)
    run.clients.remove(client)
    await client.aclose()


@pytest.mark.soak
@pytest.mark.timeout(3600)
async def test_mutated_streams():
    """After many broken streams memory is as before, no socket or task is left, and good clients were served throughout."""
    source, process = random.Random(11), psutil.Process()
    with structlog.testing.capture_logs() as logs:
        async with running() as run:
            for n in range(STREAMS):
                await attack(run, source)
                if n == STREAMS // 3:
                    gc.collect()
                    resident, tasks, files = process.memory_info().rss, len(asyncio.all_tasks()), process.num_fds()
                if n % 50 == 0:
                    started = time.monotonic()
                    good = await run.client("good")
                    assert (await good.publish("devices/good/events/x")).reason_code == 0
                    assert time.monotonic() - started < 1
                    await good.aclose()
                    run.clients.remove(good)
                    run.ingest.arrivals.clear()
                    logs[:] = [entry for entry in logs if entry["log_level"] == "error"]
            await eventually(lambda: not run.server._hub.sockets)
            gc.collect()
            assert run.server.stats.connections == 0
            assert len(asyncio.all_tasks()) <= tasks
            assert process.num_fds() <= files
            assert process.memory_info().rss <= resident * 1.05 + (4 << 20)
            assert run.server._hub.budget.used_bytes == 0
            assert run.server._hub.clients._by_principal == {}
            assert run.server.router._trie._root.children == {}
    assert [entry for entry in logs if entry["log_level"] == "error"] == []
