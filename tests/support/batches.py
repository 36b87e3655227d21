"""Batches for tests of storage: bodies as ingest makes them, and a ledger that reads everything back."""

from __future__ import annotations

import msgspec

from edge_protocol.events import decode_stored, deflate
from gateway.ports.bus import Batch, Position, Span
from gateway.rules.framed import Frame, pack

NOW_MS = 1_700_000_000_000


def body_of(ids, type_="reading", pad=0):
    return msgspec.json.encode([{"specversion": "1.0", "id": i, "type": type_, "data": "x" * pad} for i in ids])


def span_batch(
    first, last, *, stream="s", settled=0, source="/devices/d", tag="", received_ms=NOW_MS, pack=False, pad=0
):
    ids = [f"{stream}-{n}{tag}" for n in range(first, last + 1)]
    body = body_of(ids, pad=pad)
    return Batch(
        source=source,
        received_ms=received_ms,
        count=len(ids),
        types=("reading",),
        body=deflate(body) if pack else body,
        encoding="deflate" if pack else "",
        span=Span(stream=stream, first=first, settled=settled, last_id=ids[-1]),
    )


def plain_batch(*ids, source="/devices/d", own_ids=True, received_ms=NOW_MS, type_="reading", pad=0):
    return Batch(
        source=source,
        received_ms=received_ms,
        count=len(ids),
        types=(type_,),
        body=body_of(ids, type_, pad),
        ids=tuple(ids) if own_ids else (),
    )


def framed_batch(*data, tag=0, source="/devices/d", type_="reading", received_ms=NOW_MS):
    """Events that differ in data (bytes of JSON) and in the last two digits of their ids, as a run is stored."""
    start = f'{{"specversion":"1.0","id":"01936c5c-0000-7000-8000-{tag:010x}'.encode()
    middle = f'","source":"{source}","type":"{type_}","data":'.encode()
    return Batch(
        source=source,
        received_ms=received_ms,
        count=len(data),
        types=(type_,),
        body=pack(Frame(start, middle, b"}"), data),
        encoding="framed",
    )


async def read_all(bus, after=0, max_bytes=1 << 20):
    """All rows from a position on, page by page."""
    rows, at = [], Position(after)
    while True:
        page = await bus.read(0, at, max_bytes=max_bytes)
        assert not page.damaged
        if not page.batches:
            return rows
        rows += page.batches
        at = page.next


async def ids_in(bus):
    """Ids of all stored events, in order."""
    rows = await read_all(bus)
    events = (
        decode_stored(row.body, row.encoding, source=row.source, stream=row.stream, first=row.first) for row in rows
    )
    return [event.id for batch in events for event in batch]
