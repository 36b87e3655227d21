"""The first byte of a packet: which types each side sends, and the flags that belong to them (section 2.1).

A byte is looked up in a set made beforehand; only a refused one is taken apart, to say what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Final

from gateway.mqtt.codec.faults import CodecError, Rule
from gateway.mqtt.codec.packets import Publish
from gateway.mqtt.codec.reasons import PacketType, Side, Version

_P = PacketType
_BOTH: Final = {_P.PUBLISH, _P.PUBACK, _P.PUBREC, _P.PUBREL, _P.PUBCOMP}
_SENDS: Final[dict[tuple[Side, Version | None], AbstractSet[PacketType]]] = {
    ("client", None): {_P.CONNECT},
    ("client", Version.V311): _BOTH | {_P.SUBSCRIBE, _P.UNSUBSCRIBE, _P.PINGREQ, _P.DISCONNECT},
    ("client", Version.V5): _BOTH | {_P.SUBSCRIBE, _P.UNSUBSCRIBE, _P.PINGREQ, _P.DISCONNECT, _P.AUTH},
    ("server", Version.V311): _BOTH | {_P.CONNACK, _P.SUBACK, _P.UNSUBACK, _P.PINGRESP},
    ("server", Version.V5): _BOTH | {_P.CONNACK, _P.SUBACK, _P.UNSUBACK, _P.PINGRESP, _P.DISCONNECT, _P.AUTH},
}
"""Table 2-1, after CONNECT; a client without a version has not sent it yet."""

_FLAGS_2: Final = {_P.PUBREL, _P.SUBSCRIBE, _P.UNSUBSCRIBE}
_PUBLISH_FLAGS: Final = frozenset(flags for flags in range(16) if flags & 6 != 6 and flags & 0xE != 8)


def first_byte(kind: PacketType) -> int:
    """The first byte of a packet other than PUBLISH, whose flags are its own (table 2-2)."""
    return kind << 4 | (2 if kind in _FLAGS_2 else 0)


def publish_first_byte(packet: Publish) -> int:
    """The first byte of a PUBLISH: type, DUP, QoS, RETAIN (3.3.1)."""
    return _P.PUBLISH << 4 | packet.dup << 3 | packet.qos << 1 | packet.retain


def _first_bytes(kinds: AbstractSet[PacketType]) -> frozenset[int]:
    publish = {_P.PUBLISH << 4 | flags for flags in _PUBLISH_FLAGS if _P.PUBLISH in kinds}
    return frozenset({first_byte(kind) for kind in kinds - {_P.PUBLISH}} | publish)


FIRST_BYTES: Final = {key: _first_bytes(kinds) for key, kinds in _SENDS.items()}
"""What a packet may begin with, by who sends and the version spoken."""


def refuse_first_byte(first: int, sender: Side, version: Version | None) -> CodecError:
    """Say what is wrong with a first byte that is not in `FIRST_BYTES`."""
    kind, flags = first >> 4, first & 0xF
    if version is None and kind != PacketType.CONNECT:
        return CodecError(Rule.FIRST_PACKET)
    if kind == 0 or (kind == PacketType.AUTH and version is Version.V311):
        return CodecError(Rule.RESERVED_TYPE, f"{kind}")
    name = PacketType(kind).name
    if kind == PacketType.CONNECT and version and sender == "client":
        return CodecError(Rule.SECOND_CONNECT)
    if kind not in _SENDS[sender, version]:
        return CodecError(Rule.WRONG_DIRECTION, f"{name} from a {sender}")
    if kind == PacketType.PUBLISH:
        return CodecError(Rule.QOS_3 if flags & 6 == 6 else Rule.DUP_AT_QOS_0)
    return CodecError(Rule.RESERVED_FLAGS, f"0x{flags:X} in {name}")
