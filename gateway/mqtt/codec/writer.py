"""Packets to bytes, in the shortest form each version allows (chapter 3).

In 3.1.1 what has no words there is left out where that does no harm (properties, subscription options, the reason of
an UNSUBACK), and refused where it would turn a failure into a success: a PUBACK with an error cannot be written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from gateway.mqtt.codec import packets as p
from gateway.mqtt.codec.checks import check_auth, check_connack, check_publish, check_subscription
from gateway.mqtt.codec.connect import write_connect
from gateway.mqtt.codec.faults import CodecError, Rule
from gateway.mqtt.codec.headers import first_byte, publish_first_byte
from gateway.mqtt.codec.properties import EMPTY, Properties, write_properties
from gateway.mqtt.codec.reasons import REASON_CODES, RETURN_CODES_311, PacketType, ReasonCode, Version
from gateway.mqtt.codec.topics import check_topic_filter
from gateway.mqtt.codec.wire import check_packet_id, put_text, put_two_bytes, put_varint

_NOT_AUTHORIZED_311: Final = 5  # a refusal that 3.1.1 cannot name


def puback_ok(packet_id: int) -> bytes:
    """A PUBACK that says stored, the same bytes in both versions; the fast way to `encode(Puback(...))`.

    Args:
        packet_id: 1 to 65535, as read from a PUBLISH.
    """
    return b"\x40\x02" + packet_id.to_bytes(2)


def pubacks_ok(packet_ids: list[bytes]) -> bytes:
    """PUBACKs that say stored, for identifiers as they are on the wire, at least one."""
    return b"\x40\x02" + b"\x40\x02".join(packet_ids)


def encode(packet: p.Packet, version: Version) -> bytes:
    """Write a packet, so that a `Decoder` of the other side reads the same value.

    Args:
        packet: Any packet.
        version: What the connection speaks; a CONNECT is written in the version it names itself.

    Raises:
        CodecError: The packet breaks a rule, or cannot be said in this version.
    """
    kind, write = _WRITERS[type(packet)]
    body = write(packet, version)
    first = publish_first_byte(packet) if isinstance(packet, p.Publish) else first_byte(kind)
    return first.to_bytes() + put_varint(len(body)) + body


def _properties(properties: Properties, kind: PacketType, version: Version) -> bytes:
    return write_properties(properties, kind) if version is Version.V5 else b""


def _publish(packet: p.Publish, version: Version) -> bytes:
    check_publish(packet, version)
    head = put_text(packet.topic)
    if packet.qos:
        head += put_two_bytes(check_packet_id(packet.packet_id))
    return head + _properties(packet.properties, PacketType.PUBLISH, version) + packet.payload


def _connect(packet: p.Connect, _version: Version) -> bytes:
    return write_connect(packet)


def _connack(packet: p.Connack, version: Version) -> bytes:
    check_connack(packet)
    code = _code(packet.reason_code, PacketType.CONNACK)
    if version is Version.V311:
        code = bytes([RETURN_CODES_311.get(packet.reason_code, _NOT_AUTHORIZED_311)])
    return bytes([packet.session_present]) + code + _properties(packet.properties, PacketType.CONNACK, version)


def _code(reason_code: ReasonCode, kind: PacketType) -> bytes:
    if not any(reason_code in codes for codes in REASON_CODES[kind].values()):
        raise CodecError(Rule.REASON_CODE, f"{reason_code.name} in {kind.name}")
    return reason_code.to_bytes()


def _reason(reason_code: ReasonCode, properties: Properties, kind: PacketType, version: Version) -> bytes:
    """A reason code and properties, leaving out what success and no properties leave out (3.4.2.1)."""
    if version is Version.V311:
        if reason_code:
            raise CodecError(Rule.NOT_IN_311, f"{reason_code.name} in {kind.name}")
        return b""
    if properties != EMPTY:
        return _code(reason_code, kind) + write_properties(properties, kind)
    return _code(reason_code, kind) if reason_code else b""


def _ack(kind: PacketType) -> Callable[[Any, Version], bytes]:
    def write(packet: p.Puback | p.Pubrec | p.Pubrel | p.Pubcomp, version: Version) -> bytes:
        packet_id = put_two_bytes(check_packet_id(packet.packet_id))
        return packet_id + _reason(packet.reason_code, packet.properties, kind, version)

    return write


def _subscribe(packet: p.Subscribe, version: Version) -> bytes:
    if not packet.subscriptions:
        raise CodecError(Rule.SUBSCRIBE_EMPTY)
    head = put_two_bytes(check_packet_id(packet.packet_id))
    head += _properties(packet.properties, PacketType.SUBSCRIBE, version)
    return head + b"".join(_subscription(subscription, version) for subscription in packet.subscriptions)


def _subscription(subscription: p.Subscription, version: Version) -> bytes:
    check_subscription(subscription)
    options = subscription.qos
    if version is Version.V5:
        options |= subscription.no_local << 2 | subscription.retain_as_published << 3
        options |= subscription.retain_handling << 4
    return put_text(subscription.topic_filter) + options.to_bytes()


def _suback(packet: p.Suback, version: Version) -> bytes:
    codes = _codes(packet.reason_codes, PacketType.SUBACK)
    if version is Version.V311:
        codes = bytes(min(code, ReasonCode.UNSPECIFIED_ERROR) for code in codes)
    head = put_two_bytes(check_packet_id(packet.packet_id))
    return head + _properties(packet.properties, PacketType.SUBACK, version) + codes


def _codes(reason_codes: tuple[ReasonCode, ...], kind: PacketType) -> bytes:
    if not reason_codes:
        raise CodecError(Rule.ACK_EMPTY, kind.name)
    return b"".join(_code(reason_code, kind) for reason_code in reason_codes)


def _unsubscribe(packet: p.Unsubscribe, version: Version) -> bytes:
    if not packet.topic_filters:
        raise CodecError(Rule.UNSUBSCRIBE_EMPTY)
    for topic_filter in packet.topic_filters:
        check_topic_filter(topic_filter)
    head = put_two_bytes(check_packet_id(packet.packet_id))
    head += _properties(packet.properties, PacketType.UNSUBSCRIBE, version)
    return head + b"".join(map(put_text, packet.topic_filters))


def _unsuback(packet: p.Unsuback, version: Version) -> bytes:
    head = put_two_bytes(check_packet_id(packet.packet_id))
    if version is Version.V311:
        return head
    codes = _codes(packet.reason_codes, PacketType.UNSUBACK)
    return head + write_properties(packet.properties, PacketType.UNSUBACK) + codes


def _ping(_packet: p.Pingreq | p.Pingresp, _version: Version) -> bytes:
    return b""


def _disconnect(packet: p.Disconnect, version: Version) -> bytes:
    return _reason(packet.reason_code, packet.properties, PacketType.DISCONNECT, version)


def _auth(packet: p.Auth, version: Version) -> bytes:
    if version is Version.V311:
        raise CodecError(Rule.NOT_IN_311, PacketType.AUTH.name)
    if not packet.reason_code and packet.properties == EMPTY:
        return b""
    check_auth(packet)
    return _code(packet.reason_code, PacketType.AUTH) + write_properties(packet.properties, PacketType.AUTH)


_WRITERS: Final[Mapping[type[Any], tuple[PacketType, Callable[[Any, Version], bytes]]]] = {
    p.Connect: (PacketType.CONNECT, _connect),
    p.Connack: (PacketType.CONNACK, _connack),
    p.Publish: (PacketType.PUBLISH, _publish),
    p.Puback: (PacketType.PUBACK, _ack(PacketType.PUBACK)),
    p.Pubrec: (PacketType.PUBREC, _ack(PacketType.PUBREC)),
    p.Pubrel: (PacketType.PUBREL, _ack(PacketType.PUBREL)),
    p.Pubcomp: (PacketType.PUBCOMP, _ack(PacketType.PUBCOMP)),
    p.Subscribe: (PacketType.SUBSCRIBE, _subscribe),
    p.Suback: (PacketType.SUBACK, _suback),
    p.Unsubscribe: (PacketType.UNSUBSCRIBE, _unsubscribe),
    p.Unsuback: (PacketType.UNSUBACK, _unsuback),
    p.Pingreq: (PacketType.PINGREQ, _ping),
    p.Pingresp: (PacketType.PINGRESP, _ping),
    p.Disconnect: (PacketType.DISCONNECT, _disconnect),
    p.Auth: (PacketType.AUTH, _auth),
}
