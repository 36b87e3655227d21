"""The demo's Python handler: what a service run by the gateway itself looks like."""

from __future__ import annotations

from collections import deque

from gateway import Event, handler

recent: deque[float] = deque(maxlen=100)


@handler("machine_metrics")
async def watch_load(event: Event) -> None:
    """Keep the last loads of the machine."""
    recent.append(event.data["load_1m"])
