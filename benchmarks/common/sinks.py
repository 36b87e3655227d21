"""Handlers that count: Python functions which the gateway runs in its own process.

What they saw is written to the file that BENCH_SINK names: when the first and the last event came, and, for
events that carry `sent_ns`, how long each took.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from gateway import Event

FILE = Path(os.environ.get("BENCH_SINK", "sink.json"))
WANTED = int(os.environ.get("BENCH_COUNT", "0"))
_seen = {"count": 0, "first_ns": 0}
_latencies: list[int] = []


async def count(event: Event) -> None:  # noqa: ARG001  # counted, not read
    """Count an event."""
    if not _seen["count"]:
        _seen["first_ns"] = time.perf_counter_ns()
    _seen["count"] += 1
    if _seen["count"] == WANTED:
        _write({"seconds": (time.perf_counter_ns() - _seen["first_ns"]) / 1e9, "count": WANTED})


async def timed(event: Event) -> None:
    """Note how long an event took from `sent_ns` of its data, Unix time, to here."""
    _latencies.append(time.time_ns() - json.loads(event.payload)["sent_ns"])
    if len(_latencies) == WANTED:
        _write({"latencies_ns": _latencies})


def _write(value: object) -> None:
    part = FILE.with_suffix(".part")
    part.write_text(json.dumps(value))
    part.rename(FILE)
