"""An HTTP server that answers every request with 204, as cheaply as Python can, so that the client is what is measured.

It tells how many events it took at `GET /`, one a request or those of a JSON batch; it understands only requests with a
Content-Length.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop

_DONE = b"HTTP/1.1 204 No Content\r\n\r\n"
_seen = 0


class _Sink(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        global _seen  # noqa: PLW0603  # the one number of this program
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            at = head.find(b"content-length:")
            size = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._buffer) < end + 4 + size:
                return
            events = self._buffer.count(b'"specversion"', end, end + 4 + size) or 1
            self._buffer = self._buffer[end + 4 + size :]
            if head.startswith(b"get "):
                body = str(_seen).encode()
                self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            else:
                _seen += events
                self._transport.write(_DONE)


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Sink, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
