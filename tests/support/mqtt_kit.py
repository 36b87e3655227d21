"""The MQTT server for tests: with the real store, ingest and authenticator behind it, and a client of raw packets.

Every part is the gateway's own, behind a gate (`gates`) that a test may close. What the service adds and this does
not: handlers, the live tail of the bus; cursors of the bus and presence are there where a test asks for them.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ingest_parts as parts
from gates import AuthenticatorGate, BusGate, IngestGate, StateGate
from mqtt_tokens import AUDIENCE, ISSUER, key_of, token

from edge_protocol.event import Event
from edge_protocol.payload import Limits
from gateway.devices import AuthSettings, GatewayAuthenticator, Registry
from gateway.ingest import Pipeline
from gateway.mqtt.codec import Connect, Decoder, Packet, Properties, Publish, Version, encode
from gateway.mqtt.listeners import MqttServer
from gateway.mqtt.settings import ServerLimits, ServerSettings
from gateway.operations.events import append_events
from gateway.ports.cursors import Cursors
from gateway.rules.policy import Policy, PolicyRule
from gateway.storage import Storage, open_storage

POLICY = Policy(
    [
        PolicyRule(
            role="simple-device",
            publish=("devices/{device}/events/#", "devices/{device}/state", "devices/{device}/commands/+/response"),
            subscribe=("devices/{device}/commands/+", "devices/{device}/config", "gateway/keys"),
            require_envelope=False,
        ),
        PolicyRule(
            role="device",
            publish=("devices/{device}/events/#", "devices/{device}/state"),
            subscribe=("devices/{device}/commands/+", "gateway/keys"),
        ),
        PolicyRule(role="operator", subscribe=("devices/+/events/#", "devices/+/state", "chat/#"), publish=("chat/#",)),
        PolicyRule(
            role="service",
            publish=("devices/+/commands/+",),
            subscribe=("devices/+/events/#", "devices/+/commands/+/response"),
        ),
    ]
)


DEVICES = tuple(f"dev{n}" for n in range(1, 6))
"""Registered as `simple-device` in every server that has this role."""


class Running:
    """A started server and its parts, connected as `gateway.service` does it."""

    def __init__(
        self,
        storage: Storage,
        folder: Path | None,
        *,
        policy: Policy = POLICY,
        clock: Callable[[], float] = time.time,
        anonymous_role: str = "",
        replay_protection: bool = False,
        is_announcing: bool = False,
        cursors: Cursors | None = None,
        limits: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.clients: list[Client] = []
        self.policy, self._clock, self._folder = policy, clock, folder
        self.state, self.bus = StateGate(storage.state), BusGate(storage.bus)
        self.registry = Registry(self.state, policy, clock=clock)
        auth = AuthSettings(audience=AUDIENCE, anonymous_role=anonymous_role, replay_protection=replay_protection)
        self._authenticator = GatewayAuthenticator(
            self.registry, policy, self.state, auth, issuers=[ISSUER], clock=clock
        )
        self.authenticator = AuthenticatorGate(self._authenticator)
        self.pipeline = Pipeline(
            self.bus, self.registry, audience=AUDIENCE, open_keys=[parts.ENVELOPE_KEY], processes=1
        )
        self.ingest = IngestGate(self.pipeline)
        self.server = MqttServer(
            ServerSettings(
                **({"listen": ("mqtt://127.0.0.1:0",)} | options), limits=replace(ServerLimits(), **(limits or {}))
            ),
            authenticator=self.authenticator,
            ingest=self.ingest,
            state=self.state,
            stored_through=self.bus.stored_through,
            clock=clock,
            cursors=cursors,
            announce=self._announce if is_announcing else None,
        )
        self._authenticator.on_revoked = lambda principal, reason: self.server.disconnect(principal, reason=reason)
        self._authenticator.revoked.on_revoked = self.server.disconnect_token

    async def start(self, ends: AsyncExitStack) -> None:
        """Start all, and end it in the opposite order."""
        await self.pipeline.start()
        ends.push_async_callback(self.pipeline.aclose)
        ends.callback(self.bus.is_open.set)
        await self._authenticator.revoked.load()
        watching = [asyncio.create_task(each.run()) for each in (self.registry, self._authenticator.revoked)]
        ends.push_async_callback(_cancelled, watching)
        if "simple-device" in self.policy.roles:
            await self.register(*DEVICES)
        await self.server.start()
        ends.push_async_callback(self.server.aclose)
        ends.push_async_callback(self._leave)

    async def _leave(self) -> None:
        for client in self.clients:
            await client.aclose()

    async def _announce(self, events: Sequence[Event]) -> None:
        await append_events(self.bus, events, limits=Limits(), now_s=self._clock())

    @property
    def port(self) -> int:
        return urlsplit(self.server.addresses[0]).port or 0

    def crashed(self) -> Path:
        """A copy of the store's files as a crash would leave them now."""
        return crashed(self._folder)

    async def events(self) -> list[Event]:
        """All events on the bus, in its order."""
        return await parts.stored(self.bus)

    async def types(self) -> list[str]:
        """Their types."""
        return [event.type for event in await self.events()]

    async def register(self, *devices: str, role: str = "simple-device") -> None:
        """Make devices known that are not; one that is known has this role."""
        for device in devices:
            record = await self.registry.find(device)
            if record is None:
                await self.registry.add(device, key_of(device).public, role=role)
            else:
                assert record.document.role == role, f"{device} is {record.document.role}"

    async def client(self, client_id: str = "dev1", **options: Any) -> Client:
        """Connect, and expect to be let in; a device is registered in its role before."""
        if "token_" not in options and "iss" not in options.get("claims", {}):
            await self.register(client_id, role=options.get("role", "simple-device"))
        client = await self.raw(options.get("version", Version.V5))
        await client.connect(client_id, **options)
        assert client.connack.reason_code == 0, client.connack
        return client

    async def raw(self, version: Version = Version.V5) -> Client:
        self.clients.append(await Client.open(self.port, version=version))
        return self.clients[-1]


async def _cancelled(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(each is None or isinstance(each, asyncio.CancelledError) for each in ended), ended


def crashed(folder: Path) -> Path:
    """Copy a store's files as they are: what a crash would leave."""
    copy = folder.with_name(f"{folder.name}-crashed")
    shutil.copytree(folder, copy)
    return copy


@asynccontextmanager
async def stored(folder: Path | None = None) -> AsyncIterator[Storage]:
    """Open a store: SQLite's in a folder, or one in memory."""
    url = f"sqlite:///{folder}/bus.db" if folder else "memory://"
    storage = await open_storage(url, min_free_disk_bytes=0)
    try:
        yield storage
    finally:
        await storage.aclose()


@asynccontextmanager
async def running(
    *, folder: Path | None = None, storage: Storage | None = None, **options: Any
) -> AsyncIterator[Running]:
    """Start a server on a free loopback port, with a registry, an authenticator and ingest of its own.

    Args:
        folder: Where its store is, in SQLite; None for a store in memory.
        storage: A store that is open and stays open, in place of one of its own.
        options: The other arguments of `Running`, and settings of the server.
    """
    async with AsyncExitStack() as ends:
        if storage is None:
            storage = await ends.enter_async_context(stored(folder))
        run = Running(storage, folder, **options)
        await run.start(ends)
        yield run


class Client:
    """Writes and reads single packets over a real socket, through the codec's client side."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, version: Version) -> None:
        self.reader, self.writer, self.version = reader, writer, version
        self.decoder = Decoder(role="client", version=version)
        self.packets: list[Packet] = []
        self.connack: Packet | None = None

    @classmethod
    async def open(cls, port: int, version: Version = Version.V5, **options: object) -> Client:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, **options)
        return cls(reader, writer, version)

    async def connect(self, client_id: str = "dev1", *, token_: bytes | None = None, **options: object) -> Packet:
        self.send(connect(client_id, token_=token_, **({"version": self.version} | options)))
        self.connack = await self.read()
        return self.connack

    def send(self, *packets: Packet) -> None:
        self.writer.write(b"".join(encode(packet, self.version) for packet in packets))

    async def read(self, timeout_s: float = 5) -> Packet | None:
        """The next packet; None once the server has closed."""
        async with asyncio.timeout(timeout_s):
            while not self.packets:
                data = await self.reader.read(65536)
                if not data:
                    return None
                self.packets += self.decoder.feed(data)
        return self.packets.pop(0)

    async def ended(self, timeout_s: float = 5) -> list[Packet]:
        """All packets up to the end of the connection."""
        found = []
        try:
            while (packet := await self.read(timeout_s)) is not None:
                found.append(packet)
        except ConnectionResetError:
            found.append(None)
        return found

    async def publish(self, topic: str, payload: bytes = b"{}", **options: object) -> Packet | None:
        """Publish at QoS 1 and read the answer."""
        self.send(publish(topic, payload, **options))
        return await self.read()

    async def aclose(self) -> None:
        self.writer.close()
        with suppress(OSError):
            await self.writer.wait_closed()


def connect(client_id: str = "dev1", *, token_: bytes | None = None, **options: object) -> Connect:
    role = options.pop("role", "simple-device")
    claims = options.pop("claims", {})
    names = {"user_name": "", "password": token(client_id, role, **claims) if token_ is None else token_}
    if "properties" in options and options["properties"].authentication_method:
        names = {}
    return Connect(**({"version": Version.V5, "client_id": client_id} | names | options))


def publish(topic: str, payload: bytes = b"{}", **options: object) -> Publish:
    return Publish(**({"topic": topic, "payload": payload, "qos": 1, "packet_id": 1} | options))


def properties(**values: object) -> Properties:
    return Properties(**values)


async def eventually(condition: Callable[[], object], timeout_s: float = 5) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - any condition, told by nobody
            await asyncio.sleep(0.005)


async def becomes(read: Callable[[], Awaitable[object]], wanted: object, timeout_s: float = 5) -> None:
    """Wait until what is read is what is wanted."""
    async with asyncio.timeout(timeout_s):
        while await read() != wanted:  # noqa: ASYNC110 - likewise
            await asyncio.sleep(0.005)
