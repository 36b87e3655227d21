"""Bursts of publishes that are alike, and what answers them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mqtt_kit import Client, Running, publish, running

from gateway.mqtt.codec import Packet, Pingreq, Pingresp, Publish

TOPIC = "devices/dev1/events/t"
ROOM = {"receive_maximum": 1000}


async def numbers(run: Running) -> list[object]:
    """Data of all events in the order of the bus; their ids must differ."""
    async with asyncio.timeout(20):
        await run.pipeline.drain()
    events = await run.events()
    assert len({event.id for event in events}) == len(events)
    return [event.data for event in events]


@asynccontextmanager
async def serving(**options: object) -> AsyncIterator[Running]:
    """A server with room for a burst."""
    async with running(**{"limits": ROOM} | options) as run:
        yield run


def burst(count: int, qos: int = 1, topic: str = TOPIC, first: int = 1, **options: object) -> list[Publish]:
    """Publishes of numbers; the identifier is the number."""
    return [
        publish(topic, b"%d" % n, qos=qos, packet_id=n if qos else 0, **options) for n in range(first, first + count)
    ]


async def answers(client: Client) -> list[Packet]:
    """All that comes up to the answer to a PINGREQ, or to the end."""
    client.send(Pingreq())
    found: list[Packet] = []
    while (packet := await client.read(20)) is not None and packet != Pingresp():
        found.append(packet)
    return found


async def acknowledged(client: Client, count: int) -> list[Packet]:
    """So many answers, and that nothing comes behind them."""
    found = [await client.read(20) for _ in range(count)]
    assert await answers(client) == []
    return found
