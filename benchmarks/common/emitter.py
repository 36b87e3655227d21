"""A device's program that emits at a fixed rate; an event carries when it was due, so that delay counts (open loop)."""

from __future__ import annotations

import json
import sys
import time

from edge_agent import Agent


def emit(home: str, count: int, rate: float) -> None:
    """Emit; print how long after they were due events were on this device's disk."""
    taken = []
    with Agent.open(home) as agent:
        start_ns = time.time_ns()
        for n in range(count):
            due_ns = start_ns + int(n * 1e9 / rate)
            while (wait_ns := due_ns - time.time_ns()) > 0:
                time.sleep(wait_ns / 1e9)
            agent.emit("timed", {"sent_ns": due_ns})
            taken.append((time.time_ns() - due_ns) / 1e6)
    later = sorted(taken[count // 2 :])
    print(json.dumps({"p50": later[len(later) // 2], "p99": later[int(len(later) * 0.99)]}))


if __name__ == "__main__":
    emit(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
