"""How a delivery is written to one connection: if its client may have it, in the form of its version, under a topic alias.

Knows one connection, as a `Wire`, and no queue: what becomes of a delivery that cannot be sent is its session's to say.
"""

from __future__ import annotations

import asyncio
from math import ceil
from typing import Final, Protocol

import msgspec

from gateway.mqtt.codec import CodecError, Publish, Pubrel, ReasonCode, Version
from gateway.mqtt.shelf import Item
from gateway.rules.flows import Delivery
from gateway.rules.policy import Permissions

_MAX_EXPIRY_S: Final = 0xFFFFFFFF  # Message Expiry Interval is a four byte integer (3.3.2.3.3)


class Wire(Protocol):
    """The connection, as its session sees it."""

    @property
    def permissions(self) -> Permissions:
        """What the client may receive now."""
        ...

    @property
    def version(self) -> Version | None:
        """What it speaks."""
        ...

    @property
    def unknown_identifier(self) -> ReasonCode:
        """What to say of a packet identifier that is not in use."""
        ...

    @property
    def can_write(self) -> bool:
        """Whether the peer has taken enough of what was written before."""
        ...

    def send(self, packet: Publish | Pubrel) -> bool:
        """Write a packet; False if it is larger than the client accepts, and was not written."""
        ...

    def wake(self) -> None:
        """Have what waits sent at the end of the turn, behind the acknowledgements that are due."""
        ...

    def end(self, code: ReasonCode, reason: str) -> None:
        """Send the client off."""
        ...


class Sender:
    """Writes deliveries to one connection."""

    __slots__ = ("_aliases", "_loop", "_maximum_aliases", "_wire")

    def __init__(self, wire: Wire, topic_alias_maximum: int, loop: asyncio.AbstractEventLoop) -> None:
        self._wire = wire
        self._aliases: dict[str, int] = {}
        self._maximum_aliases = topic_alias_maximum
        self._loop = loop

    @property
    def can_write(self) -> bool:
        """Whether the peer has taken enough of what was written before."""
        return self._wire.can_write

    def send(self, delivery: Delivery[Item]) -> str | None:
        """Write a delivery; tell why it was not, as `MqttStats.dropped` has it."""
        if not self._wire.permissions.may_receive(delivery.item.message.topic):
            return "not-authorized"  # the policy changed while it waited
        packet = self._packet(delivery)
        if packet is None:
            return "expired"
        try:
            return None if self._write(packet) else "packet-too-large"
        except CodecError:  # an event's attribute that no MQTT string can hold
            return "not-encodable"

    def _packet(self, delivery: Delivery[Item]) -> Publish | None:
        message, identifiers, retain, *_ = delivery.item
        payload, properties = message.form(self._wire.version or Version.V311)
        if message.expires_at_s is not None:
            left_s = message.expires_at_s - self._loop.time()
            if left_s <= 0 and not delivery.is_repeat:  # what has begun is completed [MQTT-3.3.2-5]
                return None
            # Rounding errors of the clock make no second, and a clock that was set back no more than the field holds
            whole_s = min(max(0, ceil(round(left_s, 3))), _MAX_EXPIRY_S)
            properties = msgspec.structs.replace(properties, message_expiry_interval=whole_s)  # [MQTT-3.3.2-6]
        if identifiers:
            properties = msgspec.structs.replace(properties, subscription_identifiers=identifiers)
        return Publish(
            topic=message.topic,
            payload=payload,
            qos=delivery.qos,
            retain=retain,
            dup=bool(delivery.qos) and delivery.is_repeat,
            packet_id=delivery.packet_id,
            properties=properties,
        )

    def _write(self, packet: Publish) -> bool:
        """Write a PUBLISH, with a topic alias as long as the client has some to give (3.3.2.3.4)."""
        topic, known = packet.topic, self._aliases.get(packet.topic)
        alias = known or len(self._aliases) + 1
        if alias > self._maximum_aliases:
            return self._wire.send(packet)
        properties = msgspec.structs.replace(packet.properties, topic_alias=alias)
        aliased = msgspec.structs.replace(packet, topic="" if known else topic, properties=properties)
        if self._wire.send(aliased):
            self._aliases[topic] = alias
            return True
        return self._wire.send(packet)
