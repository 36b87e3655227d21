"""How one handler delivers: the settings that dispatch and its plan work by."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from gateway.rules.retry import PausePolicy, RetryPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerSettings:
    """How one handler delivers.

    Attributes:
        ordering: "device": one delivery at a time for each source, in order; "none": each event for itself.
        concurrency: Requests at a time, each with one delivery or a batch.
        batch: Deliveries that may share a request; more than 1 only for a target that takes batches.
        retry: For failures of the event.
        pause: For a target that is down.
        give_up_after_s: An event becomes a dead letter when the target is still down this long after its first try.
        on_dead_letter: Whether later events of the source follow, or wait for an operator ("device" ordering only).
        window_events: Events in memory, and events a crash may deliver again.
        window_bytes: Bytes of data in memory.
        defer_at: At this many failures an event is put aside.
    """

    ordering: Literal["device", "none"] = "device"
    concurrency: int = 16
    batch: int = 1
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    pause: PausePolicy = field(default_factory=PausePolicy)
    give_up_after_s: float = 86_400.0
    on_dead_letter: Literal["continue", "block"] = "continue"
    window_events: int = 10_000
    window_bytes: int = 16 * 1024 * 1024
    defer_at: int = 3
