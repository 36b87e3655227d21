"""gateway.rules.batching: bounds of a request by count and bytes; the key of a composition."""

from __future__ import annotations

from collections import deque

import msgspec
import pytest

from edge_protocol.events import Event, encode_batch, encode_event
from gateway.rules.batching import MAX_BATCH_BYTES, Batch, gather
from gateway.rules.delivery import Item, Lane
from gateway.rules.idempotency import batch_key


def _lane(*sizes: int) -> Lane:
    lane = Lane("s", "/devices/a")
    events = (
        Event(id=str(n), source="/devices/a", type="t", payload=b'"' + b"x" * size + b'"')
        for n, size in enumerate(sizes)
    )
    lane.queue = deque(Item(lane, None, n, event, 0, received_ms=None) for n, event in enumerate(events))
    return lane


def _gather(lane: Lane, most: int) -> Batch | None:
    first = lane.queue.popleft()
    return gather(first, lambda: lane if lane.queue else None, most)


@pytest.mark.parametrize(("ready", "taken"), [(2, 2), (3, 3), (4, 3)])
def test_count_is_bounded(ready: int, taken: int) -> None:
    """A batch of at most three takes three; what is left stays in its queue."""
    lane = _lane(*[1] * ready)
    batch = _gather(lane, 3)
    assert batch is not None
    assert [item.position for item in batch.items] == list(range(taken))
    assert len(lane.queue) == ready - taken


@pytest.mark.parametrize(("more", "taken"), [(-1, 2), (0, 2), (1, 1)])
def test_bytes_are_bounded(more: int, taken: int) -> None:
    """The JSON batch has at most 1 MiB, to the byte; attributes and brackets count."""
    lane = _lane(1000, 0)
    spare = MAX_BATCH_BYTES - len(encode_batch(encode_event(item.event) for item in lane.queue))
    lane = _lane(1000, spare + more)
    batch = _gather(lane, 10)
    assert (1 if batch is None else len(batch.items)) == taken
    assert len(lane.queue) == 2 - taken
    if batch is not None:
        assert len(encode_batch(batch.texts)) == MAX_BATCH_BYTES + more
        assert [each["id"] for each in msgspec.json.decode(encode_batch(batch.texts))] == ["0", "1"]


def test_event_beyond_the_bound_goes_alone() -> None:
    """One that is too large by itself is not held back: it goes without others."""
    lane = _lane(MAX_BATCH_BYTES, 1)
    assert _gather(lane, 10) is None
    assert len(lane.queue) == 1


def test_who_shares_no_more_goes_alone() -> None:
    """Neither does it lead others nor follow them, and nobody overtakes it."""
    lane = _lane(1, 1, 1)
    lane.queue[0].shares = 0
    assert _gather(lane, 10) is None
    lane = _lane(1, 1, 1, 1)
    lane.queue[2].shares = 0
    batch = _gather(lane, 10)
    assert batch is not None
    assert [item.position for item in batch.items] == [0, 1]
    assert [item.position for item in lane.queue] == [2, 3]


def test_key_is_that_of_the_composition() -> None:
    """The same events in the same order have the same key; any other has another, and no event has it."""
    key = batch_key(["/devices/a#1", "/devices/a#2"])
    assert key == batch_key(["/devices/a#1", "/devices/a#2"])
    assert key == "batch:sha256:ceee8d41ed8ba49a30d461d8c3da0862429154c5fd0a8c469adb297c456419f4"
    others = (["/devices/a#2", "/devices/a#1"], ["/devices/a#1"], ["/devices/a#1", "/devices/a#2", "/devices/a#3"])
    assert key not in {batch_key(other) for other in others}
