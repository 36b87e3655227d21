"""A scripted MQTT 5 server on real sockets, with the gateway's half of the contract behind it.

It opens every envelope with `open_envelope`, stores what `ranges.fit` finds new, in order of arrival, and answers as a
script says; without a script it behaves as a healthy gateway.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Self

import msgspec

from edge_protocol.envelope import AgeLimits, Opened, open_envelope
from edge_protocol.envelope_keys import DEFAULT_SUITE, Suite, new_open_key
from edge_protocol.errors import Rejected, ResealNeeded
from edge_protocol.events import Event, Limits
from edge_protocol.key_set import sign_key_set
from edge_protocol.keys import VerifyKey, new_signing_key
from edge_protocol.tokens import TokenPolicy, read, verify
from edge_protocol.topics import KEYS_TOPIC, events_topic, token_topic
from gateway.mqtt.codec import (
    Connack,
    Connect,
    Decoder,
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
    Properties,
    Puback,
    Publish,
    ReasonCode,
    Suback,
    Subscribe,
    Version,
    encode,
)
from gateway.rules.ranges import Misfit, Range, fit

AUDIENCE = "lockgate-test"


def wait_until(condition: Callable[[], object], timeout_s: float = 15.0) -> None:
    """Wait for a condition; fails with its source when it does not come true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"did not become true within {timeout_s} s: {condition}")
        time.sleep(0.01)


def user(*pairs: tuple[str, str], reason: str | None = None, **others) -> Properties:
    return Properties(user_properties=pairs, reason_string=reason, **others)


class Cloud:
    """What the gateway knows: keys, and what it has stored."""

    def __init__(self, *suites: Suite) -> None:
        self.signing_key = new_signing_key()
        self.open_keys = {key.kid: key for key in map(new_open_key, suites or (DEFAULT_SUITE,))}
        self.current = tuple(self.open_keys.values())
        self.version = 1
        self.device_keys: dict[bytes, VerifyKey] = {}
        self.limits = Limits()
        self.events: list[Event] = []
        self.opened: list[Opened] = []
        self.ranges: dict[str, tuple[Range, ...]] = {}

    @property
    def ids(self) -> list[str]:
        return [event.id for event in self.events]

    def key_set(self, *, expires_in_s: int = 3600) -> str:
        now = int(time.time())
        keys = [key.public for key in self.current]
        return sign_key_set(
            keys,
            self.signing_key,
            version=self.version,
            audience=AUDIENCE,
            issued_at=now,
            expires_at=now + expires_in_s,
        )

    def rotate(self, suite: Suite = DEFAULT_SUITE) -> None:
        """A new envelope key; the old one is forgotten at once, so what it sealed must be sealed again."""
        self.current = (new_open_key(suite),)
        self.open_keys = {key.kid: key for key in self.current}
        self.version += 1

    def open(self, device: str, payload: bytes) -> Opened:
        return open_envelope(
            payload,
            audience=AUDIENCE,
            device=device,
            open_key=self.open_keys.get,
            signing_key=self.device_keys.get,
            limits=self.limits,
            ages=AgeLimits(),
            now_s=time.time(),
        )

    def store(self, opened: Opened) -> Misfit | None:
        """Store what is new; None, or why it does not fit its stream."""
        self.opened.append(opened)
        place, events = opened.place, opened.events
        last = place.first + len(events) - 1
        found = fit(
            self.ranges.get(place.stream, ()),
            place.first,
            last,
            settled=place.settled,
            tail=events[-1].id,
            id_of=lambda n: events[n - place.first].id,
        )
        if isinstance(found, Misfit):
            return found
        self.ranges[place.stream] = found.ranges
        for first, end in found.new:
            self.events += events[first - place.first : end - place.first + 1]
        return None

    def stored_through(self, stream: str) -> int:
        ranges = self.ranges.get(stream, ())
        return ranges[0].last if ranges and ranges[0].first == 1 else 0


@dataclass
class Connection:
    """One client's connection, with all it sent."""

    broker: Broker
    sock: socket.socket
    at_s: float = field(default_factory=time.monotonic)
    connect: Connect | None = None
    publishes: list[Publish] = field(default_factory=list)
    disconnect: Disconnect | None = None
    is_closed: bool = False

    def send(self, *packets: Packet) -> None:
        self.sock.sendall(b"".join(encode(packet, Version.V5) for packet in packets))

    def close(self) -> None:
        self.is_closed = True
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

    @property
    def envelopes(self) -> list[Publish]:
        return [publish for publish in self.publishes if publish.topic == events_topic(self.connect.client_id)]

    @property
    def tokens(self) -> list[Publish]:
        return [publish for publish in self.publishes if publish.topic == token_topic(self.connect.client_id)]


class Broker:
    """The server. `on_connect` and `on_event` are the script: None means they did nothing, so be healthy."""

    def __init__(self, cloud: Cloud, tls: ssl.SSLContext | None = None) -> None:
        self.cloud = cloud
        self.connections: list[Connection] = []
        self.on_connect: Callable[[Connection], bool] | None = None
        self.on_event: Callable[[Connection, Publish], bool] | None = None
        self.connack = Properties()
        self.receipts = True
        self.faults: list[BaseException] = []
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        return f"mqtts://localhost:{self.port}" if self._tls else f"mqtt://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self.connections:
            connection.close()
        for thread in self._threads:
            thread.join(5)
        assert not self.faults, self.faults

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(sock,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        connection = None
        try:
            sock = self._tls.wrap_socket(sock, server_side=True) if self._tls else sock
            connection = Connection(self, sock)
            self.connections.append(connection)
            decoder = Decoder(role="server")
            while data := sock.recv(65536):
                for packet in decoder.feed(data):
                    if connection.is_closed:  # what was pipelined behind it is not looked at
                        return
                    self._handle(connection, packet)
        except OSError:
            pass  # closed by either side
        except Exception as exc:  # noqa: BLE001  # shown by __exit__
            self.faults.append(exc)
        finally:
            connection.close() if connection else sock.close()

    def _handle(self, connection: Connection, packet: Packet) -> None:
        match packet:
            case Connect():
                connection.connect = packet
                if self.on_connect is None or not self.on_connect(connection):
                    self.accept(connection)
            case Subscribe():
                connection.send(Suback(packet_id=packet.packet_id, reason_codes=(ReasonCode.GRANTED_QOS_1,)))
                self.send_keys(connection)
            case Publish():
                connection.publishes.append(packet)
                self._publish(connection, packet)
            case Pingreq():
                connection.send(Pingresp())
            case Disconnect():
                connection.disconnect = packet

    def _publish(self, connection: Connection, publish: Publish) -> None:
        if publish.topic == token_topic(connection.connect.client_id):
            self.check_token(publish.payload)
            connection.send(Puback(packet_id=publish.packet_id))
        elif self.on_event is None or not self.on_event(connection, publish):
            self.take(connection, publish)

    def accept(self, connection: Connection) -> None:
        """CONNACK 0x00 with everything section 2 asks for."""
        self.check_token(connection.connect.password)
        pairs = [("server-time", datetime.now(UTC).isoformat())]
        if self.receipts:
            pairs.append(("receipts", "durable"))
        for name, stream in connection.connect.properties.user_properties:
            assert name == "stream"
            pairs.append(("stored-through", f"{stream} {self.cloud.stored_through(stream)}"))
        connection.send(Connack(properties=_with(self.connack, pairs)))

    def check_token(self, token: bytes) -> None:
        claims, _ = verify(
            read(bytes(token)),
            list(self.cloud.device_keys.values()),
            policy=TokenPolicy(audience=AUDIENCE),
            now_s=time.time(),
        )
        assert claims.jti

    def send_keys(self, connection: Connection) -> None:
        connection.send(Publish(topic=KEYS_TOPIC, payload=self.cloud.key_set().encode(), retain=True))

    def take(self, connection: Connection, publish: Publish) -> None:
        """Open, store, acknowledge."""
        connection.send(self.judge(connection, publish))

    def judge(self, connection: Connection, publish: Publish) -> Puback:
        """Open and store; the acknowledgement, not sent yet."""
        try:
            misfit = self.cloud.store(self.cloud.open(connection.connect.client_id, publish.payload))
        except ResealNeeded as exc:
            return self.puback(publish, 0x83, str(exc), ("action", "reseal"))
        except Rejected as exc:
            return self.puback(publish, 0x99, str(exc))
        if misfit:
            return self.puback(publish, 0x99, f"{misfit.rule}: {misfit.detail}")
        return self.puback(publish, 0)

    @staticmethod
    def puback(publish: Publish, code: int, reason: str | None = None, *pairs: tuple[str, str]) -> Puback:
        return Puback(packet_id=publish.packet_id, reason_code=ReasonCode(code), properties=user(*pairs, reason=reason))


def _with(properties: Properties, pairs: Iterable[tuple[str, str]]) -> Properties:
    return msgspec.structs.replace(properties, user_properties=(*properties.user_properties, *pairs))


def refuse(
    code: int, reason: str, *pairs: tuple[str, str], disconnect: bool = True
) -> Callable[[Connection, Publish], bool]:
    """A script: answer the event with a code, then DISCONNECT as section 6 says for 0x83 and 0x97."""

    def script(connection: Connection, publish: Publish) -> bool:
        connection.send(Broker.puback(publish, code, reason, *pairs))
        if disconnect:
            connection.send(Disconnect(reason_code=ReasonCode(code), properties=user(*pairs, reason=reason)))
            connection.close()
        return True

    return script
