"""What ingest counts, for metrics."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class IngestStats:
    """Counters since the start.

    Attributes:
        publishes: Publishes stored (repeats included).
        events: Events stored for the first time.
        duplicates: Events that had been stored before.
        bytes: Payload bytes of stored publishes.
        refused: Publishes refused for good, by rule.
        deferred: Publishes that shall be sent again (0x83, 0x97), by rule.
        chunks: Chunks handed to the pool.
        open_s: Time between handing a chunk to the pool and its return, summed, in seconds.
        pool_rebuilds: How often the pool broke and was built anew.
    """

    publishes: int = 0
    events: int = 0
    duplicates: int = 0
    bytes: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    deferred: Counter[str] = field(default_factory=Counter)
    chunks: int = 0
    open_s: float = 0.0
    pool_rebuilds: int = 0
