"""`Agent.emit` on the device, fsynced when it returns: one event a call, and 100.

Against a bare SQLite insert of the same bytes with the same durability (WAL, synchronous=FULL), a transaction each.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import apsw
from common.command import Options, main
from common.figures import Figure, alternate, compare

from edge_agent import Agent
from edge_agent.home import Home
from edge_agent.setup import make_home

DATA = {"value": "x" * 150}
MANY = 100


def measure(options: Options) -> Sequence[Figure]:
    """Measure."""
    home = Home(options.folder / "agent")
    make_home(home, "bench-1", gateway="", audience="bench", ca=None, signing_key=None, alg="EdDSA")
    body = json.dumps({"specversion": "1.0", "id": "0" * 36, "type": "bench", "data": DATA}).encode()
    bare = _bare(options.folder / "bare.db")
    with Agent.open(home) as agent:
        found = alternate(
            options.rounds,
            {
                "emit": lambda: _rate(options, lambda: agent.emit("bench", DATA)),
                "bare insert": lambda: _rate(
                    options, lambda: bare.execute("INSERT INTO event(body) VALUES (?)", (body,))
                ),
                "emit_many": lambda: MANY * _rate(options, lambda: agent.emit_many([("bench", DATA)] * MANY)),
            },
        )
    return [
        compare("outbox, one event a call", "events/s", found, "emit", "bare insert"),
        compare(f"outbox, {MANY} events a call", "events/s", found, "emit_many", "bare insert"),
    ]


def _rate(options: Options, call: Callable[[], object]) -> float:
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < options.seconds:
        call()
        count += 1
    return count / (time.perf_counter() - start)


def _bare(path: Path) -> apsw.Connection:
    connection = apsw.Connection(str(path))
    connection.execute("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE event(position INTEGER PRIMARY KEY, body BLOB NOT NULL)")
    return connection


if __name__ == "__main__":
    main(measure, description=__doc__)
