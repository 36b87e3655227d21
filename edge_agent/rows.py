"""What is read from the outbox, as values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from edge_agent.window import Span


@dataclass(frozen=True, slots=True)
class Stream:
    """The stream of a class. Positions count from `base`; `sent` was handed to the network; `last` is given out."""

    id: str
    base: int
    last: int
    sent: int


class Row(NamedTuple):
    """An event that waits."""

    position: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Cut:
    """Consecutive events read from the outbox.

    Attributes:
        rows: At least one.
        settled: Every position at or below it is settled.
        is_full: Waiting would not make it longer: a limit, a bound or a hole ends it.
    """

    rows: tuple[Row, ...]
    settled: int
    is_full: bool

    @property
    def span(self) -> Span:
        """Its positions."""
        return Span(self.rows[0].position, self.rows[-1].position)


@dataclass(frozen=True, slots=True)
class Depth:
    """How full it is: events that wait, bytes they and the quarantine take, emission of the oldest (Unix ms)."""

    events: int
    bytes: int
    oldest_ms: int | None
    quarantined: int


@dataclass(frozen=True, slots=True)
class Quarantined:
    """An event that was set aside. Times are Unix milliseconds; `code` is the MQTT reason code of the refusal."""

    id: str
    emitted_ms: int
    refused_ms: int
    code: int
    reason: str
    body: bytes


def consecutive(rows: Iterable[Row], events: int, size: int) -> tuple[Row, ...]:
    """Take rows from the first on, up to a hole, `events` rows or `size` bytes of bodies; one row always."""
    taken: list[Row] = []
    for row in rows:
        size -= len(row.body)
        if taken and (size < 0 or len(taken) == events or row.position != taken[-1].position + 1):
            break
        taken.append(row)
    return tuple(taken)
