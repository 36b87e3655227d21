"""The MQTT server with the real pipeline on a store in memory, which takes runs of publishes or, to compare, does not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import ingest_parts as parts
from mqtt_kit import Client, Running, publish, running

from gateway.ingest import Pipeline
from gateway.mqtt.codec import Packet, Pingreq, Pingresp, Publish

TOPIC = "devices/dev1/events/t"
ROOM = {"receive_maximum": 1000}


class Counting(Pipeline):
    """Counts the runs it took, and takes none where it shall not."""

    takes_runs = True
    runs = 0

    def submit_run(self, arrival, payloads, settle):
        is_taken = self.takes_runs and super().submit_run(arrival, payloads, settle)
        self.runs += is_taken
        return is_taken


class Gate(parts.FailingBus):
    """A bus that appends while its gate is open."""

    def __init__(self, inner, schedule=()) -> None:
        super().__init__(inner, schedule)
        self.gate = asyncio.Event()
        self.gate.set()

    async def append(self, batches):
        await self.gate.wait()
        return await super().append(batches)


class Site:
    """The server, its pipeline, its bus."""

    def __init__(self, run: Running, pipeline: Counting, bus: Gate) -> None:
        self.run, self.pipeline, self.bus = run, pipeline, bus

    async def numbers(self) -> list[object]:
        """Data of all events in the order of the bus; their ids must differ."""
        async with asyncio.timeout(20):
            await self.pipeline.drain()
        events = await parts.stored(self.bus.inner)
        assert len({event.id for event in events}) == len(events)
        return [event.data for event in events]


@asynccontextmanager
async def serving(
    *, takes_runs: bool = True, schedule: Sequence[object] = (), **options: object
) -> AsyncIterator[Site]:
    storage = await parts.memory()
    bus = Gate(storage.bus, schedule)
    pipeline = Counting(bus, parts.Keys(), audience=parts.AUDIENCE, open_keys=[parts.ENVELOPE_KEY], processes=1)
    pipeline.takes_runs = takes_runs
    await pipeline.start()
    try:
        async with running(ingest=pipeline, **{"limits": ROOM, "clock": time.time} | options) as run:
            try:
                yield Site(run, pipeline, bus)
            finally:
                bus.gate.set()
    finally:
        await pipeline.aclose()
        await storage.aclose()


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
