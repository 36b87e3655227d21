"""A client of raw packets over a blocking socket, for black-box tests of a running MQTT server.

It reads linearly: each call says what is sent and what must come back. `bytes` go out as they are, so that illegal
packets can be sent; what comes back is read strictly, by the codec's client side. Silence is proved by PINGREQ: what the
server wrote before PINGRESP has arrived.
"""

from __future__ import annotations

import itertools
import socket
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, TypeVar

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
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    ReasonCode,
    Suback,
    Subscribe,
    Subscription,
    Unsuback,
    Unsubscribe,
    Version,
    encode,
)

TIMEOUT_S: Final = 5.0
P = TypeVar("P")


class Wire:
    """One connection of a client.

    Attributes:
        packets: Read and not asked for yet, in the order of arrival.
        connack: Answer to `connect`.
    """

    def __init__(self, port: int, version: Version = Version.V5) -> None:
        self.version = version
        self.packets: deque[Packet] = deque()
        self.connack: Connack | None = None
        self._socket = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        self._decoder = Decoder(role="client", version=version)
        self._ids = itertools.cycle(range(1, 65536))

    @property
    def is_v5(self) -> bool:
        return self.version is Version.V5

    # Packets.

    def send(self, *what: Packet | bytes) -> None:
        """Send packets, or bytes as they are."""
        data = [each if isinstance(each, bytes) else encode(each, self.version) for each in what]
        self._socket.sendall(b"".join(data))

    def read(self, timeout_s: float = TIMEOUT_S) -> Packet | None:
        """The next packet; None once the server has closed.

        Raises:
            TimeoutError: Nothing came.
        """
        while not self.packets and self._receive(timeout_s):
            pass
        return self.packets.popleft() if self.packets else None

    def take(self, kind: type[P], timeout_s: float = TIMEOUT_S) -> P:
        """The next packet of a type; others stay in line."""
        seen = 0
        while True:
            for packet in itertools.islice(self.packets, seen, None):
                if isinstance(packet, kind):
                    self.packets.remove(packet)
                    return packet
            seen = len(self.packets)
            assert self._receive(timeout_s), f"expected {kind.__name__}, the server closed after {list(self.packets)}"

    def _receive(self, timeout_s: float) -> bool:
        self._socket.settimeout(timeout_s)
        try:
            data = self._socket.recv(65536)
        except ConnectionResetError:
            data = b""
        self.packets += self._decoder.feed(data)
        return bool(data)

    def ended(self) -> list[Packet]:
        """All packets up to the end of the connection, which must come."""
        while self._receive(TIMEOUT_S):
            pass
        found = list(self.packets)
        self.packets.clear()
        return found

    def verdict(self) -> list[ReasonCode]:
        """The codes that the server closed the connection with: one in 5.0, none in 3.1.1."""
        return [each.reason_code for each in self.ended() if isinstance(each, Connack | Disconnect)]

    # Conversations.

    def connect(self, client_id: str, **options: Any) -> Connack:
        """CONNECT; give the CONNACK."""
        self.send(Connect(**({"version": self.version, "client_id": client_id} | options)))
        self.connack = self.take(Connack)
        return self.connack

    def subscribe(
        self, *filters: str, qos: int = 0, identifier: int | None = None, **options: Any
    ) -> Sequence[ReasonCode]:
        """SUBSCRIBE; give the codes of SUBACK."""
        subscriptions = tuple(Subscription(topic_filter=each, qos=qos, **options) for each in filters)
        properties = Properties(subscription_identifiers=() if identifier is None else (identifier,))
        packet = Subscribe(packet_id=next(self._ids), subscriptions=subscriptions, properties=properties)
        self.send(packet)
        answer = self.take(Suback)
        assert answer.packet_id == packet.packet_id
        return answer.reason_codes

    def unsubscribe(self, *filters: str) -> Sequence[ReasonCode]:
        """UNSUBSCRIBE; give the codes of UNSUBACK, which 3.1.1 has none of."""
        packet = Unsubscribe(packet_id=next(self._ids), topic_filters=filters)
        self.send(packet)
        answer = self.take(Unsuback)
        assert answer.packet_id == packet.packet_id
        return answer.reason_codes

    def publish(
        self, topic: str, payload: bytes = b"x", qos: int = 1, **options: Any
    ) -> Puback | Pubrec | Pubcomp | None:
        """PUBLISH up to its last acknowledgement, which is given; None at QoS 0."""
        packet_id = next(self._ids) if qos else 0
        packet_id = options.pop("packet_id", packet_id)
        self.send(Publish(topic=topic, payload=payload, qos=qos, packet_id=packet_id, **options))
        if qos == 0:
            return None
        answer: Puback | Pubrec | Pubcomp = self.take(Puback if qos == 1 else Pubrec)
        assert answer.packet_id == packet_id
        if qos == 2 and answer.reason_code < ReasonCode.UNSPECIFIED_ERROR:
            self.send(Pubrel(packet_id=packet_id))
            answer = self.take(Pubcomp)
            assert answer.packet_id == packet_id
        return answer

    def receive(self) -> Publish:
        """The next message, acknowledged to the end."""
        message = self.take(Publish)
        self.acknowledge(message)
        return message

    def acknowledge(self, message: Publish) -> None:
        """Acknowledge a message to the end, as its QoS asks."""
        if message.qos == 1:
            self.send(Puback(packet_id=message.packet_id))
        elif message.qos == 2:
            self.send(Pubrec(packet_id=message.packet_id))
            assert self.take(Pubrel).packet_id == message.packet_id
            self.send(Pubcomp(packet_id=message.packet_id))

    def received(self) -> list[Publish]:
        """Every message that has been sent to this client by now, acknowledged."""
        found: list[Publish] = []
        while True:
            self.ping()
            if not any(isinstance(packet, Publish) for packet in self.packets):
                return found
            while any(isinstance(packet, Publish) for packet in self.packets):
                found.append(self.receive())

    def payloads(self) -> list[bytes]:
        """Payloads of `received`."""
        return [message.payload for message in self.received()]

    def ping(self) -> None:
        """PINGREQ and its answer."""
        self.send(Pingreq())
        self.take(Pingresp)

    # Ends.

    def disconnect(self, code: int = 0, **properties: Any) -> None:
        """DISCONNECT, and wait until the server has closed."""
        self.send(Disconnect(reason_code=ReasonCode(code), properties=Properties(**properties)))
        self.ended()
        self.close()

    def drop(self) -> None:
        """End the connection without a word, and wait until the server has noticed."""
        self._socket.shutdown(socket.SHUT_WR)
        self.ended()
        self.close()

    def close(self) -> None:
        """Let the socket go."""
        self._socket.close()


# Bytes by hand, for packets that no writer makes.


def varint(value: int) -> bytes:
    out = bytearray()
    while True:
        value, low = divmod(value, 128)
        out.append(low | (0x80 if value else 0))
        if not value:
            return bytes(out)


def packet(first: int, *body: bytes) -> bytes:
    """A control packet from its first byte and the parts of its body."""
    data = b"".join(body)
    return bytes([first]) + varint(len(data)) + data


def text(value: str | bytes) -> bytes:
    """A string with its length, well-formed or not."""
    data = value.encode() if isinstance(value, str) else value
    return len(data).to_bytes(2) + data


def block(*properties: bytes) -> bytes:
    """Properties with their length (2.2.2)."""
    data = b"".join(properties)
    return varint(len(data)) + data
