"""The properties of MQTT 5.0 (section 2.2.2): their values, and the one table that reading and writing follow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from gateway.mqtt.codec import wire
from gateway.mqtt.codec.faults import CodecError, Rule
from gateway.mqtt.codec.reasons import PacketType
from gateway.mqtt.codec.topics import has_wildcard
from gateway.mqtt.codec.wire import Cursor

WILL: Final = 0
"""Stands for the will among the packets that carry properties (3.1.3.2); packet type 0 is reserved."""


class Properties(msgspec.Struct, frozen=True, kw_only=True, gc=False, repr_omit_defaults=True):
    """Properties of a packet or a will, named as in table 2-4; None or () means absent.

    Intervals are seconds, sizes bytes. `user_properties` keeps its order [MQTT-3.3.2-18]; SUBSCRIBE carries at most one
    of `subscription_identifiers`.
    """

    payload_format_indicator: int | None = None
    message_expiry_interval: int | None = None
    content_type: str | None = None
    response_topic: str | None = None
    correlation_data: bytes | None = None
    subscription_identifiers: tuple[int, ...] = ()
    session_expiry_interval: int | None = None
    assigned_client_identifier: str | None = None
    server_keep_alive: int | None = None
    authentication_method: str | None = None
    authentication_data: bytes | None = None
    request_problem_information: bool | None = None
    will_delay_interval: int | None = None
    request_response_information: bool | None = None
    response_information: str | None = None
    server_reference: str | None = None
    reason_string: str | None = None
    receive_maximum: int | None = None
    topic_alias_maximum: int | None = None
    topic_alias: int | None = None
    maximum_qos: int | None = None
    retain_available: bool | None = None
    user_properties: tuple[tuple[str, str], ...] = ()
    maximum_packet_size: int | None = None
    wildcard_subscription_available: bool | None = None
    subscription_identifier_available: bool | None = None
    shared_subscription_available: bool | None = None


EMPTY: Final = Properties()
"""The one empty block that is shared: reading no properties makes no object."""


class _Wire(msgspec.Struct, frozen=True):
    """How a type is read and written."""

    read: Callable[[Cursor], Any]
    write: Callable[[Any], bytes]


class _Row(msgspec.Struct, frozen=True):
    """A property: identifier, field, type, the packets that may carry it; optionally what its value must be."""

    identifier: int
    field: str
    wire: _Wire
    packets: frozenset[int]
    breaks: Callable[[Any], Rule | None] | None = None
    repeats_in: frozenset[int] = frozenset()


def _read_flag(cursor: Cursor) -> int:
    byte = cursor.byte()
    return bool(byte) if byte < 2 else byte  # another byte is left as it is, for the value check to refuse


def _unless_bit(value: int) -> Rule | None:
    return None if value in (0, 1) else Rule.PROPERTY_NOT_0_OR_1


def _if_zero(rule: Rule) -> Callable[[int], Rule | None]:
    return lambda value: None if value else rule


def _unless_topic(value: str) -> Rule | None:
    return Rule.RESPONSE_TOPIC if not value or has_wildcard(value) else None


_BYTE = _Wire(Cursor.byte, wire.put_byte)
_FLAG = _Wire(_read_flag, wire.put_byte)
_TWO = _Wire(Cursor.two_bytes, wire.put_two_bytes)
_FOUR = _Wire(Cursor.four_bytes, wire.put_four_bytes)
_VARINT = _Wire(Cursor.varint, wire.put_varint)
_TEXT = _Wire(Cursor.text, wire.put_text)
_BINARY = _Wire(Cursor.binary, wire.put_binary)
_SECRET = _Wire(Cursor.secret, wire.put_binary)
_PAIR = _Wire(Cursor.pair, wire.put_pair)

_P = PacketType
_CONNECT, _CONNACK = frozenset({_P.CONNECT}), frozenset({_P.CONNACK})
_OPENING = _CONNECT | _CONNACK
_PUBLISH = frozenset({_P.PUBLISH})
_MESSAGE = _PUBLISH | {WILL}
_ALL = frozenset(_P) - {_P.PINGREQ, _P.PINGRESP} | {WILL}
_ACKS = _ALL - {WILL, _P.CONNECT, _P.PUBLISH, _P.SUBSCRIBE, _P.UNSUBSCRIBE}

_TABLE: Final = (
    _Row(0x01, "payload_format_indicator", _BYTE, _MESSAGE, _unless_bit),
    _Row(0x02, "message_expiry_interval", _FOUR, _MESSAGE),
    _Row(0x03, "content_type", _TEXT, _MESSAGE),
    _Row(0x08, "response_topic", _TEXT, _MESSAGE, _unless_topic),
    _Row(0x09, "correlation_data", _BINARY, _MESSAGE),
    _Row(0x0B, "subscription_identifiers", _VARINT, _PUBLISH | {_P.SUBSCRIBE}, _if_zero(Rule.SUBSCRIPTION_ID_0), _PUBLISH),
    _Row(0x11, "session_expiry_interval", _FOUR, _OPENING | {_P.DISCONNECT}),
    _Row(0x12, "assigned_client_identifier", _TEXT, _CONNACK),
    _Row(0x13, "server_keep_alive", _TWO, _CONNACK),
    _Row(0x15, "authentication_method", _TEXT, _OPENING | {_P.AUTH}),
    _Row(0x16, "authentication_data", _SECRET, _OPENING | {_P.AUTH}),
    _Row(0x17, "request_problem_information", _FLAG, _CONNECT, _unless_bit),
    _Row(0x18, "will_delay_interval", _FOUR, frozenset({WILL})),
    _Row(0x19, "request_response_information", _FLAG, _CONNECT, _unless_bit),
    _Row(0x1A, "response_information", _TEXT, _CONNACK),
    _Row(0x1C, "server_reference", _TEXT, _CONNACK | {_P.DISCONNECT}),
    _Row(0x1F, "reason_string", _TEXT, _ACKS),
    _Row(0x21, "receive_maximum", _TWO, _OPENING, _if_zero(Rule.RECEIVE_MAXIMUM_0)),
    _Row(0x22, "topic_alias_maximum", _TWO, _OPENING),
    _Row(0x23, "topic_alias", _TWO, _PUBLISH, _if_zero(Rule.TOPIC_ALIAS_0)),
    _Row(0x24, "maximum_qos", _BYTE, _CONNACK, _unless_bit),
    _Row(0x25, "retain_available", _FLAG, _CONNACK, _unless_bit),
    _Row(0x26, "user_properties", _PAIR, _ALL, None, _ALL),
    _Row(0x27, "maximum_packet_size", _FOUR, _OPENING, _if_zero(Rule.MAXIMUM_PACKET_SIZE_0)),
    _Row(0x28, "wildcard_subscription_available", _FLAG, _CONNACK, _unless_bit),
    _Row(0x29, "subscription_identifier_available", _FLAG, _CONNACK, _unless_bit),
    _Row(0x2A, "shared_subscription_available", _FLAG, _CONNACK, _unless_bit),
)  # fmt: skip

_BY_IDENTIFIER: Final = {row.identifier: row for row in _TABLE}
_MANY: Final = frozenset(row.field for row in _TABLE if row.repeats_in)  # their fields are tuples


def read_properties(cursor: Cursor, carrier: int) -> Properties:
    """Read a property length and the properties behind it.

    Args:
        cursor: At the property length; afterwards behind the last property.
        carrier: The packet type, or `WILL`.

    Raises:
        CodecError: `PROPERTY_*`, or the rule that a value breaks.
    """
    length = cursor.varint()
    if not length:
        return EMPTY
    block = Cursor(cursor.take(length))
    found: dict[str, list[Any]] = {}
    while not block.at_end:
        _read_property(block, carrier, found)
    fields: dict[str, Any] = {name: tuple(values) if name in _MANY else values[0] for name, values in found.items()}
    return Properties(**fields)


def _read_property(block: Cursor, carrier: int, found: dict[str, list[Any]]) -> None:
    identifier = block.varint()
    row = _BY_IDENTIFIER.get(identifier)
    if row is None:
        raise CodecError(Rule.PROPERTY_UNKNOWN, f"0x{identifier:02X} in {_name(carrier)}")
    _check_carrier(row, carrier)
    value = row.wire.read(block)
    _check_value(row, carrier, value)
    values = found.setdefault(row.field, [])
    values.append(value)
    _check_count(row, carrier, len(values))


def write_properties(properties: Properties, carrier: int) -> bytes:
    """Write a property length and the properties behind it, in the order of table 2-4.

    Args:
        properties: What to write.
        carrier: The packet type, or `WILL`.

    Raises:
        CodecError: A property that the packet may not carry, or whose value breaks a rule.
    """
    if properties is EMPTY:
        return b"\0"
    parts: list[bytes] = []
    for row, value in zip(_TABLE, msgspec.structs.astuple(properties), strict=True):
        if value is not None and value != ():
            _write_property(row, value if row.field in _MANY else (value,), carrier, parts)
    block = b"".join(parts)
    return wire.put_varint(len(block)) + block


def _write_property(row: _Row, values: Sequence[Any], carrier: int, parts: list[bytes]) -> None:
    _check_carrier(row, carrier)
    _check_count(row, carrier, len(values))
    for value in values:
        _check_value(row, carrier, value)
        parts.append(wire.put_varint(row.identifier) + row.wire.write(value))


def _check_carrier(row: _Row, carrier: int) -> None:
    if carrier not in row.packets:
        raise CodecError(Rule.PROPERTY_NOT_ALLOWED, _where(row, carrier))


def _check_value(row: _Row, carrier: int, value: Any) -> None:
    if row.breaks and (rule := row.breaks(value)):
        raise CodecError(rule, _where(row, carrier))


def _check_count(row: _Row, carrier: int, count: int) -> None:
    if count > 1 and carrier not in row.repeats_in:
        raise CodecError(Rule.PROPERTY_TWICE, _where(row, carrier))


def _where(row: _Row, carrier: int) -> str:
    return f"{row.field} in {_name(carrier)}"


def _name(carrier: int) -> str:
    return PacketType(carrier).name if carrier else "a will"
