"""What the MQTT server counts: plain numbers, read by whoever serves metrics."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from gateway.rules.flows import Queues


@dataclass(slots=True)
class MqttStats:
    """Counters since the start; `connections` is a gauge.

    Attributes:
        connections: Clients let in and not gone.
        accepted: CONNECTs answered with success.
        refused: CONNECTs refused, by reason code; -1 for peers that never sent a readable one.
        ended: Connections that we ended, by reason code.
        publishes: Publishes of clients, by the code they ended with.
        received_bytes: Read from clients.
        sent_bytes: Written to clients.
        deliveries: Messages written to subscribers.
        dropped: Deliveries not made, by cause: `queue-full`, `queues-full`, `packet-too-large`, `expired`,
            `not-encodable`, `offline`, `not-authorized`.
        queues: What waits in the queues of all sessions; a gauge.
        wills: Wills published.
    """

    connections: int = 0
    accepted: int = 0
    refused: Counter[int] = field(default_factory=Counter)
    ended: Counter[int] = field(default_factory=Counter)
    publishes: Counter[int] = field(default_factory=Counter)
    received_bytes: int = 0
    sent_bytes: int = 0
    deliveries: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    queues: Queues = field(default_factory=Queues)
    wills: int = 0
