"""What the MQTT server's tests share: the ports' other side, written honestly and small, and a client of raw packets.

`FakeAuthenticator` keeps the contract of `gateway.ports`; tokens are JSON, not JWT.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ingest_parts as parts
from mqtt_gates import BusGate, IngestGate, StateGate

from edge_protocol.errors import TokenRejected
from edge_protocol.event import Event
from edge_protocol.keys import SigningKey, new_signing_key
from edge_protocol.payload import Limits
from gateway.devices import Registry
from gateway.ingest import Pipeline
from gateway.mqtt.codec import Connect, Decoder, Packet, Properties, Publish, Version, encode
from gateway.mqtt.listeners import MqttServer
from gateway.mqtt.settings import ServerLimits, ServerSettings
from gateway.operations.events import append_events
from gateway.ports.identity import Credentials, Grant, Principal, PrincipalKind
from gateway.rules.policy import Permissions, Policy, PolicyRule
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


@cache
def key_of(device: str) -> SigningKey:
    """The signing key of a device."""
    return new_signing_key()


def sealed(*events: bytes, device: str = "dev1", **changes: Any) -> bytes:
    """An envelope around events, by a device of this kit."""
    return parts.sealed(*events, device=device, **({"key": key_of(device), "issued_at": int(time.time())} | changes))


def token(sub: str, role: str = "simple-device", **claims: object) -> bytes:
    return json.dumps({"sub": sub, "role": role, "exp": time.time() + 3600} | claims).encode()


class FakeAuthenticator:
    """Believes every token that is not expired; `delay` lets a test hold a decision back."""

    def __init__(self, policy: Policy = POLICY, anonymous_role: str = "") -> None:
        self.policy = policy
        self.anonymous_role = anonymous_role
        self.gate: asyncio.Event | None = None
        self.calls = 0
        self.epoch = 0
        self.revoked: set[tuple[str, str]] = set()

    async def authenticate(self, credentials: Credentials) -> Grant:
        self.calls += 1
        if self.gate:
            await self.gate.wait()
        if credentials.token is None:
            if not (self.anonymous_role and credentials.is_loopback):
                raise TokenRejected("no-token", "expected a token as password")
            principal = Principal(PrincipalKind.ANONYMOUS, "", "anonymous")
            return self._grant(principal, self.anonymous_role, float("inf"))
        return self._read(credentials.token)

    async def renew(self, grant: Grant, token: bytes) -> Grant:
        if self.gate:
            await self.gate.wait()
        fresh = self._read(token)
        if fresh.principal != grant.principal:
            raise TokenRejected("wrong-principal", "expected a token of the same principal")
        return fresh if fresh.expires_at_s > grant.expires_at_s else grant

    async def is_known(self, principal: Principal, epoch: int) -> bool:
        return principal.device is None or epoch == self.epoch

    def is_revoked(self, principal: Principal, jti: str) -> bool:
        return (principal.issuer, jti) in self.revoked

    async def permissions_of(self, principal: Principal, roles: Sequence[str], epoch: int) -> Permissions:
        return self.policy.permissions(roles, principal.device)

    def _read(self, token: bytes) -> Grant:
        try:
            claims = json.loads(token)
            sub, role, exp, issuer = str(claims["sub"]), claims["role"], float(claims["exp"]), claims.get("iss", "")
            kind = PrincipalKind.CLIENT if issuer else PrincipalKind.DEVICE
            grant = self._grant(Principal(kind, issuer, sub), role, exp, claims.get("jti"))
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise TokenRejected("bad-token", "the token does not prove a known device") from exc
        if exp <= time.time():
            raise TokenRejected("expired", "the token has expired")
        return grant

    def _grant(self, principal: Principal, role: str, expires_at_s: float, jti: str | None = None) -> Grant:
        permissions = self.policy.permissions([role], principal.device)
        return Grant(
            principal=principal,
            permissions=permissions,
            expires_at_s=expires_at_s,
            jti=jti,
            epoch=self.epoch,
            roles=(role,),
        )


class Running:
    """A started server and its parts."""

    def __init__(self, storage: Storage, folder: Path | None, options: dict[str, Any]) -> None:
        self.clients: list[Client] = []
        self.state, self.bus = StateGate(storage.state), BusGate(storage.bus)
        clock = options.pop("clock", time.time)
        self.authenticator: FakeAuthenticator = options.pop("authenticator", None) or FakeAuthenticator()
        self.registry = Registry(self.state, POLICY, clock=clock)
        self.pipeline = Pipeline(
            self.bus, self.registry, audience=parts.AUDIENCE, open_keys=[parts.ENVELOPE_KEY], processes=1
        )
        self.ingest = IngestGate(self.pipeline)
        self._folder = folder
        announce = self._announce if options.pop("is_announcing", False) else None
        cursors, limits = options.pop("cursors", None), replace(ServerLimits(), **options.pop("limits", {}))
        self.server = MqttServer(
            ServerSettings(**({"listen": ("mqtt://127.0.0.1:0",)} | options), limits=limits),
            authenticator=self.authenticator,
            ingest=self.ingest,
            state=self.state,
            stored_through=self.bus.stored_through,
            clock=clock,
            cursors=cursors,
            announce=announce,
        )

    async def _announce(self, events: Sequence[Event]) -> None:
        await append_events(self.bus, events, limits=Limits(), now_s=time.time())

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
        """Make devices known that are not."""
        for device in devices:
            if await self.registry.find(device) is None:
                await self.registry.add(device, key_of(device).public, role=role)
            await self.registry.find(device)

    async def client(self, client_id: str = "dev1", **options: object) -> Client:
        """Connect, and expect to be let in."""
        client = await self.raw(options.get("version", Version.V5))
        await client.connect(client_id, **options)
        assert client.connack.reason_code == 0, client.connack
        return client

    async def raw(self, version: Version = Version.V5) -> Client:
        self.clients.append(await Client.open(self.port, version=version))
        return self.clients[-1]

    async def leave(self) -> None:
        """All clients go."""
        for client in self.clients:
            await client.aclose()


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
    """Start a server on a free loopback port, with a store and ingest of its own; `DEVICES` are registered.

    Args:
        folder: Where its store is, in SQLite; None for a store in memory.
        storage: A store that is open and stays open, in place of one of its own.
        options: Settings of the server; `limits` that differ; `is_announcing`: it tells the bus who is there.
    """
    async with AsyncExitStack() as ends:
        if storage is None:
            storage = await ends.enter_async_context(stored(folder))
        run = Running(storage, folder, options)
        await run.pipeline.start()
        ends.push_async_callback(run.pipeline.aclose)
        ends.callback(run.bus.is_open.set)
        await run.register(*DEVICES)
        await run.server.start()
        ends.push_async_callback(run.server.aclose)
        ends.push_async_callback(run.leave)
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
