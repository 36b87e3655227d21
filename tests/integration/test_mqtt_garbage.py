"""A connection that has ended leaves memory at once: what TLS allocates for it is not the collector's to count."""

import gc

import pytest
from certified import Authority, served, trusting
from mqtt_kit import Client, connect, eventually, publish, running
from raw_websocket import RawWebSocket

from gateway.mqtt.codec import Disconnect, Puback, Publish
from gateway.mqtt.connection import Connection

EVENT = "devices/dev1/events/x"


@pytest.fixture
def _no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def connections():
    return [each for each in gc.get_objects() if isinstance(each, Connection)]


async def goodbye(client):
    client.send(Disconnect())


async def lost(client):
    client.writer.transport.abort()


async def sent_off(client):
    client.send(Publish(topic=EVENT, payload=b"{}", qos=1, packet_id=1), connect("dev1"))


async def refused(client):
    client.send(publish("devices/dev2/events/x"), publish(EVENT, b"x" * 100_000, packet_id=2))
    await client.read()
    client.writer.transport.abort()


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("how", [goodbye, lost, sent_off, refused])
@pytest.mark.parametrize("transport", ["tcp", "tls", "ws"])
async def test_nothing_waits_for_the_collector(tmp_path, transport, how):
    """However a connection ends, over whatever transport, nothing holds it afterwards, not even itself."""
    authority = Authority(tmp_path)
    others = connections()  # of earlier tests that failed: their tracebacks hold them

    def mine():
        return [each for each in connections() if each not in others]

    options = {"tcp": {}, "tls": served(authority), "ws": {"listen": ("ws://localhost:0/mqtt",)}}[transport]
    async with running(**options) as run:
        for _ in range(3):
            if transport == "ws":
                client = await RawWebSocket.open(run.port)
            else:
                secure = {"ssl": trusting(authority), "server_hostname": "localhost"} if transport == "tls" else {}
                client = await Client.open(run.port, **secure)
            await client.connect("dev1")
            client.send(publish(EVENT))
            assert isinstance(await client.read(), Puback)
            assert len(mine()) == 1
            await how(client)
            await eventually(lambda: not mine())
            await client.aclose()
