"""A closed-loop JetStream publisher over NATS's own client protocol, as lean as our MQTT generator.

Publishes and their acknowledgements are text lines; every connection has an inbox, and each acknowledgement is one MSG.
"""

from __future__ import annotations

import asyncio
import json
import time
from functools import partial
from typing import cast

import uvloop

_WINDOW = 64


class _Publisher(asyncio.Protocol):
    """One connection."""

    def __init__(self, number: int, payload: bytes) -> None:
        self._inbox = f"_INBOX.bench{number}"
        head = f"PUB bench.{number} {self._inbox}.1 {len(payload)}\r\n".encode()
        self._publish = head + payload + b"\r\n"
        self.acknowledged = 0
        self._sent = 0
        self._deadline = 0.0
        self.ready = asyncio.get_running_loop().create_future()
        self.done = asyncio.get_running_loop().create_future()
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        hello = {"verbose": False, "pedantic": False, "headers": True, "no_responders": True}
        self._transport.write(f"CONNECT {json.dumps(hello)}\r\nSUB {self._inbox}.* 1\r\nPING\r\n".encode())

    def request(self, subject: str, body: bytes) -> asyncio.Future[bytes]:
        """Ask the server's API, before the load."""
        self.answer = asyncio.get_running_loop().create_future()
        self._transport.write(f"PUB {subject} {self._inbox}.api {len(body)}\r\n".encode() + body + b"\r\n")
        return self.answer

    def begin(self, seconds: float) -> None:
        self._deadline = time.perf_counter() + seconds
        self._send(_WINDOW)

    def _send(self, count: int) -> None:
        self._sent += count
        self._transport.write(self._publish * count)

    def data_received(self, data: bytes) -> None:
        if not self.ready.done():
            if b"PONG\r\n" in data:
                self.ready.set_result(None)
            return
        if not self._deadline:
            self._tail += data
            if self._tail.endswith(b"}\r\n"):
                answer, self._tail = self._tail, b""
                self.answer.set_result(answer)
            return
        if b"PING\r\n" in data:
            self._transport.write(b"PONG\r\n")
        count = (self._tail + data).count(b"\nMSG ") + (data[:4] == b"MSG " and not self._tail)
        self._tail = data[-4:]
        self.acknowledged += count
        if time.perf_counter() < self._deadline:
            self._send(count)
        elif self.acknowledged >= self._sent and not self.done.done():
            self.done.set_result(None)


def publish_rate(port: int, *, connections: int, size: int, seconds: float) -> float:
    """Publishes a second that a JetStream acknowledges; the stream is made anew."""

    async def measure() -> float:
        loop = asyncio.get_running_loop()
        made = [
            await loop.create_connection(partial(_Publisher, n, b"x" * size), "127.0.0.1", port)
            for n in range(connections)
        ]
        publishers = [publisher for _, publisher in made]
        await asyncio.gather(*(publisher.ready for publisher in publishers))
        await publishers[0].request("$JS.API.STREAM.DELETE.bench", b"")
        stream = {"name": "bench", "subjects": ["bench.*"], "storage": "file", "retention": "limits"}
        answer = await publishers[0].request("$JS.API.STREAM.CREATE.bench", json.dumps(stream).encode())
        assert b'"error"' not in answer, answer
        start = time.perf_counter()
        for publisher in publishers:
            publisher.begin(seconds)
        async with asyncio.timeout(seconds + 30):
            await asyncio.gather(*(publisher.done for publisher in publishers))
        elapsed = time.perf_counter() - start
        for transport, _ in made:
            transport.close()
        return sum(publisher.acknowledged for publisher in publishers) / elapsed

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(measure())
