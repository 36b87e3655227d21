"""Batches to a service that does everything wrong: what it took, it took in order; nothing is lost, whatever breaks."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
from collections import defaultdict
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from dispatch_bench import Bench, batch, ids, make_bench, until

from gateway.ports.target import TargetConfig
from gateway.rules.retry import RetryPolicy
from gateway.storage import open_storage
from gateway.targets import open_target

RETRY = RetryPolicy(max_attempts=10_000, first_s=0.005, max_s=0.02)
TIMEOUT_S = 0.3
AT_ONCE = struct.pack("ii", 1, 0)  # close with a reset


class Hostile:
    """An HTTP service by hand; while it is bad it answers a third of all requests in a way of its own."""

    WAYS = "reset", "read and reset", "close", "408", "500", "503", "garbage", "silence", "take and reset", "take half"

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.is_bad = True
        self.took: dict[str, list[str]] = defaultdict(list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._answer(reader, writer):
                pass
        except (EOFError, OSError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        way = self.chance.choice(self.WAYS) if self.is_bad and self.chance.random() < 0.3 else ""
        if way != "reset":
            body = await reader.readexactly(int(head.partition("content-length:")[2].split()[0]))
        if way.startswith("take") or not way:
            for event in json.loads(body):
                self.took[event["source"]].append(event["id"])
        if way.endswith("reset"):
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
        elif way == "silence":
            await asyncio.sleep(2 * TIMEOUT_S)
        elif way != "close":
            writer.write(self._said(way))
            await writer.drain()
        return not way or way.isdecimal()

    @staticmethod
    def _said(way: str) -> bytes:
        status = {"": b"204", "take half": b"200", "garbage": b"\xff"}.get(way, way.encode())
        length = {"": b"", "take half": b"Content-Length: 9\r\n"}.get(way, b"Content-Length: 0\r\n")
        return b"HTTP/1.1 %s X\r\n%s\r\n" % (status, length)


async def deliver_until_all_is_there(bench: Bench, service: Hostile, sent: dict[str, list[str]]) -> None:
    """Dispatchers come and go, some killed, while the service is bad; the last one finds it good."""
    for n in range(8):
        service.is_bad = n < 7
        async with bench.doomed() if n % 2 else bench.running():
            if service.is_bad:
                await asyncio.sleep(service.chance.uniform(0, 0.3))
                continue
            await until(lambda: all(set(sent[source]) <= set(service.took[source]) for source in sent), 60)
            while await bench.entries() or (await bench.store.subscriptions.list())[0].lag:  # noqa: ASYNC110 - likewise
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("ordering", ["device", "none"])
@pytest.mark.parametrize("seed", range(3))
async def test_nothing_is_lost_or_overtaken(tmp_path: Path, seed: int, ordering: str) -> None:
    """Resets, half answers, garbage, silence, outages, and crashes of ours in between: all arrives, in order per device."""
    chance = random.Random(seed)
    service = Hostile(chance)
    server = await asyncio.start_server(service.serve, "127.0.0.1")
    store = await open_storage(f"sqlite:///{tmp_path}/bus.db", min_free_disk_bytes=0)
    size = chance.choice((2, 7, 50))
    bench = await make_bench(store, batch=size, ordering=ordering, concurrency=4, retry=RETRY, window_events=50)
    url = urlsplit(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
    bench.target = await open_target(TargetConfig(handler="orders", url=url, batch=size, timeout_s=TIMEOUT_S))  # type: ignore[assignment]  # the real one
    try:
        await bench.append(*(batch(device, n, 5) for n in range(1, 51, 5) for device in "abc"))
        sent = {f"/devices/{device}": ids(device, 1, 50) for device in "abc"}
        await deliver_until_all_is_there(bench, service, sent)
    finally:
        await bench.target.aclose()
        await store.aclose()
        server.close()
    for source, expected in sent.items():
        took = list(dict.fromkeys(service.took[source]))
        assert took == expected or (ordering == "none" and sorted(took) == sorted(expected))
