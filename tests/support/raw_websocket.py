"""A WebSocket client of single frames, written from RFC 6455 alone: it can also do what no client should."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import struct
from contextlib import suppress

from mqtt_kit import connect

from gateway.mqtt.codec import Decoder, Packet, Version, encode

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class RawWebSocket:
    """One connection, after its handshake unless that was refused."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.status = 0
        self.headers: dict[str, str] = {}
        self.decoder = Decoder(role="client", version=Version.V5)
        self.packets: list[Packet] = []

    @classmethod
    async def open(cls, port: int, *, request: bytes | None = None, **options: object) -> RawWebSocket:
        """Connect and shake hands; `status` tells how that ended."""
        behind = options.pop("behind", b"")
        headers = options.pop("headers", {})
        reader, writer = await asyncio.open_connection("localhost", port, **options)
        raw = cls(reader, writer)
        key = base64.b64encode(os.urandom(16))
        writer.write((upgrade(port, key, **headers) if request is None else request) + behind)
        with suppress(asyncio.IncompleteReadError):
            await raw._read_answer()
        if raw.status == 101 and request is None:
            digest = base64.b64encode(hashlib.sha1(key + _GUID).digest()).decode()
            assert raw.headers["sec-websocket-accept"] == digest
        return raw

    async def _read_answer(self) -> None:
        async with asyncio.timeout(5):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.splitlines()
        self.status = int(first.split()[1])
        self.headers = {line.partition(": ")[0].lower(): line.partition(": ")[2] for line in lines if line}

    def frame(self, opcode: int, payload: bytes = b"", **options: object) -> None:
        self.writer.write(frame(opcode, payload, **options))

    def send(self, *packets: Packet) -> None:
        self.frame(BINARY, b"".join(encode(packet, Version.V5) for packet in packets))

    async def read_frame(self) -> tuple[int, bytes] | None:
        """The next frame; None once the server has closed."""
        try:
            async with asyncio.timeout(5):
                opcode, size = await self.reader.readexactly(2)
                assert opcode & 0x80, "the server fragments nothing"
                assert size < 128, "the server masks nothing"
                if size > 125:
                    width = 2 if size == 126 else 8
                    size = int.from_bytes(await self.reader.readexactly(width), "big")
                return opcode & 15, await self.reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionResetError):
            return None

    async def read(self) -> Packet:
        """The next MQTT packet."""
        while not self.packets:
            found = await self.read_frame()
            assert found is not None
            assert found[0] == BINARY, found
            self.packets += self.decoder.feed(found[1])
        return self.packets.pop(0)

    async def connect(self, client_id: str = "dev1", **options: object) -> Packet:
        self.send(connect(client_id, **options))
        return await self.read()

    async def closed(self) -> int | None:
        """The code of the server's Close, after which it must hang up; None without one."""
        code = None
        while (found := await self.read_frame()) is not None:
            if found[0] == CLOSE:
                code = struct.unpack("!H", found[1][:2])[0]
                self.frame(CLOSE, found[1][:2])
        return code

    async def aclose(self) -> None:
        self.writer.close()
        with suppress(OSError):
            await self.writer.wait_closed()


def upgrade(port: int, key: bytes, **headers: str | None) -> bytes:
    """The request of a client's handshake; a header of None is left out, `target` is the path."""
    fields = {
        "Host": f"localhost:{port}",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": key.decode(),
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Protocol": "mqtt",
    }
    target = headers.pop("target", "/mqtt")
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{name}: {value}" for name, value in fields.items() if value is not None]
    return "\r\n".join([f"GET {target} HTTP/1.1", *lines, "", ""]).encode()


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, mask: bytes | None = b"abcd", rsv: int = 0) -> bytes:
    first = opcode | rsv << 4 | (0x80 if fin else 0)
    size = len(payload)
    masked = 0x80 if mask else 0
    head = struct.pack("!BB", first, masked | min(size, 126 if size < 1 << 16 else 127)) if size > 125 else b""
    head = (
        head + struct.pack("!H" if size < 1 << 16 else "!Q", size)
        if size > 125
        else struct.pack("!BB", first, masked | size)
    )
    if mask:
        payload = bytes(byte ^ mask[n % 4] for n, byte in enumerate(payload))
    return head + (mask or b"") + payload
