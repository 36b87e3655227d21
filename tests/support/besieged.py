"""A real gateway process for hostile tests: plain and TLS listeners, devices whose keys the test holds, a look inside."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from fleet import Device, register, stored_events
from mqtt_kit import Client
from system import System

from gateway.cli.client import call
from gateway.config import Settings, load
from gateway.demo.stage import free_port
from gateway.mqtt.codec import Connect, Packet, Puback, Publish, Version

CONNECT_TIMEOUT_S = 1.0  # instead of 5: what is slow is cut off sooner, and the tests end sooner
POLICY = """
[[policy]]
role = "narrow"
publish = ["devices/{device}/events/cart/#"]
"""


@dataclass(frozen=True)
class Site:
    """The gateway, and who may talk to it."""

    system: System
    settings: Settings
    plain_port: int
    devices: Mapping[str, Device]

    @property
    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.system.folder / "certs" / "ca.pem"))

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(self.system.running["gateway"].pid)

    async def open(self, *, version: Version = Version.V5, tls: bool = False) -> Client:
        """A connection on which nothing has been said."""
        if tls:
            port = self.system.mqtt_port
            return await Client.open(port, version, ssl=self.tls, server_hostname="localhost")
        return await Client.open(self.plain_port, version)

    @asynccontextmanager
    async def client(
        self, device: str = "plain1", *, version: Version = Version.V5, tls: bool = False, **connect: Any
    ) -> AsyncIterator[Client]:
        """A client that was let in."""
        client = await self.open(version=version, tls=tls)
        client.send(self.connect(device, version, **connect))
        client.connack = await client.read()
        assert client.connack is not None, "closed instead of CONNACK"
        assert client.connack.reason_code == 0, client.connack
        try:
            yield client
        finally:
            await client.aclose()

    def connect(self, device: str = "plain1", version: Version = Version.V5, **changes: Any) -> Connect:
        names = {"client_id": device, "user_name": "", "password": self.devices[device].token()}
        return Connect(version=version, **(names | changes))

    async def is_served(self, device: str = "good1", *, tls: bool = False) -> None:
        """A well-behaved client connects, publishes, and has its acknowledgement, all within a second."""
        async with asyncio.timeout(1.0), self.client(device, tls=tls) as client:
            topic = f"{self.devices[device].events_topic}/fine"
            client.send(Publish(topic=topic, payload=b"1", qos=1, packet_id=1))
            assert await client.read() == Puback(packet_id=1)

    async def events(self) -> list[dict[str, Any]]:
        return await stored_events(self.settings)

    async def call(self, operation: str, **arguments: Any) -> Any:
        return await call(self.settings, operation, **arguments)

    def metrics(self) -> dict[str, float]:
        """`/metrics`, samples without labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.system.http_port}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return {name: float(value) for name, _, value in (line.partition(" ") for line in lines) if name.isidentifier()}

    def check_log(self) -> None:
        """Nothing that nobody foresaw was logged."""
        log = self.system.log("gateway")
        alarm = re.search(r"Traceback|exception|never retrieved|connection_failed|\"level\": ?\"error\"", log)
        assert alarm is None, log[max(0, alarm.start() - 500) : alarm.start() + 3000]


@contextmanager
def besieged(folder: Path, roles: Mapping[str, str], **environ: str) -> Iterator[Site]:
    """Serve; at the end the gateway must go with exit code 0, and its log show nothing that nobody foresaw."""
    system = System(folder)
    system.init_gateway()
    with (folder / "configs" / "gateway.toml").open("a") as config:
        config.write(POLICY)
    plain_port = free_port()
    listen = [f"mqtts://127.0.0.1:{system.mqtt_port}", f"mqtt://127.0.0.1:{plain_port}"]
    system.environ |= {
        "LOCKGATE_MQTT__LISTEN": json.dumps(listen),
        "LOCKGATE_LIMITS__CONNECT_TIMEOUT": f"{CONNECT_TIMEOUT_S:.0f}s",
        "LOCKGATE_BUS__MIN_FREE_DISK": "1",
        **{f"LOCKGATE_{name}": value for name, value in environ.items()},
    }
    settings = load(folder / "configs" / "gateway.toml", system.environ)
    devices = asyncio.run(register(settings, {"good1": "simple-device", **roles}))
    site = Site(system, settings, plain_port, devices)
    try:
        system.start_gateway()
        yield site
        assert system.terminate("gateway") == 0
        site.check_log()
    finally:
        system.stop()


def properties_of(packet: Packet | None) -> dict[str, str]:
    """User properties of an answer."""
    assert packet is not None
    return dict(packet.properties.user_properties)
