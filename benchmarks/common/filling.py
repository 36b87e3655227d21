"""Fills the store of a stopped gateway through the bus's own `append`: what ingest would have stored, at disk speed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from itertools import islice

import msgspec
import uvloop

from edge_protocol.ids import device_source
from gateway import parts
from gateway.config import Settings
from gateway.ports.bus import Batch, Span

_COMMIT = 2000  # batches


def fill(settings: Settings, count: int, *, devices: int = 16, events: int = 1, type_: str = "stored") -> None:
    """Append `count` events, in batches of `events`, of some devices in turn."""

    async def work() -> None:
        storage = await parts.open_storage(settings)
        try:
            batches = _batches(count // events, devices, events, type_)
            while some := list(islice(batches, _COMMIT)):
                await storage.bus.append(some)
        finally:
            await storage.aclose()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work())


def _batches(count: int, devices: int, events: int, type_: str) -> Iterator[Batch]:
    stream = f"{time.time_ns():x}"
    for n in range(count):
        number, first = n % devices, n // devices * events + 1
        ids = [f"{stream}-{number}-{first + m}" for m in range(events)]
        members = {"specversion": "1.0", "type": type_, "data": {"value": "x" * 150}}
        yield Batch(
            source=device_source(f"filled-{number}"),
            received_ms=int(time.time() * 1000),
            count=events,
            types=(type_,),
            body=msgspec.json.encode([{"id": id_, **members} for id_ in ids]),
            span=Span(stream=f"{stream}-{number}", first=first, settled=first - 1, last_id=ids[-1]),
        )
