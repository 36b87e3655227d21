"""Many TLS connections at once, each publishing once a minute: none is dropped, and none costs much memory.

The gateway is its own process, so that its resident memory is its own. 200 connections and a compressed minute by
default; under `make soak` 5,000 and real minutes, longer than the keep-alive of a client that would not publish.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from contextlib import aclosing

import psutil
import pytest
from open_gateway import open_gateway
from soak import SOAK

from gateway.cli.client import call
from gateway.config import load
from gateway.demo.stage import free_port
from gateway.mqtt.codec import Connack, Connect, Decoder, Puback, Publish, Version, encode

CONNECTIONS = 5000 if SOAK > 1 else 200
MINUTES = 3
MINUTE_S = 60.0 if SOAK > 1 else 0.4
FIRST = 40  # connected before memory is measured: what the process allocates once is not theirs
MAX_KIB = 60  # resident memory of a connection (issue 3)
AT_ONCE = 32  # handshakes


class Device(asyncio.Protocol):
    """A client that publishes at QoS 1."""

    def __init__(self, client_id: str, token: str) -> None:
        self.client_id, self.token = client_id, token
        self.is_lost = False
        self.acknowledged = 0
        self.admitted: asyncio.Future[Connack] = asyncio.get_running_loop().create_future()
        self._decoder = Decoder(role="client", version=Version.V5)

    def connection_made(self, transport):
        self.transport = transport
        self._send(
            Connect(
                version=Version.V5,
                client_id=self.client_id,
                user_name="",
                password=self.token.encode(),
                keep_alive_s=60,
            )
        )

    def data_received(self, data):
        for packet in self._decoder.feed(data):
            if isinstance(packet, Connack):
                self.admitted.set_result(packet)
            else:
                self.acknowledged += isinstance(packet, Puback) and packet.reason_code < 0x80

    def connection_lost(self, exc):
        self.is_lost = True

    def publish(self, minute):
        self._send(Publish(topic=f"many/{self.client_id}", payload=b"%d" % minute, qos=1, packet_id=minute + 1))

    def _send(self, packet):
        self.transport.write(encode(packet, Version.V5))


@pytest.fixture
def gateway(tmp_path):
    """A gateway that speaks TLS only; what it expects of a token is asked through its socket."""
    port = free_port()
    listen = f'["mqtts://127.0.0.1:{port}"]'
    with open_gateway(tmp_path / "gateway", MQTT__LISTEN=listen, AUTH__ANONYMOUS_ROLE='""') as gateway:
        gateway.port = port
        yield gateway


class Fleet(list[Device]):
    """Every device that has a socket."""

    def __init__(self, gateway, token):
        super().__init__()
        self._gateway, self._token = gateway, token
        self._context = ssl.create_default_context(cafile=gateway.folder / "certs" / "ca.pem")
        self._at_once = asyncio.Semaphore(AT_ONCE)

    async def connect(self, count):
        """So many more, each let in."""
        return await asyncio.gather(*(self._connect(f"device-{count}-{n}") for n in range(count)))

    async def _connect(self, client_id):
        async with self._at_once, asyncio.timeout(30):
            _, device = await asyncio.get_running_loop().create_connection(
                lambda: Device(client_id, self._token),
                "127.0.0.1",
                self._gateway.port,
                ssl=self._context,
                server_hostname="localhost",
            )
            self.append(device)
            assert (await device.admitted).reason_code == 0
            return device

    async def aclose(self):
        """Let all sockets go, and wait until they are gone."""
        for device in self:
            device.transport.abort()
        while not all(device.is_lost for device in self):  # noqa: ASYNC110 - told by nobody
            await asyncio.sleep(0.01)


async def publish(devices, minutes):
    """Each device once a minute, spread over it."""
    for minute in range(minutes):
        start = time.monotonic()
        for n, device in enumerate(devices):
            device.publish(minute)
            if n % 10 == 0:
                await asyncio.sleep(max(0.0, start + n / len(devices) * MINUTE_S - time.monotonic()))


async def acknowledged(devices):
    """Wait until every publish is."""
    async with asyncio.timeout(30):
        while any(device.acknowledged < MINUTES for device in devices):  # noqa: ASYNC110 - told by nobody
            await asyncio.sleep(0.05)


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_many_connections(gateway, record_property):
    """All are let in, every publish is acknowledged, none is dropped; a connection keeps at most 60 KiB resident."""
    settings = load(gateway.folder / "configs/gateway.toml", {})
    token = (await call(settings, "token_create", role="anybody", name=None, ttl_s=3600))["token"]
    process = psutil.Process(gateway.process_id)
    async with aclosing(Fleet(gateway, token)) as fleet:
        await publish(await fleet.connect(FIRST), 1)
        before, start = process.memory_info().rss, time.monotonic()
        devices = await fleet.connect(CONNECTIONS)
        assert len({device.client_id for device in fleet}) == FIRST + CONNECTIONS
        connected_s = time.monotonic() - start
        await publish(fleet, MINUTES)
        await acknowledged(fleet)
        kib_each = (process.memory_info().rss - before) / len(devices) / 1024
        record_property("kib_each", kib_each)
        print(f"{len(devices)} connections in {connected_s:.1f} s, {kib_each:.1f} KiB each")  # noqa: T201 - the measure
        assert not [device.client_id for device in fleet if device.is_lost]
        assert kib_each <= MAX_KIB
