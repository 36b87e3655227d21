"""What is on its way: batches in flight, what comes next, what is suspected. Pure: no disk, no socket, no clock.

Strategy. A batch is a span of consecutive positions of the outbox. Nothing of this is on disk: an event is there until
it is done or in quarantine, so whatever was in flight when the process died is pending at the next start.

Order. Batches leave in the order of their positions, and the gateway stores them in the order they arrive, so the
events of a stream are stored in order, except one case: a batch refused for good (0x99, 0x87) has others in flight
behind it, which are stored first. Its halves are *suspects*: they go before anything new, one at a time, so nothing
more overtakes them; what was overtaken is at most one window, and a window of 1 keeps even that in order. After an
answer that asks to retry (0x83, 0x97) the gateway stores nothing more of the connection, and the window is emptied and
begins again at its lowest position, so there order holds.

Holes. What was stored, or set aside, out of turn leaves a hole in the positions; a batch ends before a hole and the
next begins behind it. `settled` in an envelope is the number below the oldest event of the outbox, so it never passes
an event that may still be sent.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, NamedTuple

from edge_agent.errors import AgentError


class Span(NamedTuple):
    """Consecutive positions, both ends included."""

    first: int
    last: int

    def halves(self) -> tuple[Span, Span]:
        """Cut in two; the first is the longer. Needs two positions at least."""
        middle = (self.first + self.last) // 2
        return Span(self.first, middle), Span(middle + 1, self.last)


class State(Enum):
    """Life of an event in the outbox."""

    PENDING = auto()
    IN_FLIGHT = auto()
    DONE = auto()
    QUARANTINED = auto()


class Cause(Enum):
    """What moves it on."""

    SENT = auto()
    STORED = auto()
    LOST = auto()
    HALVED = auto()
    REFUSED = auto()
    RETRIED = auto()
    DISCARDED = auto()


MOVES: Final = {
    (State.PENDING, Cause.SENT): State.IN_FLIGHT,
    (State.PENDING, Cause.STORED): State.DONE,  # `stored-through` of CONNACK
    (State.PENDING, Cause.HALVED): State.PENDING,  # too large for the server's Maximum Packet Size
    (State.PENDING, Cause.REFUSED): State.QUARANTINED,  # likewise, one event alone
    (State.IN_FLIGHT, Cause.STORED): State.DONE,
    (State.IN_FLIGHT, Cause.LOST): State.PENDING,
    (State.IN_FLIGHT, Cause.HALVED): State.PENDING,
    (State.IN_FLIGHT, Cause.REFUSED): State.QUARANTINED,
    (State.QUARANTINED, Cause.RETRIED): State.PENDING,  # under a new position
    (State.QUARANTINED, Cause.DISCARDED): State.DONE,
}


def move(state: State, cause: Cause) -> State:
    """Apply a move.

    Raises:
        AgentError: The table does not allow it.
    """
    try:
        return MOVES[state, cause]
    except KeyError:
        raise AgentError(f"an event that is {state.name} cannot be {cause.name}") from None


class Want(NamedTuple):
    """The next batch: it begins at `first` or behind, and must not pass `last` (None: no bound)."""

    first: int
    last: int | None
    is_suspect: bool


@dataclass(slots=True)
class Batch:
    """A span on its way.

    Attributes:
        span: Its positions.
        is_suspect: It is part of a batch that was refused.
        sent_s: When, on the monotonic clock, in seconds.
    """

    span: Span
    is_suspect: bool
    sent_s: float
    state: State = State.PENDING

    def move(self, cause: Cause) -> None:
        """Apply a move of the table."""
        self.state = move(self.state, cause)


@dataclass(slots=True)
class Window:
    """Batches of one stream between the outbox and their receipts.

    Attributes:
        next: Position from which on nothing is in flight.
        in_flight: By packet identifier, in the order they were sent.
        suspects: Spans of refused batches, ascending.
    """

    next: int = 1
    in_flight: dict[int, Batch] = field(default_factory=dict)
    suspects: list[Span] = field(default_factory=list)

    def want(self, size: int) -> Want | None:
        """Say what to send next; None while the window of `size` batches is full or a suspect is on its way."""
        if len(self.in_flight) >= size or any(batch.is_suspect for batch in self.in_flight.values()):
            return None
        if not self.suspects:
            return Want(self.next, None, is_suspect=False)
        first = self.suspects[0]
        if first.first <= self.next:
            return Want(*first, is_suspect=True)
        return Want(self.next, first.first - 1, is_suspect=False)

    def pass_over(self, want: Want) -> None:
        """Note that the outbox has nothing where a bounded batch was wanted: it was settled meanwhile."""
        if want.is_suspect:
            self.suspects.pop(0)
        if want.last is not None:
            self.next = max(self.next, want.last + 1)

    def sent(self, packet_id: int, batch: Batch) -> None:
        """Note that a batch was handed to the network."""
        batch.move(Cause.SENT)
        self.in_flight[packet_id] = batch
        self.taken(batch)

    def taken(self, batch: Batch) -> None:
        """Go on behind a batch that was wanted."""
        if batch.is_suspect:
            suspect = self.suspects.pop(0)
            if batch.span.last < suspect.last:  # a hole inside: the rest stays suspected
                insort(self.suspects, Span(batch.span.last + 1, suspect.last))
        self.next = max(self.next, batch.span.last + 1)

    def answered(self, packet_id: int, cause: Cause) -> Batch | None:
        """Take a batch out of flight; None if it is not in flight (any more)."""
        batch = self.in_flight.pop(packet_id, None)
        if batch is None:
            return None
        batch.move(cause)
        if cause is Cause.HALVED:
            self.suspect(*batch.span.halves())
        elif cause is Cause.LOST:
            self._again(batch)
        return batch

    def suspect(self, *spans: Span) -> None:
        """Have spans sent one at a time, before anything new."""
        for span in spans:
            insort(self.suspects, span)

    def lost(self) -> None:
        """Empty the window: the connection is gone; everything unanswered is pending again, from the oldest on."""
        for packet_id in list(self.in_flight):
            self.answered(packet_id, Cause.LOST)
        self.next = 1

    def _again(self, batch: Batch) -> None:
        if batch.is_suspect:
            self.suspect(batch.span)
        else:
            self.next = min(self.next, batch.span.first)
