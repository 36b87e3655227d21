"""The event bus: a partitioned, durable log of batches, one batch a publish, or a run of publishes that are alike.

Positions: an event's position is `row << 10 | index`: the row its batch became and its place in it (a batch has at
most 1,000 events, so 1,024 suffice). Positions of a partition only grow; they are not consecutive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, NewType, Protocol

import msgspec

from edge_protocol.events import Encoding
from gateway.rules.framed import Packing

Position = NewType("Position", int)

INDEX_BITS: Final = 10
INDEX_MASK: Final = (1 << INDEX_BITS) - 1


def position(row: int, index: int = INDEX_MASK) -> Position:
    """Compose a position; without an index, the end of the row."""
    return Position(row << INDEX_BITS | index)


def row_of(at: Position) -> int:
    """Tell the row a position lies in."""
    return at >> INDEX_BITS


def index_of(at: Position) -> int:
    """Tell the place inside its row."""
    return at & INDEX_MASK


class Span(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A run of consecutive events of one stream (wire protocol, section 4).

    Attributes:
        stream: The stream's id, unique within its source.
        first: Sequence of the body's first event, from 1; the others follow without holes.
        settled: Nothing at or below it will be sent again.
        last_id: `id` of the body's last event; tells a repeated event from a fork.
    """

    stream: str
    first: int
    settled: int
    last_id: str


class Batch(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What one accepted publish appends, or a run of them.

    Attributes:
        source: CloudEvents `source`, `/devices/{id}` or `/services/{sub}`: owner of the stream, unit of order.
        received_ms: Arrival, Unix time in milliseconds.
        count: Events in the body, 1 to 1,000.
        types: The distinct event types of the body, sorted.
        body: CloudEvents JSON batch, encoded as `encoding` says.
        encoding: "" for JSON text, "deflate" for raw DEFLATE of it (as the device sent it), "framed" for events without
            stream and own ids that have all but their data in common (`rules.framed`).
        span: Where the events stand in their stream; None for events without a stream.
        ids: For events without a stream that brought ids of their own: one for each event, for deduplication by
            (source, id) within the window. Empty where the gateway made the ids, and for a span.
    """

    source: str
    received_ms: int
    count: int
    types: tuple[str, ...]
    body: bytes
    encoding: Packing = ""
    span: Span | None = None
    ids: tuple[str, ...] = ()


class Stored(msgspec.Struct, frozen=True, gc=False):
    """The batch is durable.

    Attributes:
        position: Position of its last new event, or of no event (0) where all had been stored before.
        duplicates: How many of its events had been stored before.
    """

    position: Position
    duplicates: int = 0


@dataclass(frozen=True, slots=True)
class Forked:
    """Nothing was stored: the stream does not continue what the bus holds (answered 0x99 `stream-forked`).

    Attributes:
        detail: Which limit or which sequence, for the reason string.
        rule: `stream-forked`, `too-many-streams` or `too-many-ranges`.
    """

    detail: str
    rule: Literal["stream-forked", "too-many-streams", "too-many-ranges"] = "stream-forked"


Outcome = Stored | Forked


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBatch:
    """One row of the log, as appended (less what had been stored before).

    Attributes:
        row: Its row; event i stands at `position(row, i)`.
        stream: Stream id, or "" for events without one.
        first: Sequence of event 0 in its stream (0 without one).
    """

    row: int
    source: str
    received_ms: int
    count: int
    types: tuple[str, ...]
    body: bytes
    encoding: Encoding = ""
    stream: str = ""
    first: int = 0

    @property
    def end(self) -> Position:
        """Position of the last event."""
        return position(self.row, self.count - 1)


@dataclass(frozen=True, slots=True)
class Damaged:
    """A row whose checksum is wrong: reported and set aside by the reader, never delivered, never skipped in silence."""

    row: int
    detail: str


@dataclass(frozen=True, slots=True)
class Page:
    """A run of the log without gaps.

    Attributes:
        batches: Oldest first.
        next: Give it as `after` to read on. At least the `after` that was asked for.
        damaged: Rows of this run that cannot be read.
    """

    batches: tuple[StoredBatch, ...]
    next: Position
    damaged: tuple[Damaged, ...] = ()


@dataclass(frozen=True, slots=True)
class Beginning:
    """The oldest event still stored."""


@dataclass(frozen=True, slots=True)
class End:
    """Only what is appended from now on."""


Start = Beginning | End | datetime | Position


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How much the bus keeps beyond what live subscriptions still need.

    Attributes:
        age_s: Batches received longer ago may go, in seconds.
        size_bytes: Oldest batches go when the store is larger.
    """

    age_s: float
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BusStats:
    """What the bus holds now. `first` and `last` are positions, 0 in an empty bus; `bytes` is the size on disk.

    `full` says why appends raise BusFull; "" if they do not.
    """

    events: int
    batches: int
    bytes: int
    first: Position
    last: Position
    free_bytes: int
    full: str = ""


class EventBus(Protocol):
    """Durable, partitioned log of events, deduplicating by stream and by id."""

    @property
    def partitions(self) -> int:
        """How many there are: `crc32(source) % partitions`. SQLite and memory: 1."""
        ...

    async def append(self, batches: Sequence[Batch]) -> list[Outcome]:
        """Store batches, in order per source.

        On return every `Stored` batch survives a power cut, together with what deduplicates it; each batch is stored
        whole (less what is stored already) or not at all, and one batch's outcome does not depend on its neighbours'.
        Concurrent calls share a commit; batches of one source keep the order of the calls. Cancelling the caller does
        not cancel the append.

        Raises:
            BusUnavailable: None of the batches is acknowledged; some may be stored. Repeat with the same batches.
            BusFull: As above; no room. Repeat later.
        """
        ...

    async def read(self, partition: int, after: Position, *, max_bytes: int, wait_s: float = 0) -> Page:
        """Read on from a position, oldest first.

        There is no committed event between `after` and `page.next` that is not in the page (or reported damaged): a
        reader that goes on from `page.next` sees every event. A page may end before the log does, whatever its size: only
        one that is empty is the end. Holds no transaction afterwards. A row of which `after`
        is not the last event is returned whole. At least one batch is returned if there is any, even over `max_bytes`
        (bytes of bodies). With nothing to read it waits up to `wait_s` seconds for an append.

        Raises:
            Trimmed: Events right after `after` have been removed; read on from `Trimmed.first`. Never raised for
                position 0, which reads from the oldest.
            BusUnavailable: Repeat.
        """
        ...

    async def locate(self, start: Start) -> Mapping[int, Position]:
        """Turn a start into a position for each partition, to be given to `read` as `after`.

        A datetime locates the first batch received at or after it; a Position is returned as it is.
        """
        ...

    async def stored_through(self, source: str, streams: Sequence[str]) -> Mapping[str, int]:
        """Tell for each known stream of a source the sequence up to which everything is stored or settled (CONNACK)."""
        ...

    async def trim(self, keep: Retention, *, not_past: Mapping[int, Position]) -> int:
        """Remove the oldest batches beyond what `keep` allows, never at or past `not_past`; tell how many events went.

        Bounded work a call: repeat until it returns 0. The deduplication ranges of streams stay for ever.
        """
        ...

    async def stats(self) -> BusStats:
        """Tell what is stored now; cheap at any size."""
        ...

    async def aclose(self) -> None:
        """Finish what was accepted, close. Calls afterwards raise BusUnavailable; a second close does nothing."""
        ...
