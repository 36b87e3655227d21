"""A stream of bytes to packets, however the network cut it: buffering, lengths, and the bounds on both.

Owns what is buffered and the version that CONNECT chose; what a packet's body says is read elsewhere (`reader`).

Strategy: packets are cut straight from the bytes that were fed as long as nothing is left over; only a partial packet
moves to a growing bytearray. `_wanted` is how many bytes the next step needs, so a packet that arrives byte by byte is
not looked at again for each, and every byte is copied a fixed number of times.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from gateway.mqtt.codec.connect import read_connect, read_protocol, version_to_answer
from gateway.mqtt.codec.faults import CodecError, Rule
from gateway.mqtt.codec.headers import FIRST_BYTES, refuse_first_byte
from gateway.mqtt.codec.packets import Connect, Packet, Publish, PublishRun
from gateway.mqtt.codec.reader import read_packet
from gateway.mqtt.codec.reasons import Side, Version
from gateway.mqtt.codec.runs import MAX_PUBLISHES, cut, is_followed, shape_of
from gateway.mqtt.codec.wire import Cursor

MAX_CONNECT_BYTES: Final = 16 * 1024
"""Largest CONNECT: nothing is known of its sender yet (wire protocol, section 2)."""

MAX_PACKET_BYTES: Final = 2 * 1024 * 1024
"""Default bound: an envelope of 1 MiB with room for topic and properties."""

_HEADER_BYTES: Final = 5  # longest fixed header: the first byte and four of remaining length (2.1)


class Decoder:
    """Turns what one connection receives into packets.

    Attributes:
        version: What CONNECT asked for, or, when that is not spoken here, in which version to answer the refusal; None
            until it is known. A refused CONNECT is answered if this is set, and the connection closed without a word if not.
    """

    def __init__(
        self,
        *,
        role: Side = "server",
        version: Version | None = None,
        max_packet_bytes: int = MAX_PACKET_BYTES,
        max_connect_bytes: int = MAX_CONNECT_BYTES,
    ) -> None:
        """Begin at the start of a connection, or behind its CONNECT when a version is given.

        Args:
            role: Which side this is: a server refuses what only servers send, and the other way round.
            version: Needed by a client, who chose it.
            max_packet_bytes: Largest packet, fixed header included (3.2.2.3.6).
            max_connect_bytes: Largest CONNECT, fixed header included.
        """
        if role == "client" and version is None:
            raise ValueError("a client knows its version: expected V311 or V5, found None")
        self._sender: Side = "client" if role == "server" else "server"
        self._limit = max_connect_bytes
        self._max_packet_bytes = max_packet_bytes
        self._buffer: bytes | bytearray = b""
        self._start = 0
        self._last = slice(0), 0  # where the packet given out last is, and where its body begins
        self._wanted = 1
        self._broken: tuple[Rule, str] | None = None
        self._enter(version)

    def _enter(self, version: Version | None) -> None:
        """Expect what may come in a version; before CONNECT, None, only that."""
        self.version = self._spoken = version
        self._first_bytes = FIRST_BYTES[self._sender, version]
        if version:
            self._limit = self._max_packet_bytes

    @property
    def buffered_bytes(self) -> int:
        """Bytes that were fed and not yet given out as packets."""
        return len(self._buffer) - self._start

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[Packet]:
        """Take bytes and give out the packets they complete, one by one.

        The bytes are taken at once, packets are read as they are asked for: those before a bad one come out whole, and
        whoever stops in between finds the rest at the next call, which may feed nothing.

        Raises:
            CodecError: While iterating: the stream is broken here; nothing behind it is readable, and every later call
                raises the same. A packet over the bound is refused by its length, before its body has arrived.
        """
        if self._broken is None and data:
            self._take(data)
        return self._packets()

    def run(self, packet: Publish, *, most: int = MAX_PUBLISHES) -> PublishRun | None:
        """Take what follows a PUBLISH and is like it, at once.

        Args:
            packet: What was given out last; nothing was fed since.
            most: How many packets at most, this one included.

        Returns:
            The packet and those behind it that differ in identifier and payload only; None if there is none.
        """
        if self._start == len(self._buffer) or most < 2:
            return None
        self._buffer = buffer = bytes(self._buffer)
        where, body_at = self._last
        if not is_followed(buffer, self._start, where.start + body_at):
            return None
        shape = shape_of(packet, buffer[where], body_at)
        count = min(most, MAX_PUBLISHES) - 1
        ids, payloads, self._start = cut(buffer, self._start, shape, most=count, max_bytes=self._limit)
        if not payloads:
            return None
        ids = [packet.packet_id.to_bytes(2), *ids] if packet.qos else []
        return PublishRun(first=packet, packet_ids=ids, payloads=[packet.payload, *payloads])

    def _take(self, data: bytes | bytearray | memoryview) -> None:
        self._drop_read()
        if self._buffer:
            self._buffer += data
        else:
            self._buffer = bytes(data)

    def _drop_read(self) -> None:
        """Keep only what has not been read, in a form that grows without copying."""
        if self._start == len(self._buffer):
            self._buffer = b""
        elif isinstance(self._buffer, bytearray):
            del self._buffer[: self._start]
        else:
            self._buffer = bytearray(memoryview(self._buffer)[self._start :])
        self._start = 0

    def _packets(self) -> Iterator[Packet]:
        try:
            if self._broken:
                raise CodecError(*self._broken)
            while (packet := self._next()) is not None:
                yield packet
            self._drop_read()
        except CodecError as error:
            self._broken = error.rule, error.detail  # not the error: its traceback would keep this frame alive
            self._buffer, self._start = b"", 0
            raise

    def _next(self) -> Packet | None:
        """The next packet, if all of it is here."""
        buffer, start = self._buffer, self._start
        available = len(buffer) - start
        if available < self._wanted:
            return None
        first = buffer[start]
        if first not in self._first_bytes:
            raise refuse_first_byte(first, self._sender, self._spoken)
        where = self._find_body(buffer, start, available)
        if where is None:
            return None
        self._start, self._wanted = where.stop, 1
        self._last = slice(start, where.stop), where.start - start
        body = bytes(buffer[where])
        return read_packet(first, body, self._spoken, self._sender) if self._spoken else self._read_connect(body)

    def _find_body(self, buffer: bytes | bytearray, start: int, available: int) -> slice | None:
        """Where the body of the packet at `start` is; None, and how many bytes to wait for, while it is not all here."""
        length_and_size = _remaining_length(buffer[start + 1 : start + _HEADER_BYTES])
        if length_and_size is None:
            self._wanted = available + 1
            return None
        length, size = length_and_size
        total = 1 + size + length
        if total > self._limit:
            raise CodecError(Rule.PACKET_TOO_LARGE, f"{total} bytes, limit {self._limit}")
        if available < total:
            self._wanted = total
            return None
        return slice(start + 1 + size, start + total)

    def _read_connect(self, body: bytes) -> Connect:
        cursor = Cursor(body)
        level = read_protocol(cursor)
        self.version = version_to_answer(level)
        packet = read_connect(cursor, level)
        self._enter(packet.version)
        return packet


def _remaining_length(data: bytes | bytearray) -> tuple[int, int] | None:
    """Read a remaining length (2.1.4) and how many bytes it has; None when it goes on behind `data`."""
    value = 0
    for index, byte in enumerate(data):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            if index and not byte:
                raise CodecError(Rule.VARINT_NOT_MINIMAL, "remaining length")
            return value, index + 1
    if len(data) == _HEADER_BYTES - 1:
        raise CodecError(Rule.LENGTH_OVER_4_BYTES)
    return None
