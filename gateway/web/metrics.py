"""Metrics for Prometheus: reads snapshots of plain numbers when asked, keeps none of its own.

`FAMILIES` is the list of all that is exported, with units and at most one label each, of few values: a handler's name,
a reason code or a cause, never a device. The parts count in plain integers and know nothing of Prometheus.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

PREFIX: Final = "lockgate_"

Snapshot = Mapping[str, float | Mapping[str, float]]
"""By name in `FAMILIES`: a number, or, for a family with a label, a number for each of its values."""


@dataclass(frozen=True, slots=True)
class Family:
    """One metric.

    Attributes:
        kind: A counter only grows while the process lives (exported as `..._total`).
        help: What it tells.
        label: Name of its one label, or "".
    """

    kind: Literal["counter", "gauge"]
    help: str
    label: str = ""


FAMILIES: Final[Mapping[str, Family]] = {
    "connections": Family("gauge", "MQTT connections that are open"),
    "connects": Family("counter", "CONNECT packets by how they were answered", "reason_code"),
    "publishes": Family("counter", "PUBLISH packets by how they were answered", "reason_code"),
    "queued_bytes": Family("gauge", "Bytes that wait in the queues of all MQTT sessions, with 512 a message"),
    "messages_dropped": Family("counter", "Messages not delivered to an MQTT subscriber", "cause"),
    "publish_bytes": Family("counter", "Bytes of payloads published on event topics"),
    "events_stored": Family("counter", "Events of devices stored durably"),
    "events_duplicate": Family("counter", "Events of devices that had been stored before, and were not stored again"),
    "bus_events": Family("gauge", "Events stored now"),
    "bus_bytes": Family("gauge", "Bytes of the event bus on disk"),
    "bus_free_bytes": Family("gauge", "Bytes free on the disk of the event bus"),
    "handler_up": Family("gauge", "1 while the handler's target takes events, 0 while it is down", "handler"),
    "handler_lag_events": Family("gauge", "Events stored and not looked at yet", "handler"),
    "handler_waiting_events": Family("gauge", "Events put aside to be tried again", "handler"),
    "handler_blocked_events": Family("gauge", "Entries that wait behind a failed event of their device", "handler"),
    "handler_dead_letters": Family("gauge", "Dead letters", "handler"),
    "deliveries": Family("counter", "Deliveries that succeeded", "handler"),
    "delivery_failures": Family("counter", "Deliveries that failed or were refused", "handler"),
}


class Metrics:
    """Renders what the given sources tell."""

    def __init__(self, *sources: Callable[[], Snapshot]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Reader(sources))
        ProcessCollector(registry=self._registry)  # memory, descriptors, CPU of the process

    def render(self) -> tuple[bytes, str]:
        """Read all sources; give the text and its content type.

        Raises:
            ValueError: A source names something that is not in `FAMILIES`.
        """
        return generate_latest(self._registry), CONTENT_TYPE_LATEST


class _Reader(Collector):
    def __init__(self, sources: tuple[Callable[[], Snapshot], ...]) -> None:
        self._sources = sources

    def describe(self) -> list[Metric]:
        return []  # registering reads no source

    def collect(self) -> Iterator[Metric]:
        for source in self._sources:
            for name, value in source().items():
                yield _metric(name, value)


def _metric(name: str, value: float | Mapping[str, float]) -> Metric:
    family = FAMILIES.get(name)
    if family is None or isinstance(value, Mapping) != bool(family.label):
        raise ValueError(f"metric {name!r}: expected a name of FAMILIES with its label")
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = kind(PREFIX + name, family.help, labels=[family.label] if family.label else None)
    if isinstance(value, Mapping):
        for label, number in value.items():
            metric.add_metric([label], number)
    else:
        metric.add_metric([], value)
    return metric
