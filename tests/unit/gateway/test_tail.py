"""The live tail: events as they are stored, to those who listen; nothing that comes from the bus ends it."""

import asyncio

import structlog
from batches import plain_batch

from edge_protocol.topics import TopicFilter
from gateway.mqtt.router import Router, Subscribed
from gateway.storage import open_storage
from gateway.tail import show_events


class Listener:
    """Fails at the first message, takes the others."""

    def __init__(self):
        self.offered = []

    def offer(self, message, qos, identifiers, *, retain):
        self.offered.append(message.topic)
        if len(self.offered) == 1:
            raise RuntimeError("a bug")
        return True


async def test_what_breaks_one_batch_does_not_end_the_tail():
    """A subscriber that fails is logged; what is stored afterwards is shown as before."""
    storage = await open_storage("memory://")
    router, listener = Router(), Listener()
    router.subscribe(TopicFilter("devices/#"), listener, Subscribed())
    with structlog.testing.capture_logs() as logs:
        task = asyncio.create_task(show_events(storage.bus, router))
        await asyncio.sleep(0)
        async with asyncio.timeout(10):
            for number in range(1000):
                await storage.bus.append([plain_batch(f"e{number}")])
                await asyncio.sleep(0.02)
                if len(listener.offered) > 1:
                    break
        task.cancel()
        await asyncio.wait([task])
    await storage.aclose()
    assert [each["event"] for each in logs] == ["live_tail_failed"]
