"""A TLS server that lets every client in and then does nothing: what an idle connection costs at the least."""

from __future__ import annotations

import asyncio
import ssl
import sys
from typing import cast

import uvloop

from gateway.mqtt.codec import Connack, Version, encode


class _Bare(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if data[0] >> 4 == 1:  # CONNECT
            self._transport.write(encode(Connack(), Version.V311))


async def _serve(port: int, certificate: str, key: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = await asyncio.get_running_loop().create_server(_Bare, "127.0.0.1", port, ssl=context, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), sys.argv[2], sys.argv[3]))
