"""The life of one delivery: its stages, the moves between them, and what of it outlives the process."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

from edge_protocol.events import Event
from gateway.rules.cursor import Cursor


class Stage(StrEnum):
    """Where a delivery stands."""

    QUEUED = "queued"  # in its source's queue
    RUNNING = "running"  # handed to the target
    RETRYING = "retrying"  # failed, stays at the head of its queue until it is due
    WAITING = "waiting"  # failed, put aside until it is due; later events of its source wait for it
    SHED = "shed"  # behind a waiting one: only a reference to the log is kept
    DEAD = "dead"  # put aside for an operator
    DONE = "done"


class Act(StrEnum):
    """What happens to it."""

    START = "start"
    DELIVER = "deliver"
    RETRY = "retry"
    RETURN = "return"  # the verdict is not about this event; nothing is counted
    DEFER = "defer"
    SHED = "shed"
    BURY = "bury"


MOVES: Final = {
    (Stage.QUEUED, Act.START): Stage.RUNNING,
    (Stage.RETRYING, Act.START): Stage.RUNNING,
    (Stage.RUNNING, Act.DELIVER): Stage.DONE,
    (Stage.RUNNING, Act.RETRY): Stage.RETRYING,
    (Stage.RUNNING, Act.RETURN): Stage.QUEUED,
    (Stage.RUNNING, Act.DEFER): Stage.WAITING,
    (Stage.RETRYING, Act.DEFER): Stage.WAITING,
    (Stage.QUEUED, Act.SHED): Stage.SHED,
    (Stage.RETRYING, Act.SHED): Stage.SHED,
    (Stage.RUNNING, Act.BURY): Stage.DEAD,
}


SHARES: Final = 2  # so that one outage does not part what was under way


class Reference:
    """A row of the log that waits behind an earlier event of its source, read back to be delivered.

    Attributes:
        at: The position it is stored under: its first unfinished event when last saved.
        open: Its unfinished events, in order.
    """

    __slots__ = ("at", "open")

    def __init__(self, at: int, positions: list[int]) -> None:
        self.at = at
        self.open: dict[int, None] = dict.fromkeys(positions)

    def finish(self, position: int) -> None:
        """Close one of its events."""
        del self.open[position]

    @property
    def first(self) -> int:
        """Its first unfinished event."""
        return next(iter(self.open))


class Lane:
    """Deliveries that must not overtake one another: those of one source, or a single one where order does not matter.

    Attributes:
        queue: What is in memory, next first.
        running: How many of it are with the target: one, or those that share a request.
        held: Positions put aside that later events wait for.
        refs: References in the store, to be read back once nothing is held.
        loaded: Those of them that have been read back.
        size: Bytes in memory.
    """

    __slots__ = ("held", "key", "loaded", "queue", "refs", "running", "size", "source")

    def __init__(self, key: Hashable, source: str) -> None:
        self.key = key
        self.source = source
        self.queue: deque[Item] = deque()
        self.running = 0
        self.held: set[int] = set()
        self.refs = 0
        self.loaded: dict[Reference, None] = {}
        self.size = 0

    @property
    def blocked(self) -> bool:
        """Whether what is read now must wait in the store."""
        return bool(self.held or self.refs)


class Item:
    """One event in memory.

    Attributes:
        position: In the log.
        row: The row it lies in.
        home: Where finishing is noted: the window's cursor, a reference, or None for an entry put aside earlier.
        received_ms: Arrival at the gateway, Unix milliseconds; None for an entry put aside earlier.
        attempts: Failed ones.
        first_s: When it was first tried, on the caller's clock.
        due_s: Not before, on the caller's clock.
        cause: Of the last failure.
        probe: Whether it finds out if a target that was down is there again.
        shares: How many more requests it may come back from that it shares with others; at 0 it goes alone.
    """

    __slots__ = (
        "attempts",
        "cause",
        "due_s",
        "event",
        "first_s",
        "home",
        "lane",
        "position",
        "probe",
        "received_ms",
        "row",
        "shares",
        "size",
        "stage",
    )

    def __init__(
        self,
        lane: Lane,
        home: Cursor | Reference | None,
        position: int,
        event: Event,
        row: int,
        /,
        *,
        received_ms: int | None,
    ) -> None:
        self.lane = lane
        self.home = home
        self.position = position
        self.row = row
        self.event = event
        self.received_ms = received_ms
        self.size = len(event.payload)
        self.attempts = 0
        self.first_s: float | None = None
        self.due_s = 0.0
        self.cause = ""
        self.probe = False
        self.shares = SHARES
        self.stage = Stage.QUEUED

    def move(self, act: Act) -> None:
        """Apply the table."""
        self.stage = MOVES[self.stage, act]

    def aside(self, state: Literal["waiting", "dead"], cause: str) -> Aside:
        """What is to be stored when it is put aside."""
        return Aside(
            position=self.position,
            source=self.lane.source,
            state=state,
            event=self.event,
            attempts=self.attempts,
            cause=cause,
            next_s=self.due_s,
            since_s=self.first_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Aside:
    """What is to be stored of an event put aside, or of the row that waits behind one.

    Attributes:
        position: Names it.
        event: None for `blocked`, and where the log could not be read.
        next_s: When to try again (`waiting`), on the caller's clock.
        since_s: When it was first tried, on the caller's clock; None for now.
    """

    position: int
    source: str
    state: Literal["waiting", "blocked", "dead"]
    event: Event | None = None
    attempts: int = 0
    cause: str = ""
    next_s: float = 0.0
    since_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What was read of one row of the log.

    Attributes:
        row: Its number.
        first: Position of its first event.
        end: Position of its last event.
        events: Position and event of those the subscription selects, in order.
        at: For a reference read back, the position it is stored under.
        lost: Why it cannot be read, for people; "" if it was.
    """

    row: int
    source: str
    received_ms: int
    first: int
    end: int
    events: list[tuple[int, Event]]
    at: int = 0
    lost: str = ""


@dataclass(frozen=True, slots=True)
class Changes:
    """What is to be saved in one transaction.

    Attributes:
        floors: For each partition the floor and the finished intervals above it.
        asides: To be inserted or replaced.
        resolved: Positions of entries to forget.
    """

    floors: dict[int, tuple[int, tuple[tuple[int, int], ...]]]
    asides: tuple[Aside, ...]
    resolved: tuple[int, ...]
