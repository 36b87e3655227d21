"""A server that acknowledges without looking: what the generator reaches against it is the generator's ceiling.

It reads nothing but lengths: all packets of a connection have the same size, and identifiers run from 1 to the window.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop

from gateway.mqtt.codec import Connack, Version, encode, puback_ok


class _Blind(asyncio.Protocol):
    def __init__(self, packet_bytes: int, window: int) -> None:
        self._packet_bytes, self._window = packet_bytes, window
        self._acks = b"".join(puback_ok(1 + n % window) for n in range(2 * window))
        self._is_connected = False
        self._got = self._acknowledged = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if not self._is_connected:
            self._is_connected = True
            self._transport.write(encode(Connack(), Version.V311))
            return
        self._got += len(data)
        due = self._got // self._packet_bytes - self._acknowledged
        start = self._acknowledged % self._window * 4
        self._acknowledged += due
        self._transport.write(self._acks[start : start + 4 * due])


async def _serve(port: int, packet_bytes: int, window: int) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: _Blind(packet_bytes, window), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(*map(int, sys.argv[1:4])))
