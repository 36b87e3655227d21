"""The data types of MQTT (section 1.5): integers, variable byte integers, strings, binary data.

`Cursor` reads them from one packet, the `put_*` functions write them. Both check what the type itself demands, and know
nothing of packets.
"""

from __future__ import annotations

from typing import Final
from unicodedata import category

from gateway.mqtt.codec.faults import CodecError, Rule

MAX_VARINT: Final = 268_435_455
"""Largest variable byte integer: four bytes of seven bits (1.5.5)."""

MAX_FIELD_BYTES: Final = 65_535
"""Longest string or binary data: its length is a two byte integer (1.5.4, 1.5.6)."""


class Secret(bytes):
    """Bytes that prove an identity (a password, authentication data): never shown."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__


def decode_text(data: bytes) -> str:
    """Read UTF-8 as MQTT wants it: no surrogates, no overlong forms, no U+0000; U+FEFF stays [MQTT-1.5.4-3].

    Raises:
        CodecError: `UTF8_ILL_FORMED`, `UTF8_NUL`.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as exc:
        raise CodecError(Rule.UTF8_ILL_FORMED, f"at byte {exc.start}") from None
    if "\0" in text:
        raise CodecError(Rule.UTF8_NUL)
    return text


def decode_name(data: bytes) -> str:
    """Read a string that names something: a client, a user, topics.

    Raises:
        CodecError: As `decode_text`, and `CONTROL_CHARACTER`.
    """
    return _check_name(decode_text(data))


def _check_name(text: str) -> str:
    """Give back a name without control characters: they may be refused (1.5.4), and would reach logs and terminals."""
    if not text.isprintable():  # nearly all are, and this is the faster look
        for character in text:
            if category(character) == "Cc":
                raise CodecError(Rule.CONTROL_CHARACTER, f"U+{ord(character):04X}")
    return text


class Cursor:
    """Reads one packet's body field by field; every read checks that the field is there."""

    __slots__ = ("data", "position")

    def __init__(self, data: bytes, position: int = 0) -> None:
        self.data = data
        self.position = position

    @property
    def at_end(self) -> bool:
        """Whether every byte has been read."""
        return self.position == len(self.data)

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        start, end = self.position, self.position + size
        if end > len(self.data):
            raise CodecError(Rule.TRUNCATED, f"{size} bytes wanted at byte {start} of {len(self.data)}")
        self.position = end
        return self.data[start:end]

    def byte(self) -> int:
        """A byte."""
        return self.take(1)[0]

    def two_bytes(self) -> int:
        """A two byte integer (1.5.2)."""
        return int.from_bytes(self.take(2))

    def four_bytes(self) -> int:
        """A four byte integer (1.5.3)."""
        return int.from_bytes(self.take(4))

    def varint(self) -> int:
        """A variable byte integer, in as few bytes as possible [MQTT-1.5.5-1]."""
        value = 0
        for shift in (0, 7, 14, 21):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if shift and not byte:
                    raise CodecError(Rule.VARINT_NOT_MINIMAL)
                return value
        raise CodecError(Rule.VARINT_TOO_LONG)

    def binary(self) -> bytes:
        """Binary data (1.5.6)."""
        return self.take(self.two_bytes())

    def secret(self) -> Secret:
        """Binary data that must not be shown."""
        return Secret(self.binary())

    def text(self) -> str:
        """A UTF-8 string (1.5.4)."""
        return decode_text(self.binary())

    def name(self) -> str:
        """A UTF-8 string that names something."""
        return decode_name(self.binary())

    def pair(self) -> tuple[str, str]:
        """A pair of strings (1.5.7)."""
        return self.text(), self.text()

    def packet_id(self) -> int:
        """A packet identifier, which is never 0 [MQTT-2.2.1-3]."""
        return check_packet_id(self.two_bytes())

    def rest(self) -> bytes:
        """All bytes that are left."""
        return self.take(len(self.data) - self.position)

    def finish(self) -> None:
        """Check that nothing follows the last field."""
        if not self.at_end:
            raise CodecError(Rule.TRAILING_BYTES, f"{len(self.data) - self.position} of {len(self.data)}")


def check_packet_id(packet_id: int) -> int:
    """Give back a packet identifier that is not 0."""
    if not packet_id:
        raise CodecError(Rule.PACKET_ID_ZERO)
    return packet_id


def _put_integer(value: int, size: int) -> bytes:
    try:
        return value.to_bytes(size)
    except OverflowError:
        raise CodecError(Rule.INTEGER_RANGE, f"{value} in {size} bytes") from None


def put_byte(value: int) -> bytes:
    """Write a byte."""
    return _put_integer(value, 1)


def put_two_bytes(value: int) -> bytes:
    """Write a two byte integer."""
    return _put_integer(value, 2)


def put_four_bytes(value: int) -> bytes:
    """Write a four byte integer."""
    return _put_integer(value, 4)


def put_varint(value: int) -> bytes:
    """Write a variable byte integer in as few bytes as possible."""
    if 0 <= value < 0x80:
        return value.to_bytes()
    if not 0 <= value <= MAX_VARINT:
        raise CodecError(Rule.INTEGER_RANGE, f"{value} as a variable byte integer")
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def put_binary(value: bytes) -> bytes:
    """Write binary data."""
    if len(value) > MAX_FIELD_BYTES:
        raise CodecError(Rule.FIELD_TOO_LONG, f"{len(value)} bytes")
    return len(value).to_bytes(2) + value


def put_text(value: str) -> bytes:
    """Write a UTF-8 string."""
    if "\0" in value:
        raise CodecError(Rule.UTF8_NUL)
    try:
        return put_binary(value.encode())
    except UnicodeEncodeError:
        raise CodecError(Rule.UTF8_ILL_FORMED, "a surrogate") from None


def put_name(value: str) -> bytes:
    """Write a UTF-8 string that names something."""
    data = put_text(value)
    _check_name(value)
    return data


def put_pair(value: tuple[str, str]) -> bytes:
    """Write a pair of strings."""
    return put_text(value[0]) + put_text(value[1])
