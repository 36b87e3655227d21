"""What the MQTT server's tests share: the ports' other side, written honestly and small, and a client of raw packets.

`FakeAuthenticator` and `FakeIngest` keep the contracts of `gateway.ports`; tokens are JSON, not JWT.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from mqtt_gates import StateGate

from edge_protocol.errors import TokenRejected
from gateway.mqtt.codec import Connect, Decoder, Packet, Properties, Publish, Version, encode
from gateway.mqtt.listeners import MqttServer
from gateway.mqtt.settings import ServerLimits, ServerSettings
from gateway.ports.identity import Credentials, Grant, Principal, PrincipalKind
from gateway.ports.ingest import STORED, Arrival, Receipt
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


class FakeIngest:
    """Takes arrivals; settles at once with `receipt`, or when the test says so (`receipt` None).

    Like the real one it authorizes types, wants envelopes where the role does, and breaks lanes.
    """

    def __init__(self, receipt: Receipt | None = STORED) -> None:
        self.receipt = receipt
        self.arrivals: list[Arrival] = []
        self.pending: list[tuple[Arrival, Callable[[Receipt], None]]] = []
        self.flushes = 0

    def submit(self, arrival: Arrival, settle: Callable[[Receipt], None]) -> None:
        self.arrivals.append(arrival)
        if arrival.permissions.require_envelope and arrival.payload[:1] != b"\xd0":
            settle(Receipt(0x87, "envelope-required: plain events are not accepted from this role"))
        elif self.receipt is None:
            self.pending.append((arrival, settle))
        else:
            self.settle_one(arrival, settle, self.receipt)

    def submit_run(self, arrival: Arrival, payloads: Sequence[bytes], settle: Callable[[Receipt], None]) -> bool:
        return False  # each shall come for itself

    def settle_one(self, arrival: Arrival, settle: Callable[[Receipt], None], receipt: Receipt) -> None:
        receipt = arrival.lane.broken or receipt
        if not receipt.is_final:
            arrival.lane.broken = receipt
        settle(receipt)

    def settle(self, index: int = 0, receipt: Receipt = STORED) -> None:
        arrival, settle = self.pending.pop(index)
        self.settle_one(arrival, settle, receipt)

    def flush(self) -> None:
        self.flushes += 1


class Running:
    """A started server and its parts."""

    def __init__(self, server: MqttServer, parts: dict[str, object], folder: Path | None) -> None:
        self.server = server
        self.authenticator: FakeAuthenticator = parts["authenticator"]
        self.ingest: FakeIngest = parts["ingest"]
        self.state: StateGate = parts["state"]
        self.clients: list[Client] = []
        self._folder = folder

    @property
    def port(self) -> int:
        return urlsplit(self.server.addresses[0]).port or 0

    def crashed(self) -> Path:
        """A copy of the store's files as a crash would leave them now."""
        return crashed(self._folder)

    async def client(self, client_id: str = "dev1", **options: object) -> Client:
        """Connect, and expect to be let in."""
        client = await self.raw(options.get("version", Version.V5))
        await client.connect(client_id, **options)
        assert client.connack.reason_code == 0, client.connack
        return client

    async def raw(self, version: Version = Version.V5) -> Client:
        self.clients.append(await Client.open(self.port, version=version))
        return self.clients[-1]


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
    *,
    folder: Path | None = None,
    storage: Storage | None = None,
    limits: Mapping[str, object] | None = None,
    known: Mapping[str, int] | None = None,
    **options: object,
) -> AsyncIterator[Running]:
    """Start a server on a free loopback port.

    Args:
        folder: Where its store is, in SQLite; None for a store in memory.
        storage: A store that is open and stays open, in place of one of its own.
        limits: Changed limits.
        known: How far streams are stored.
        options: Settings of the server, and its parts.
    """
    async with AsyncExitStack() as ends:
        if storage is None:
            storage = await ends.enter_async_context(stored(folder))
        yield await ends.enter_async_context(_serving(storage, folder, limits, known, options))


@asynccontextmanager
async def _serving(storage, folder, limits, known, options) -> AsyncIterator[Running]:
    parts = {
        "authenticator": options.pop("authenticator", None) or FakeAuthenticator(),
        "ingest": options.pop("ingest", None) or FakeIngest(),
        "state": StateGate(storage.state),
    }

    async def stored_through(_source: str, streams: Sequence[str]) -> Mapping[str, int]:
        return {stream: last for stream, last in (known or {}).items() if stream in streams}

    clock = options.pop("clock", time.time)
    stored_through = options.pop("stored_through", stored_through)
    cursors, announce = options.pop("cursors", None), options.pop("announce", None)
    settings = ServerSettings(
        **({"listen": ("mqtt://127.0.0.1:0",)} | options), limits=replace(ServerLimits(), **(limits or {}))
    )
    server = MqttServer(
        settings, **parts, stored_through=stored_through, clock=clock, cursors=cursors, announce=announce
    )
    await server.start()
    run = Running(server, parts, folder)
    try:
        yield run
    finally:
        for client in run.clients:
            await client.aclose()
        await server.aclose()


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
