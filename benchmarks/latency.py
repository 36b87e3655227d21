"""From `Agent.emit` on a device to a Python handler behind the gateway, at a fixed rate.

A real agent with its outbox, TLS, sealed envelopes, two fsyncs on the way. Delay of the emitter counts: the loop is open.
The floor: two fdatasyncs of the same disk, one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from common.command import Options, main
from common.deployment import deployed
from common.figures import Figure

HERE = Path(__file__).parent


def measure(options: Options) -> Sequence[Figure]:
    """Measure."""
    rate = options.own.rate
    found: dict[str, list[float]] = {
        "p50": [],
        "p99": [],
        "emit p50": [],
        "emit p99": [],
        "floor p50": [],
        "floor p99": [],
    }
    for n in range(options.rounds):
        for share, value in zip(("floor p50", "floor p99"), _two_syncs(options), strict=True):
            found[share].append(value)
        for share, value in _emitted(options, options.folder / f"gateway{n}", rate).items():
            found[share].append(value)
    return [
        _figure(found, "p50", rate),
        _figure(found, "p99", rate, at_least=20.0, aim=8.0),
        *(_beside(found, f"emit {share}", f"of that until emit returns, {share}") for share in ("p50", "p99")),
        *(_beside(found, f"floor {share}", f"floor: two fdatasyncs, {share}") for share in ("p50", "p99")),
    ]


def _figure(found: dict[str, list[float]], share: str, rate: float, **bounds: float) -> Figure:
    return Figure(
        name=f"emit to handler at {rate:g} events/s, {share}",
        unit="ms",
        value=statistics.median(found[share]),
        rounds=found[share],
        less_is_better=True,
        **bounds,  # type: ignore[arg-type]  # the two bounds
    )


def _beside(found: dict[str, list[float]], share: str, name: str) -> Figure:
    return Figure(name=name, unit="ms", value=statistics.median(found[share]), rounds=found[share])


def _emitted(options: Options, folder: Path, rate: float) -> dict[str, float]:
    """Run for twice the seconds; the first half is not counted."""
    count = int(rate * options.seconds * 2)
    sink = folder / "sink.json"
    seen = {"BENCH_SINK": str(sink), "BENCH_COUNT": str(count), "PYTHONPATH": str(HERE)}
    handler = 'name = "sink"\ntypes = ["timed"]\nurl = "python:common.sinks:timed"'
    with deployed(folder, handler, **seen) as deployment:
        home = deployment.add_agent("bench-1")
        with options.flaming(deployment.process.pid):
            emitter = [sys.executable, str(HERE / "common" / "emitter.py"), str(home), str(count), str(rate)]
            emitted = json.loads(deployment.call(*emitter))
            deployment.wait_for("handler", sink.exists)
    latencies = sorted(json.loads(sink.read_text())["latencies_ns"][count // 2 :])
    return {
        "p50": latencies[len(latencies) // 2] / 1e6,
        "p99": latencies[int(len(latencies) * 0.99)] / 1e6,
        "emit p50": emitted["p50"],
        "emit p99": emitted["p99"],
    }


def _two_syncs(options: Options) -> tuple[float, float]:
    taken = []
    file = os.open(options.folder / "sync", os.O_WRONLY | os.O_CREAT)
    for _ in range(300):
        start = time.perf_counter()
        for _ in range(2):
            os.pwrite(file, os.urandom(4096), 0)
            os.fdatasync(file)
        taken.append(time.perf_counter() - start)
    os.close(file)
    taken.sort()
    return taken[150] * 1e3, taken[297] * 1e3


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rate", type=float, default=500.0, help="events a second (500)")


if __name__ == "__main__":
    main(measure, add=_add, description=__doc__)
