"""One MQTT 5 connection through paho-mqtt, as values: what happened comes out of `turn`, in order.

It knows no outbox and decides nothing. A `Link` is used once: the outbox is the state, so paho's own queue of messages
to repeat must not outlive a connection. Everything runs in the caller's thread: callbacks only append to a list, no
disk is touched inside paho, and no other thread exists.
"""

from __future__ import annotations

import select
import ssl
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage, MQTTMessageInfo, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge_agent.answers import Answer
from edge_agent.settings import Address

_FAILURE: Final = 0x80
_MAX_RECEIVE: Final = 65535
_MAX_PACKET_BYTES: Final = 1024 * 1024  # what the gateway may send us: a key set is 64 KiB at most
_PUBLISH_OVERHEAD_BYTES: Final = 1 + 4 + 2 + 2 + 1  # fixed header, topic length, packet id, no properties (MQTT 5, 3.3)


class HasFileno(Protocol):
    """Something `select` can wait for."""

    def fileno(self) -> int:
        """Its file descriptor."""
        ...


@dataclass(frozen=True, slots=True)
class Connected:
    """CONNACK accepted us.

    Attributes:
        packet_bytes: Largest packet the server takes, or None.
        receipts: Whether a PUBACK means stored (`receipts: durable`).
        stored_through: Sequence up to which a stream is stored, by its id.
        server_time: RFC 3339, or "".
    """

    packet_bytes: int | None
    receipts: bool
    stored_through: dict[str, int]
    server_time: str


@dataclass(frozen=True, slots=True)
class Refused:
    """CONNACK refused us; `is_bare` if it carried no properties at all."""

    answer: Answer
    server_time: str
    is_bare: bool


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """PUBACK."""

    packet_id: int
    answer: Answer


@dataclass(frozen=True, slots=True)
class Subscribed:
    """SUBACK; `code` is the first reason code."""

    code: int


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a subscription."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """The connection is gone; `answer` is what DISCONNECT said, or None if it just broke, as `cause` says."""

    answer: Answer | None
    cause: str = ""


Happening = Connected | Refused | Acknowledged | Subscribed | Message | Ended


class _TlsSocket(ssl.SSLSocket):
    """Closes itself when the handshake fails: paho then forgets it, open."""

    def do_handshake(self, block: bool = False) -> None:
        """Shake hands (`SSLSocket.do_handshake`)."""
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


class Link:
    """A connection: `connect`, then `turn` again and again, at last `close`."""

    def __init__(
        self,
        address: Address,
        *,
        client_id: str,
        token: str,
        streams: Iterable[str],
        keepalive_s: float,
        timeout_s: float,
        tls: ssl.SSLContext | None,
    ) -> None:
        self._address = address
        self._keepalive_s = max(1, int(keepalive_s))
        self._streams = tuple(streams)
        self._happened: list[Happening] = []
        self._is_open = False
        self._receive_maximum = _MAX_RECEIVE
        self._unacknowledged: set[int] = set()
        self._client = client = Client(
            CallbackAPIVersion.VERSION2, client_id=client_id, protocol=MQTTv5, reconnect_on_failure=False
        )
        client.connect_timeout = timeout_s
        client.max_inflight_messages_set(0)  # no queue inside paho: `has_room` keeps the server's Receive Maximum
        client.username_pw_set(client_id, token)
        if tls is not None:
            tls.sslsocket_class = _TlsSocket
            client.tls_set_context(tls)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, accepted or not yet."""
        return self._is_open

    @property
    def has_room(self) -> bool:
        """Whether the server's Receive Maximum allows one more PUBLISH [MQTT-3.3.4-9]."""
        return self._is_open and len(self._unacknowledged) < self._receive_maximum

    def connect(self) -> None:
        """Open TCP and TLS and send CONNECT: clean start, no session, a user property for each stream.

        Raises:
            OSError: No connection in time, or TLS refused the peer.
        """
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho's
        properties.SessionExpiryInterval = 0
        properties.MaximumPacketSize = _MAX_PACKET_BYTES
        properties.UserProperty = [("stream", stream) for stream in self._streams]
        self._is_open = True
        self._client.connect(
            self._address.host, self._address.port, self._keepalive_s, clean_start=True, properties=properties
        )

    def turn(self, timeout_s: float, wakers: Sequence[HasFileno] = ()) -> list[Happening]:
        """Read and write what is ready; returns what happened, in order.

        Args:
            timeout_s: Wait at most so long.
            wakers: Wait no longer once one of these is readable.
        """
        if self._is_open:
            code = self._wait(timeout_s, wakers)
            if code != MQTTErrorCode.MQTT_ERR_SUCCESS or self._client.socket() is None:
                self._end(Ended(None, "the peer closed it" if code == MQTTErrorCode.MQTT_ERR_SUCCESS else code.name))
        happened, self._happened = self._happened, []
        return happened

    def _wait(self, timeout_s: float, wakers: Sequence[HasFileno]) -> MQTTErrorCode:
        """One round of paho's own loop, around a `select` that others can wake."""
        sock = self._client.socket()
        if sock is None:
            return MQTTErrorCode.MQTT_ERR_NO_CONN
        is_pending = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0  # decrypted already: select cannot see it
        writers = [sock] if self._client.want_write() else []
        readable, writable, _ = select.select([sock, *wakers], writers, [], 0 if is_pending else timeout_s)
        code = MQTTErrorCode.MQTT_ERR_SUCCESS
        if is_pending or sock in readable:
            code = self._client.loop_read()
        if writable and code == MQTTErrorCode.MQTT_ERR_SUCCESS:
            code = self._client.loop_write()
        return self._client.loop_misc() if code == MQTTErrorCode.MQTT_ERR_SUCCESS else code

    def publish(self, topic: str, payload: bytes | str) -> int:
        """Publish at QoS 1; returns the packet identifier. A connection that breaks meanwhile shows in `turn`."""
        info: MQTTMessageInfo = self._client.publish(topic, payload, qos=1)
        self._unacknowledged.add(info.mid)
        return info.mid

    def subscribe(self, topic: str) -> None:
        """Subscribe at QoS 1; a retained message is sent again, also to a repeated SUBSCRIBE."""
        self._client.subscribe(topic, options=SubscribeOptions(qos=1))

    def close(self) -> None:
        """Send DISCONNECT if there is a connection, and close the socket."""
        self._is_open = False
        if self._client.is_connected():
            self._client.disconnect()
        self._client.on_disconnect = None
        if (sock := self._client.socket()) is not None:
            sock.close()

    def _end(self, ended: Ended) -> None:
        if self._is_open:
            self._is_open = False
            self._happened.append(ended)

    def _on_connect(
        self, _client: Client, _data: Any, _flags: ConnectFlags, code: ReasonCode, properties: Properties | None
    ) -> None:
        user = _user_properties(properties)
        if code.value >= _FAILURE:
            is_bare = properties is None or properties.isEmpty()  # type: ignore[no-untyped-call]  # paho's
            self._happened.append(Refused(_answer(code, properties), user.get("server-time", ""), is_bare))
            self._is_open = False
            return
        self._receive_maximum = getattr(properties, "ReceiveMaximum", _MAX_RECEIVE)
        self._happened.append(
            Connected(
                packet_bytes=getattr(properties, "MaximumPacketSize", None),
                receipts=user.get("receipts") == "durable",
                stored_through=_stored_through(properties),
                server_time=user.get("server-time", ""),
            )
        )

    def _on_disconnect(
        self, _client: Client, _data: Any, flags: DisconnectFlags, code: ReasonCode, properties: Properties | None
    ) -> None:
        if flags.is_disconnect_packet_from_server:
            self._end(Ended(_answer(code, properties)))
        else:
            self._end(Ended(None, f"the connection was lost ({code})"))

    def _on_publish(
        self, _client: Client, _data: Any, packet_id: int, code: ReasonCode, properties: Properties | None
    ) -> None:
        self._unacknowledged.discard(packet_id)
        self._happened.append(Acknowledged(packet_id, _answer(code, properties)))

    def _on_subscribe(
        self, _client: Client, _data: Any, _packet_id: int, codes: list[ReasonCode], _properties: Properties | None
    ) -> None:
        self._happened.append(Subscribed(codes[0].value if codes else _FAILURE))

    def _on_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        self._happened.append(Message(message.topic, bytes(message.payload)))


def publish_bytes(topic: str, payload: bytes) -> int:
    """Size of a PUBLISH packet at most, for the server's Maximum Packet Size."""
    return _PUBLISH_OVERHEAD_BYTES + len(topic.encode()) + len(payload)


def _pairs(properties: Properties | None) -> list[tuple[str, str]]:
    return list(getattr(properties, "UserProperty", ()))


def _user_properties(properties: Properties | None) -> dict[str, str]:
    """The first of each name."""
    return dict(reversed(_pairs(properties)))


def _answer(code: ReasonCode, properties: Properties | None) -> Answer:
    user = _user_properties(properties)
    return Answer(
        code=code.value,
        reason=getattr(properties, "ReasonString", ""),
        reseal=user.get("action") == "reseal",
        retry_after_s=_seconds(user.get("retry-after", "")),
    )


def _seconds(text: str) -> float | None:
    return float(text) if text.isascii() and text.isdigit() and len(text) < 10 else None  # below 31 years


def _stored_through(properties: Properties | None) -> dict[str, int]:
    found = {}
    for name, value in _pairs(properties):
        stream, _, number = value.partition(" ")
        if name == "stored-through" and number.isascii() and number.isdigit():
            found[stream] = int(number)
    return found
