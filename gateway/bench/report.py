"""How a run's result is told: a table for people, a document for programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from gateway.bench.histogram import Histogram
from gateway.bench.load import Load, Target
from gateway.bench.run import Result

_SHARES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999}
_BUSY: Final = 0.85


def as_document(target: Target, load: Load, result: Result) -> dict[str, Any]:
    """Everything, for JSON; durations in the units of their names."""
    events = max(1, load.events)
    return {
        "url": target.url,
        "connections": result.connections,
        "qos": load.qos,
        "events_an_envelope": load.events,
        "suite": load.suite.value if load.events else None,
        "loop": "open" if load.rate else "closed",
        "wanted_rate": load.rate,
        "window": load.window,
        "sent": result.sent,
        "acknowledged": result.acknowledged,
        "refused": dict(result.refused),
        "elapsed_s": round(result.elapsed_s, 4),
        "publishes_per_s": round(result.rate, 1),
        "events_per_s": round(result.rate * events, 1),
        "latency_ms": _latencies(result.latencies),
        "send_lag_ms": _latencies(result.lags) if load.rate else None,
        "connect_s": round(result.connect_s, 4),
        "prepare_s": round(result.prepare_s, 4),
        "generator": {
            "processes": result.processes,
            "busy": round(result.busy, 3),
            "ceiling_publishes_per_s": round(result.ceiling),
        },
    }


def print_result(document: dict[str, Any], out: Callable[[str], None] = print) -> None:
    """Print a document as a table, and what a reader must know about it."""
    rows = {
        "connections": f"{document['connections']} in {document['connect_s']:.2f} s",
        "publishes": f"{document['acknowledged']:,} in {document['elapsed_s']:.2f} s",
        "publishes/s": f"{document['publishes_per_s']:,.0f}",
        "events/s": f"{document['events_per_s']:,.0f}",
    }
    if document["qos"]:
        rows |= {f"latency {name}": f"{value:.3f} ms" for name, value in document["latency_ms"].items()}
    if document["send_lag_ms"]:
        rows["sent late, p99"] = f"{document['send_lag_ms']['p99']:.3f} ms, part of the latency"
    generator = document["generator"]
    rows["generator"] = f"{generator['busy']:.0%} of a core; its ceiling {generator['ceiling_publishes_per_s']:,}/s"
    width = max(map(len, rows))
    for name, value in rows.items():
        out(f"{name.ljust(width)}  {value}")
    for reason, count in document["refused"].items():
        out(f"refused: {count:,} x {reason}")
    if generator["busy"] > _BUSY:
        out("note: the generator was busy all the time; try --processes 2, from another machine if you can")


def _latencies(histogram: Histogram) -> dict[str, float]:
    found = {name: histogram.at(share) / 1e6 for name, share in _SHARES.items()}
    return {**{name: round(value, 4) for name, value in found.items()}, "max": round(histogram.max_ns / 1e6, 4)}
