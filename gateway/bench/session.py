"""One device's connection until it may send: CONNECT, the gateway's keys, where its stream stands."""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import dataclass
from typing import Final

from edge_protocol.envelope_keys import SealKey, Suite
from edge_protocol.errors import KeyInvalid, KeySetRejected
from edge_protocol.key_set import verify_key_set
from edge_protocol.keys import verify_key_from_jwk
from edge_protocol.topics import KEYS_TOPIC
from gateway.bench.fleet import BenchDevice
from gateway.bench.load import BenchFailed, Load, Target
from gateway.bench.packets import Stream, stream_of
from gateway.mqtt.codec import (
    EMPTY,
    CodecError,
    Connack,
    Connect,
    Decoder,
    Disconnect,
    Packet,
    Properties,
    Publish,
    Subscribe,
    Subscription,
    Version,
    encode,
)

ANSWER_S: Final = 30.0
KEEP_ALIVE_S: Final = 65_000
"""The longest there is: a run must not need pings."""


class _Inbox(asyncio.Protocol):
    """What the server said."""

    def __init__(self, version: Version) -> None:
        self.packets: asyncio.Queue[Packet | None] = asyncio.Queue()
        self._decoder = Decoder(role="client", version=version)

    def data_received(self, data: bytes) -> None:
        try:
            for packet in self._decoder.feed(data):
                self.packets.put_nowait(packet)
        except CodecError:
            self.packets.put_nowait(None)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # the protocol's signature
        self.packets.put_nowait(None)


@dataclass(frozen=True)
class Session:
    """A connection that was let in.

    Attributes:
        transport: Its socket.
        device: Who.
        stream: Where its stream stands.
        receive_maximum: How many unacknowledged publishes the server takes.
    """

    transport: asyncio.Transport
    device: BenchDevice
    stream: Stream
    receive_maximum: int
    _inbox: _Inbox
    _version: Version

    @classmethod
    async def open(cls, target: Target, tls: ssl.SSLContext | None, device: BenchDevice, load: Load) -> Session:
        """Connect a device.

        Raises:
            BenchFailed: The server cannot be reached or refuses, with its reason.
        """
        host, port = target.address
        loop, inbox = asyncio.get_running_loop(), _Inbox(load.version)
        try:
            async with asyncio.timeout(ANSWER_S):
                transport, _ = await loop.create_connection(
                    lambda: inbox, host, port, ssl=tls, server_hostname=host if tls else None
                )
        except (OSError, TimeoutError) as exc:
            raise BenchFailed(f"{target.url}: cannot connect ({str(exc) or 'timed out'})") from exc
        transport.write(encode(_connect(device, load), load.version))
        answer = await _next(inbox, f"CONNECT of {device.id}")
        if not isinstance(answer, Connack) or answer.reason_code:
            transport.abort()
            raise BenchFailed(f"CONNECT of {device.id} was refused: {_reason(answer)}")
        said = answer.properties
        stream = Stream(stream_of(device), _stored_through(said.user_properties, stream_of(device)))
        return cls(transport, device, stream, said.receive_maximum or 65_535, inbox, load.version)

    def close(self) -> None:
        """Say goodbye and let go of the socket."""
        if not self.transport.is_closing():
            self.transport.write(encode(Disconnect(), self._version))
            self.transport.close()

    async def seal_key(self, suite: Suite) -> SealKey:
        """The gateway's current envelope key of a suite, proven by the key that the device pins.

        Raises:
            BenchFailed: There is none, or it cannot be proven.
        """
        wanted = Subscribe(packet_id=1, subscriptions=(Subscription(topic_filter=KEYS_TOPIC),))
        self.transport.write(encode(wanted, self._version))
        while not isinstance(answer := await _next(self._inbox, f"SUBSCRIBE to {KEYS_TOPIC}"), Publish):
            pass
        try:
            pinned = [verify_key_from_jwk(self.device.signing_key)]
            keys = verify_key_set(
                answer.payload, pinned, audience=self.device.audience, min_version=0, now_s=time.time()
            )
        except (KeyInvalid, KeySetRejected) as exc:
            raise BenchFailed(f"the gateway's key set: {exc}") from exc
        if (key := keys.best([suite])) is None:
            raise BenchFailed(f"the gateway has no envelope key of suite {suite.value}")
        return key


async def _next(inbox: _Inbox, what: str) -> Packet:
    try:
        async with asyncio.timeout(ANSWER_S):
            packet = await inbox.packets.get()
    except TimeoutError as exc:
        raise BenchFailed(f"{what}: no answer within {ANSWER_S:.0f} s") from exc
    if packet is None:
        raise BenchFailed(f"{what}: the server closed the connection")
    return packet


def _connect(device: BenchDevice, load: Load) -> Connect:
    asked = Properties(user_properties=(("stream", stream_of(device)),)) if load.events else EMPTY
    return Connect(
        version=load.version,
        client_id=device.id,
        keep_alive_s=KEEP_ALIVE_S,
        user_name=None if load.topic else "",
        password=None if load.topic else device.token(),
        properties=asked if load.version is Version.V5 else EMPTY,
    )


def _stored_through(said: tuple[tuple[str, str], ...], stream: str) -> int:
    for name, value in said:
        if name == "stored-through" and value.startswith(f"{stream} "):
            return int(value.rpartition(" ")[2])
    return 0


def _reason(answer: Packet) -> str:
    if isinstance(answer, Connack | Disconnect):
        return f"0x{answer.reason_code:02X} {answer.properties.reason_string or answer.reason_code.name}"
    return type(answer).__name__
