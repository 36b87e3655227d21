"""What of a batch is new, and the rows it becomes: the same for every backend that deduplicates itself.

Knows no database: a backend hands in what it holds of the batch's source and stores what comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from edge_protocol.events import deflate, event_ids, split_batch
from gateway.ports.bus import Batch, Forked, Span
from gateway.rules.framed import Packing, unframed
from gateway.rules.ranges import MAX_SEQUENCE, MAX_STREAMS, Interval, Misfit, Range, fit, runs

MAX_EVENTS = 1000  # a batch: fewer than a position has indexes


class Piece(msgspec.Struct, frozen=True, gc=False):
    """One row: a contiguous run of a batch's new events. `first` is 0 without a stream."""

    first: int
    count: int
    types: tuple[str, ...]
    body: bytes
    encoding: Packing


class Placed(msgspec.Struct, frozen=True, gc=False):
    """What a batch adds.

    Attributes:
        pieces: Its new rows, in order; empty for a pure repeat.
        new: How many events are in them.
        ranges: The stream's ranges afterwards (for a span).
        ids: Ids to remember (for events that brought ids of their own).
    """

    pieces: tuple[Piece, ...]
    new: int
    ranges: tuple[Range, ...] = ()
    ids: tuple[str, ...] = ()


def check(batch: Batch) -> None:
    """Refuse a batch that breaks its own contract, before it can reach a commit that it shares with others.

    Raises:
        ValueError: The caller's mistake; the message names the field.
    """
    if not 1 <= batch.count <= MAX_EVENTS:
        raise ValueError(f"count: expected 1 to {MAX_EVENTS}, found {batch.count}")
    if batch.ids and (batch.span or len(batch.ids) != batch.count):
        raise ValueError(f"ids: expected none or, without a span, {batch.count}; found {len(batch.ids)}")
    if not 0 <= batch.received_ms <= MAX_SEQUENCE:
        raise ValueError(f"received_ms: expected Unix milliseconds, found {batch.received_ms}")
    if not isinstance(batch.body, bytes):
        raise TypeError(f"body: expected bytes, found {type(batch.body).__name__}")
    texts = "".join(
        (batch.source, *batch.types, *batch.ids, *((batch.span.stream, batch.span.last_id) if batch.span else ()))
    )
    if b"\0" in texts.encode():
        raise ValueError("source, types, ids, stream: expected no NUL character")


def whole(batch: Batch, first: int = 0) -> Piece:
    """All of a batch as one row."""
    return Piece(first, batch.count, batch.types, batch.body, batch.encoding)


def place_span(batch: Batch, span: Span, streams: Mapping[str, tuple[Range, ...]]) -> Placed | Forked:
    """Place a batch of a stream, given all streams of its source (wire protocol, section 4)."""
    ranges = streams.get(span.stream)
    if ranges is None and len(streams) >= MAX_STREAMS:
        return Forked(f"the source has {MAX_STREAMS} streams already", "too-many-streams")
    result = fit(
        ranges or (),
        span.first,
        span.first + batch.count - 1,
        settled=span.settled,
        tail=span.last_id,
        id_of=lambda sequence: event_ids(*unframed(batch.body, batch.encoding))[sequence - span.first],
    )
    if isinstance(result, Misfit):
        return Forked(result.detail, result.rule)
    parts = [(first - span.first, last - span.first) for first, last in result.new]
    return Placed(_cut(batch, parts, span.first), _size(parts), ranges=result.ranges)


def place_plain(batch: Batch, is_seen: Callable[[str], bool]) -> Placed:
    """Place a batch without a stream; events with ids of their own are stored once within the window."""
    if not batch.ids:
        return Placed((whole(batch),), batch.count)
    fresh: dict[str, int] = {}
    for index, id_ in enumerate(batch.ids):
        if id_ not in fresh and not is_seen(id_):
            fresh[id_] = index
    return Placed(_cut(batch, runs(fresh.values()), None), len(fresh), ids=tuple(fresh))


def _size(parts: Sequence[Interval]) -> int:
    return sum(last - first + 1 for first, last in parts)


class _Type(msgspec.Struct):
    type: str


_typed = msgspec.json.Decoder(list[_Type])


def _cut(batch: Batch, parts: Sequence[Interval], sequence: int | None) -> tuple[Piece, ...]:
    if not parts:
        return ()
    if parts == [(0, batch.count - 1)]:
        return (whole(batch, sequence or 0),)
    body, encoding = unframed(batch.body, batch.encoding)
    texts = split_batch(body, encoding, parts)
    return tuple(
        Piece(
            first=0 if sequence is None else sequence + first,
            count=last - first + 1,
            types=tuple(sorted({event.type for event in _typed.decode(text)})),
            body=deflate(text) if encoding else text,
            encoding=encoding,
        )
        for (first, last), text in zip(parts, texts, strict=True)
    )
