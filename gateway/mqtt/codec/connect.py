"""CONNECT, the one packet that says how to read itself (section 3.1)."""

from __future__ import annotations

from typing import Final

from gateway.mqtt.codec.checks import check_connect, check_will
from gateway.mqtt.codec.faults import CodecError, Rule
from gateway.mqtt.codec.packets import Connect, Will
from gateway.mqtt.codec.properties import EMPTY, WILL, read_properties, write_properties
from gateway.mqtt.codec.reasons import PacketType, Version
from gateway.mqtt.codec.wire import Cursor, put_binary, put_byte, put_name, put_text, put_two_bytes

RESERVED: Final = 0x01
CLEAN_START: Final = 0x02
WILL_FLAG: Final = 0x04
WILL_QOS_SHIFT: Final = 3
WILL_RETAIN: Final = 0x20
PASSWORD: Final = 0x40
USER_NAME: Final = 0x80

_BRIDGE_BIT: Final = 0x80  # Mosquitto's bridges set it on the level they mean, and try again without it


def read_protocol(cursor: Cursor) -> int:
    """Read protocol name and level (3.1.2.1, 3.1.2.2).

    Returns:
        The level as sent; 3 for the name of MQTT 3.1.

    Raises:
        CodecError: `PROTOCOL_NAME`.
    """
    name = cursor.binary()
    level = cursor.byte()
    if name == b"MQIsdp":
        return 3
    if name != b"MQTT":
        raise CodecError(Rule.PROTOCOL_NAME)
    return level


def version_to_answer(level: int) -> Version:
    """In whose words to answer a CONNECT of some level: 5.0's only to who speaks it [3.1.1: MQTT-3.1.2-2]."""
    return Version.V5 if level & ~_BRIDGE_BIT == Version.V5 else Version.V311


def read_connect(cursor: Cursor, level: int) -> Connect:
    """Read what follows the protocol level.

    Raises:
        CodecError: Anything wrong with the packet; `PROTOCOL_LEVEL` for a version that is not spoken here.
    """
    if level not in {Version.V311, Version.V5}:
        raise CodecError(Rule.PROTOCOL_LEVEL, f"level {level}")
    version = Version(level)
    flags, keep_alive_s = cursor.byte(), cursor.two_bytes()
    _check_flags(flags)
    packet = Connect(
        version=version,
        clean_start=bool(flags & CLEAN_START),
        keep_alive_s=keep_alive_s,
        properties=read_properties(cursor, PacketType.CONNECT) if version is Version.V5 else EMPTY,
        client_id=cursor.name(),  # the payload's fields in their order [MQTT-3.1.3-1]
        will=_read_will(cursor, flags, version) if flags & WILL_FLAG else None,
        user_name=cursor.name() if flags & USER_NAME else None,
        password=cursor.secret() if flags & PASSWORD else None,
    )
    cursor.finish()
    check_connect(packet)
    return packet


def _check_flags(flags: int) -> None:
    if flags & RESERVED:
        raise CodecError(Rule.CONNECT_RESERVED_FLAG)
    if flags & WILL_FLAG:
        return
    if flags >> WILL_QOS_SHIFT & 3:
        raise CodecError(Rule.WILL_QOS_WITHOUT_WILL)
    if flags & WILL_RETAIN:
        raise CodecError(Rule.WILL_RETAIN_WITHOUT_WILL)


def _read_will(cursor: Cursor, flags: int, version: Version) -> Will:
    will = Will(
        properties=read_properties(cursor, WILL) if version is Version.V5 else EMPTY,
        topic=cursor.name(),
        payload=cursor.binary(),
        qos=flags >> WILL_QOS_SHIFT & 3,
        retain=bool(flags & WILL_RETAIN),
    )
    check_will(will)
    return will


def write_connect(packet: Connect) -> bytes:
    """Write the body of a CONNECT, in the version that it names.

    Raises:
        CodecError: The packet breaks a rule.
    """
    check_connect(packet)
    parts = [put_text("MQTT"), put_byte(packet.version), put_byte(_flags(packet)), put_two_bytes(packet.keep_alive_s)]
    if packet.version is Version.V5:
        parts.append(write_properties(packet.properties, PacketType.CONNECT))
    parts.append(put_name(packet.client_id))
    if packet.will:
        parts.append(_write_will(packet.will, packet.version))
    if packet.user_name is not None:
        parts.append(put_name(packet.user_name))
    if packet.password is not None:
        parts.append(put_binary(packet.password))
    return b"".join(parts)


def _flags(packet: Connect) -> int:
    flags = CLEAN_START * packet.clean_start
    if packet.will:
        check_will(packet.will)
        flags |= WILL_FLAG | packet.will.qos << WILL_QOS_SHIFT | WILL_RETAIN * packet.will.retain
    if packet.user_name is not None:
        flags |= USER_NAME
    if packet.password is not None:
        flags |= PASSWORD
    return flags


def _write_will(will: Will, version: Version) -> bytes:
    properties = write_properties(will.properties, WILL) if version is Version.V5 else b""
    return properties + put_name(will.topic) + put_binary(will.payload)
