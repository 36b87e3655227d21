"""Chunks: publishes that are opened together, and the one queue that keeps them in the order of arrival."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from gateway.ingest.openings import Opening
from gateway.ports.ingest import Arrival, Receipt

CHUNK_PUBLISHES: Final = 16
CHUNK_BYTES: Final = 256 * 1024


class Slot:
    """The place of one publish, or of a run of them, in the order of arrival.

    Attributes:
        arrival: What came (of a run, the first).
        settle: Whom to tell how it ended.
        needs_pool: Whether it is opened in the pool.
        opening: What it held, once opened; None also where the pool gave it back.
        publishes: How many it stands for: more than one for a run.
        size_bytes: Of their payloads.
    """

    __slots__ = ("arrival", "needs_pool", "opening", "publishes", "settle", "size_bytes")

    def __init__(self, arrival: Arrival, settle: Callable[[Receipt], None], *, needs_pool: bool) -> None:
        self.arrival = arrival
        self.settle = settle
        self.needs_pool = needs_pool
        self.opening: Opening | None = None
        self.publishes = 1
        self.size_bytes = len(arrival.payload)


class Chunk:
    """Publishes that are opened together.

    Attributes:
        slots: In order of arrival.
        size_bytes: Of their payloads.
        is_opened: Whether all of them are.
        needs_pool: Whether one of them is opened in the pool.
    """

    __slots__ = ("is_opened", "needs_pool", "size_bytes", "slots")

    def __init__(self) -> None:
        self.slots: list[Slot] = []
        self.size_bytes = 0
        self.is_opened = False
        self.needs_pool = False

    def add(self, slot: Slot) -> None:
        """Take one more publish in."""
        self.slots.append(slot)
        self.size_bytes += slot.size_bytes
        self.needs_pool |= slot.needs_pool

    @property
    def is_full(self) -> bool:
        """Whether it has 16 publishes or 256 KiB."""
        return len(self.slots) >= CHUNK_PUBLISHES or self.size_bytes >= CHUNK_BYTES


def take_opened(queue: deque[Chunk]) -> list[Slot]:
    """Take the publishes of all opened chunks at the head, never past one that is not opened."""
    slots: list[Slot] = []
    while queue and queue[0].is_opened:
        slots += queue.popleft().slots
    return slots
