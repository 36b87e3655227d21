"""The demo's last word: a table, and whether every event was handled exactly once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of the events.

    Attributes:
        emitted: Durable in an outbox.
        acknowledged: Forgotten by an outbox on the gateway's receipt.
        stored: On the event bus.
        delivered, expected: For each handler, events handled and events that were meant for it.
        repeated: Repeats that changed nothing: stored already, or delivered again.
        refused: Connections refused (the intruder).
        twice: Effects applied more often than they should.
        p50_s, p99_s: From `emit` to the handler's answer, in seconds.
    """

    emitted: int
    acknowledged: int
    stored: int
    delivered: Mapping[str, int]
    expected: Mapping[str, int]
    repeated: int
    refused: int
    twice: int
    p50_s: float
    p99_s: float

    @property
    def lost(self) -> int:
        """Events that no handler saw."""
        return sum(max(0, self.expected[name] - self.delivered[name]) for name in self.expected)

    @property
    def processed_twice(self) -> int:
        """Events that changed something more than once."""
        extra = sum(max(0, self.delivered[name] - self.expected[name]) for name in self.expected)
        return max(extra, self.twice)

    @property
    def is_clean(self) -> bool:
        """Nothing lost, nothing twice, everything acknowledged, and the intruder refused."""
        return not self.lost and not self.processed_twice and self.acknowledged == self.emitted and self.refused > 0


def print_table(result: Result) -> None:
    """Print the result on standard output."""
    rows = [
        ("events emitted", f"{result.emitted:,}"),
        ("acknowledged (stored, fsynced)", f"{result.acknowledged:,}"),
        ("stored on the bus", f"{result.stored:,}"),
        *(
            (f"delivered to {name}", f"{count:,} of {result.expected[name]:,}")
            for name, count in result.delivered.items()
        ),
        ("duplicates suppressed", f"{result.repeated:,}"),
        ("intruder's connections refused", f"{result.refused:,}"),
        ("latency emit to handled, p50", f"{result.p50_s * 1000:.0f} ms"),
        ("latency emit to handled, p99", f"{result.p99_s * 1000:.0f} ms"),
        ("lost", f"{result.lost:,}"),
        ("processed twice", f"{result.processed_twice:,}"),
    ]
    width = max(len(name) for name, _ in rows)
    print()
    for name, value in rows:
        print(f"{name:<{width}}  {value:>14}")
