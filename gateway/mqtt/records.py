"""Sessions as they are kept in the `StateStore`: keys, and values as bytes.

A session has `session/{kind}/{issuer}/{sub}/{client id}/` (each part percent-encoded) and below it `head`, `in/{packet
id}` for each QoS 2 message that was received and not released, and `out/{number}` for each delivery. A message is kept as
the MQTT 5.0 PUBLISH that it will be. Times are Unix seconds.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote, unquote

import msgspec

from edge_protocol.topics import TopicName
from gateway.mqtt.codec import Decoder, Properties, Publish, Version, Will, encode
from gateway.mqtt.messages import Message
from gateway.mqtt.router import Subscribed
from gateway.ports.identity import Principal, PrincipalKind

PREFIX: Final = "session/"
HEAD: Final = "head"
IN: Final = "in/"
OUT: Final = "out/"
FORMAT: Final = 1
"""Of `Head`; a head of another format is not read: its session is gone.

A field with a default that is added at the end is no other format: older records are read with the default, and older
gateways read past it."""


class Head(msgspec.Struct, frozen=True, array_like=True):
    """What a session is, without its messages.

    Attributes:
        format: `FORMAT`.
        epoch: Registration of the device (`Grant.epoch`).
        expiry_s: Session Expiry Interval.
        left_at_s: When its connection was gone; None while connected.
        sent: Deliveries below this number may have been sent.
        roles: Of its last grant.
        subscriptions: By filter, as granted.
        will: As a PUBLISH, or None.
        will_delay_s: Its Will Delay Interval.
        jti: Id of the token that last proved its client, or "".
    """

    format: int
    epoch: int
    expiry_s: int
    left_at_s: float | None
    sent: int
    roles: tuple[str, ...]
    subscriptions: dict[str, Subscribed]
    will: bytes | None
    will_delay_s: int
    jti: str = ""


class Out(msgspec.Struct, frozen=True, array_like=True):
    """A delivery.

    Attributes:
        packet: The PUBLISH; None once PUBREC came.
        plain: Its payload in 3.1.1, if that is another.
        expires_at_s: When it expires, or None.
        key: Under which whoever offered it asks for it after a restart; "" for nobody.
        share: The shared subscription by which it came (`share_id`), whose other members get it if the session ends.
        qos: With a share: it was published with; another member may get it so.
        retain: Likewise.
    """

    packet: bytes | None
    plain: bytes | None = None
    expires_at_s: float | None = None
    key: str = ""
    share: bytes = b""
    qos: int = 0
    retain: bool = False


def key_of(principal: Principal, client_id: str) -> str:
    """What the keys of a session begin with."""
    parts = (principal.kind.value, principal.issuer, principal.sub, client_id)
    return PREFIX + "".join(f"{quote(part, safe='')}/" for part in parts)


def split_key(key: str) -> tuple[Principal, str, str]:
    """Principal, client id and the rest of a key."""
    kind, issuer, sub, client_id, rest = key.removeprefix(PREFIX).split("/", 4)
    return Principal(PrincipalKind(unquote(kind)), unquote(issuer), unquote(sub)), unquote(client_id), rest


def write_message(
    message: Message, qos: int, identifiers: tuple[int, ...], *, retain: bool
) -> tuple[bytes, bytes | None]:
    """A message as PUBLISH, and its payload in 3.1.1 if that is another.

    Raises:
        CodecError: No PUBLISH can hold it.
    """
    payload, properties = message.form(Version.V5)
    plain, _ = message.form(Version.V311)
    properties = msgspec.structs.replace(properties, subscription_identifiers=identifiers)
    return write_publish(message.topic, payload, qos, properties, retain=retain), None if plain == payload else plain


def write_publish(topic: str, payload: bytes, qos: int, properties: Properties, *, retain: bool) -> bytes:
    """A PUBLISH as bytes; its packet identifier means nothing."""
    packet = Publish(
        topic=topic, payload=payload, qos=qos, retain=retain, packet_id=1 if qos else 0, properties=properties
    )
    return encode(packet, Version.V5)


def read_publish(data: bytes) -> Publish:
    """A PUBLISH from bytes.

    Raises:
        CodecError, ValueError: They are none.
    """
    decoder = Decoder(role="client", version=Version.V5, max_packet_bytes=len(data))
    (packet,) = (each for each in decoder.feed(data) if isinstance(each, Publish))
    return packet


def read_message(packet: Publish, plain: bytes | None, expires_at_s: float | None) -> Message:
    """The message of a kept PUBLISH; `expires_at_s` is loop time here."""
    properties = msgspec.structs.replace(packet.properties, subscription_identifiers=())
    return Message(
        TopicName(packet.topic),
        packet.payload,
        packet.qos,
        properties=properties,
        retain=packet.retain,
        expires_at_s=expires_at_s,
        plain=plain,
    )


def write_will(will: Will) -> bytes:
    """A will as PUBLISH."""
    properties = msgspec.structs.replace(will.properties, will_delay_interval=None)
    return write_publish(will.topic, will.payload, will.qos, properties, retain=will.retain)


def read_will(data: bytes, delay_s: int) -> Will:
    """A will from its PUBLISH."""
    packet = read_publish(data)
    properties = msgspec.structs.replace(packet.properties, will_delay_interval=delay_s)
    return Will(topic=packet.topic, payload=packet.payload, qos=packet.qos, retain=packet.retain, properties=properties)
