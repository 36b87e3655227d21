"""What the running gateway tells about itself: one look at every part's counters, for metrics and for `gateway stats`.

The parts count in plain integers. What only the storage knows (lag, sizes) is asked for every few seconds and kept, so
that a scrape costs no disk.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

import msgspec

from edge_protocol.events import Event
from gateway.dispatch.dispatcher import Dispatcher
from gateway.dispatch.stats import DispatchState
from gateway.errors import Unavailable
from gateway.ingest.stats import IngestStats
from gateway.mqtt.stats import MqttStats
from gateway.ports.bus import BusStats, EventBus
from gateway.ports.cursors import NAME_PREFIX
from gateway.ports.subscriptions import Subscriptions, SubscriptionState
from gateway.web.metrics import Snapshot


class Latencies:
    """From `emit` to the handler's answer, of the last deliveries at first attempt."""

    def __init__(self, keep: int = 10_000) -> None:
        self._last: deque[float] = deque(maxlen=keep)

    def note(self, event: Event, received_ms: int | None, _delivery_s: float) -> None:
        """Note a delivery (hook of the dispatcher); an event without a readable time counts from its arrival."""
        if received_ms is None:
            return  # it had been put aside: its latency is the service's trouble
        begun_s = received_ms / 1000
        with suppress(ValueError):
            begun_s = datetime.fromisoformat(event.time).timestamp() if event.time else begun_s
        self._last.append(max(0.0, time.time() - begun_s))

    def quantile(self, q: float) -> float:
        """A quantile in seconds; 0 before the first delivery."""
        ordered = sorted(self._last)
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else 0.0


class Telemetry:
    """Reads the counters of a running gateway.

    Attributes:
        latencies: Filled by the dispatchers.
    """

    def __init__(
        self,
        bus: EventBus,
        subscriptions: Subscriptions,
        *,
        mqtt: MqttStats,
        ingest: IngestStats,
        dispatchers: Mapping[str, Dispatcher],
    ) -> None:
        self.latencies = Latencies()
        self._bus, self._subscriptions = bus, subscriptions
        self._mqtt, self._ingest = mqtt, ingest
        self._dispatchers = dispatchers
        self._stored: BusStats | None = None
        self._states: Sequence[SubscriptionState] = ()

    async def refresh(self) -> None:
        """Ask the storage."""
        with suppress(Unavailable):
            self._stored = await self._bus.stats()
            self._states = await self._subscriptions.list()

    def snapshot(self) -> Snapshot:
        """For `/metrics`: by the names of `gateway.web.metrics.FAMILIES`."""
        mqtt, ingest = self._mqtt, self._ingest
        connects = {f"0x{code:02x}": count for code, count in mqtt.refused.items() if code >= 0}
        found: dict[str, float | Mapping[str, float]] = {
            "connections": mqtt.connections,
            "connects": {"0x00": mqtt.accepted, **connects},
            "publishes": {f"0x{code:02x}": count for code, count in mqtt.publishes.items()},
            "queued_bytes": mqtt.queues.size_bytes,
            "messages_dropped": dict(mqtt.dropped),
            "publish_bytes": ingest.bytes,
            "events_stored": ingest.events,
            "events_duplicate": ingest.duplicates,
        }
        if self._stored is not None:
            found |= {
                "bus_events": self._stored.events,
                "bus_bytes": self._stored.bytes,
                "bus_free_bytes": self._stored.free_bytes,
            }
        return found | self._handlers()

    def _handlers(self) -> dict[str, Mapping[str, float]]:
        stats = {name: dispatcher.stats() for name, dispatcher in self._dispatchers.items()}
        return {
            "handler_up": {name: float(each.state is not DispatchState.DOWN) for name, each in stats.items()},
            "deliveries": {name: each.tally.delivered for name, each in stats.items()},
            "delivery_failures": {name: each.tally.failed for name, each in stats.items()},
            "handler_lag_events": {state.spec.name: state.lag for state in self._states},
            "handler_waiting_events": {state.spec.name: state.waiting for state in self._states},
            "handler_blocked_events": {state.spec.name: state.blocked for state in self._states},
            "handler_dead_letters": {state.spec.name: state.dead for state in self._states},
        }

    def handler(self, name: str) -> Mapping[str, Any]:
        """State, rate and counters of one handler."""
        dispatcher = self._dispatchers.get(name)
        if dispatcher is None:
            state = "no session" if name.startswith(NAME_PREFIX) else "not configured"
            return {"state": state, "rate_per_s": 0.0, "delivered": 0, "failed": 0, "cause": ""}
        stats = dispatcher.stats()
        return {
            "state": stats.state.value,
            "rate_per_s": round(stats.rate_per_s, 1),
            "delivered": stats.tally.delivered,
            "failed": stats.tally.failed,
            "cause": stats.cause,
        }

    def stats(self) -> dict[str, Any]:
        """For `gateway stats`: every counter there is."""
        mqtt, ingest = self._mqtt, self._ingest
        return {
            "mqtt": {
                "connections": mqtt.connections,
                "accepted": mqtt.accepted,
                "refused": sum(mqtt.refused.values()),
                "publishes": {f"0x{code:02x}": count for code, count in sorted(mqtt.publishes.items())},
                "received_bytes": mqtt.received_bytes,
                "sent_bytes": mqtt.sent_bytes,
                "deliveries": mqtt.deliveries,
                "dropped": dict(mqtt.dropped),
                "queued_bytes": mqtt.queues.size_bytes,
            },
            "ingest": msgspec.to_builtins(ingest),
            "handlers": {name: dict(self.handler(name)) for name in self._dispatchers},
            "latency": {"p50_s": self.latencies.quantile(0.5), "p99_s": self.latencies.quantile(0.99)},
        }
