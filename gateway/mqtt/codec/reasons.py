"""The names of MQTT: versions, packet types and reason codes, and which packet may carry which code from whom.

Owns the tables only; what a code asks of a connection is not known here. MQTT 3.1.1 has no reason codes: its CONNACK
return codes and SUBACK failure are written from, and read as, the nearest codes of 5.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Final, Literal

Side = Literal["client", "server"]


class Version(IntEnum):
    """Protocol level in CONNECT (3.1.2.2)."""

    V311 = 4
    V5 = 5


class PacketType(IntEnum):
    """Control packet type, the upper four bits of a packet (2.1.2). Zero is reserved."""

    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    PUBREC = 5
    PUBREL = 6
    PUBCOMP = 7
    SUBSCRIBE = 8
    SUBACK = 9
    UNSUBSCRIBE = 10
    UNSUBACK = 11
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14
    AUTH = 15


class ReasonCode(IntEnum):
    """Reason codes of MQTT 5.0 (2.4); from 0x80 on they are failures. 0x00 has three names, by packet."""

    SUCCESS = 0x00
    NORMAL_DISCONNECTION = 0x00
    GRANTED_QOS_0 = 0x00
    GRANTED_QOS_1 = 0x01
    GRANTED_QOS_2 = 0x02
    DISCONNECT_WITH_WILL_MESSAGE = 0x04
    NO_MATCHING_SUBSCRIBERS = 0x10
    NO_SUBSCRIPTION_EXISTED = 0x11
    CONTINUE_AUTHENTICATION = 0x18
    RE_AUTHENTICATE = 0x19
    UNSPECIFIED_ERROR = 0x80
    MALFORMED_PACKET = 0x81
    PROTOCOL_ERROR = 0x82
    IMPLEMENTATION_SPECIFIC_ERROR = 0x83
    UNSUPPORTED_PROTOCOL_VERSION = 0x84
    CLIENT_IDENTIFIER_NOT_VALID = 0x85
    BAD_USER_NAME_OR_PASSWORD = 0x86
    NOT_AUTHORIZED = 0x87
    SERVER_UNAVAILABLE = 0x88
    SERVER_BUSY = 0x89
    BANNED = 0x8A
    SERVER_SHUTTING_DOWN = 0x8B
    BAD_AUTHENTICATION_METHOD = 0x8C
    KEEP_ALIVE_TIMEOUT = 0x8D
    SESSION_TAKEN_OVER = 0x8E
    TOPIC_FILTER_INVALID = 0x8F
    TOPIC_NAME_INVALID = 0x90
    PACKET_IDENTIFIER_IN_USE = 0x91
    PACKET_IDENTIFIER_NOT_FOUND = 0x92
    RECEIVE_MAXIMUM_EXCEEDED = 0x93
    TOPIC_ALIAS_INVALID = 0x94
    PACKET_TOO_LARGE = 0x95
    MESSAGE_RATE_TOO_HIGH = 0x96
    QUOTA_EXCEEDED = 0x97
    ADMINISTRATIVE_ACTION = 0x98
    PAYLOAD_FORMAT_INVALID = 0x99
    RETAIN_NOT_SUPPORTED = 0x9A
    QOS_NOT_SUPPORTED = 0x9B
    USE_ANOTHER_SERVER = 0x9C
    SERVER_MOVED = 0x9D
    SHARED_SUBSCRIPTIONS_NOT_SUPPORTED = 0x9E
    CONNECTION_RATE_EXCEEDED = 0x9F
    MAXIMUM_CONNECT_TIME = 0xA0
    SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED = 0xA1
    WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED = 0xA2


Codes = Mapping[int, ReasonCode]


def _codes(*values: int) -> Codes:
    return {value: ReasonCode(value) for value in values}


_PUBLISH: Final = _codes(0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99)
_RELEASE: Final = _codes(0x00, 0x92)
_CONNACK: Final = _codes(
    0x00, *range(0x80, 0x8B), 0x8C, 0x90, 0x95, 0x97, 0x99, 0x9A, 0x9B, 0x9C, 0x9D, 0x9F
)  # fmt: skip
_SUBACK: Final = _codes(0x00, 0x01, 0x02, 0x80, 0x83, 0x87, 0x8F, 0x91, 0x97, 0x9E, 0xA1, 0xA2)
_UNSUBACK: Final = _codes(0x00, 0x11, 0x80, 0x83, 0x87, 0x8F, 0x91)
_DISCONNECT_BOTH: Final = (*range(0x80, 0x84), 0x90, *range(0x93, 0x9A))

REASON_CODES: Final[Mapping[PacketType, Mapping[Side, Codes]]] = {
    PacketType.CONNACK: {"server": _CONNACK},
    PacketType.PUBACK: {"client": _PUBLISH, "server": _PUBLISH},  # 0x10 from a client makes no sense, and no harm
    PacketType.PUBREC: {"client": _PUBLISH, "server": _PUBLISH},
    PacketType.PUBREL: {"client": _RELEASE, "server": _RELEASE},
    PacketType.PUBCOMP: {"client": _RELEASE, "server": _RELEASE},
    PacketType.SUBACK: {"server": _SUBACK},
    PacketType.UNSUBACK: {"server": _UNSUBACK},
    PacketType.DISCONNECT: {
        "client": _codes(0x00, 0x04, *_DISCONNECT_BOTH),
        "server": _codes(0x87, 0x89, 0x8B, 0x8D, 0x8E, 0x8F, *range(0x9A, 0xA3), *_DISCONNECT_BOTH),
    },
    PacketType.AUTH: {"client": _codes(0x18, 0x19), "server": _codes(0x00, 0x18)},
}
"""Which codes each packet may carry, by who sent it (3.x.2.1; tables 3-10 and 3-11 for DISCONNECT and AUTH)."""

SUBACK_311: Final = _codes(0x00, 0x01, 0x02, 0x80)
"""The return codes of SUBACK in 3.1.1 [MQTT-3.9.3-2]; every failure is 0x80."""

CONNACK_311: Final[Codes] = {
    0: ReasonCode.SUCCESS,
    1: ReasonCode.UNSUPPORTED_PROTOCOL_VERSION,
    2: ReasonCode.CLIENT_IDENTIFIER_NOT_VALID,
    3: ReasonCode.SERVER_UNAVAILABLE,
    4: ReasonCode.BAD_USER_NAME_OR_PASSWORD,
    5: ReasonCode.NOT_AUTHORIZED,
}
"""Connect return codes of 3.1.1 (table 3.1), as codes of 5.0."""

RETURN_CODES_311: Final[Mapping[ReasonCode, int]] = {
    **{reason: code for code, reason in CONNACK_311.items()},
    **dict.fromkeys((ReasonCode.SERVER_BUSY, ReasonCode.QUOTA_EXCEEDED, ReasonCode.CONNECTION_RATE_EXCEEDED), 3),
    **dict.fromkeys((ReasonCode.USE_ANOTHER_SERVER, ReasonCode.SERVER_MOVED, ReasonCode.UNSPECIFIED_ERROR), 3),
    ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR: 3,
}
"""The way back: a refusal of 5.0 in 3.1.1's words. What is not named here is 5, not authorized."""
