"""A session: what a client subscribed to, and what is on its way in both directions (MQTT 5.0, section 4.1).

It belongs to (principal, client id) and outlives its connection, which it knows only as a `Wire`, by its Session Expiry
Interval; then it is durable: what it holds at QoS 1 and 2 is written through the journal, and sent only once it is written.
Permission is asked again for each message, order is kept, bounds are answered: a full queue gives up expired messages,
then QoS 0, oldest first, then refuses the newest (counted and logged), and ends a connection that is too slow (0x97).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Protocol

import msgspec
import structlog

from edge_protocol.topics import TopicFilter
from gateway.mqtt import records
from gateway.mqtt.codec import CodecError, Publish, Pubrel, ReasonCode, Version, Will
from gateway.mqtt.messages import Message
from gateway.mqtt.receiving import Receiver
from gateway.mqtt.records import Head, Out
from gateway.mqtt.shelf import RELEASED, Item, OnAck, Shelf
from gateway.ports.identity import Principal
from gateway.rules.flows import Delivery, Outbound, Said, Stage
from gateway.rules.policy import Permissions
from gateway.rules.sharing import Fate

if TYPE_CHECKING:
    from gateway.mqtt.hub import Hub
    from gateway.mqtt.router import Subscribed

log = structlog.get_logger()


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


class Session:
    """Subscriptions and deliveries of one client.

    Attributes:
        principal: Whose it is.
        client_id: Under which name.
        epoch: Registration of the device it belongs to.
        expiry_s: How long it lives without a connection; 0: as long as its connection; 0xFFFFFFFF: for ever.
        left_at_s: Unix time at which its connection was gone; None while it has one.
        roles: Of its last grant, for its will.
        will: What is published if the connection is lost.
        subscriptions: Its filters, as granted.
        receiver: QoS 2 messages from the client.
        shelf: Where it is kept.
    """

    __slots__ = (
        "_aliases",
        "_hub",
        "_kept",
        "_maximum_aliases",
        "_out",
        "_warned",
        "_wire",
        "client_id",
        "epoch",
        "expiry_s",
        "left_at_s",
        "principal",
        "receiver",
        "roles",
        "shelf",
        "subscriptions",
        "will",
    )

    def __init__(self, hub: Hub, principal: Principal, client_id: str) -> None:
        self.principal, self.client_id = principal, client_id
        self.shelf = Shelf(hub, records.key_of(principal, client_id))
        self.receiver = Receiver(self.shelf)
        self.epoch = self.expiry_s = 0
        self.left_at_s: float | None = None
        self.roles: tuple[str, ...] = ()
        self.will: Will | None = None
        self.subscriptions: dict[TopicFilter, Subscribed] = {}
        self._hub = hub
        self._wire: Wire | None = None
        self._out: Outbound[Item] = Outbound()
        self._kept = 0  # deliveries below this number are durable
        self._aliases: dict[str, int] = {}
        self._maximum_aliases = 0
        self._warned = False

    @property
    def is_connected(self) -> bool:
        """Whether a client is there to take deliveries."""
        return self._wire is not None

    @property
    def is_durable(self) -> bool:
        """Whether it outlives its connection."""
        return self.expiry_s > 0

    @property
    def has_spare_room(self) -> bool:
        """Whether its queue is less than half full: room for what can wait, such as retained messages."""
        limits = self._hub.settings.limits
        return self._out.has_room(0, messages=(limits.queue_messages + 1) // 2, bytes_=limits.queue_bytes // 2)

    def live_for(self, expiry_s: int) -> None:
        """Set its Session Expiry Interval: with 0 it is forgotten on disk, and ends with its connection."""
        if not expiry_s:
            self.shelf.clear(self._out, self.receiver.received)
        self.shelf.is_durable = expiry_s > 0
        self.expiry_s = expiry_s

    # Its connection.

    def attach(self, wire: Wire, receive_maximum: int, topic_alias_maximum: int) -> None:
        """Deliver over a new connection; what was not acknowledged is sent again, in order [MQTT-4.4.0-1]."""
        self._wire = wire
        self._out.maximum = receive_maximum
        self._maximum_aliases = topic_alias_maximum
        self._warned = False
        for delivery in self._out.released():
            wire.send(Pubrel(packet_id=delivery.packet_id))
        self.pump()

    def detach(self) -> None:
        """The connection is gone: what it was sent waits again; QoS 0 is for who is there."""
        self._wire = None
        self._aliases.clear()
        if lost := self._out.suspend():
            self._hub.stats.dropped["offline"] += len(lost)

    # Deliveries.

    def offer(
        self,
        message: Message,
        qos: int,
        identifiers: tuple[int, ...],
        *,
        retain: bool,
        on_ack: OnAck | None = None,
        key: str = "",
    ) -> bool:
        """Deliver a message, now or when the client is ready for it (`Subscriber`).

        With `on_ack` the caller is told how the delivery ended, once. With `key` it keeps the message until then, and
        after a restart of the gateway offers it again, unless it finds it here (`claim`). A session that ends hands back what was not acknowledged; what was sent at QoS 2 is
        never another's [MQTT-4.8.2-5].
        """
        wire = self._wire
        if wire is not None and not wire.permissions.may_receive(message.topic):
            return False
        if wire is None and not qos:
            self._hub.stats.dropped["offline"] += 1
        elif self._makes_room((item := Item(message, identifiers, retain, on_ack, key)).size_bytes):
            self._add(qos, item)
            return True
        else:
            self._refuse(message, qos)
        if on_ack:
            on_ack(Fate.UNSENT)
        return True

    def claim(self, owner: Callable[[str], OnAck | None]) -> None:
        """After a restart: let whoever kept messages too be told of those that are here; by their keys."""
        for delivery in self._out:
            item = delivery.item
            if item.key and item.on_ack is None:
                delivery.item = item._replace(on_ack=owner(item.key))

    def pump(self) -> None:
        """Send what waits, as far as the client is ready and it is durable."""
        while (wire := self._wire) is not None and wire.can_write:
            delivery = self._out.ready(self._hub.settings.limits.queue_bytes)
            if delivery is None or delivery.number >= self._kept:
                return
            self._send(wire, delivery)

    def puback(self, packet_id: int, *, is_refused: bool = False) -> None:
        """The client has a QoS 1 message, or refuses it; an identifier it does not owe is ignored.

        Raises:
            Violation: It is the identifier of a QoS 2 message.
        """
        self._completed(self._out.answered(packet_id, Said.PUBACK), Fate.REFUSED if is_refused else Fate.TAKEN)

    def pubrec(self, packet_id: int, *, is_refused: bool) -> None:
        """The client has a QoS 2 message, or refuses it; PUBREL follows when we have noted that [MQTT-4.3.3-4].

        Raises:
            Violation: It is the identifier of a QoS 1 message.
        """
        delivery = self._out.answered(packet_id, Said.REFUSED if is_refused else Said.PUBREC)
        if is_refused:
            self._completed(delivery, Fate.REFUSED)
        elif delivery is not None:
            self._release(delivery)
        elif self._wire is not None:
            self._wire.send(Pubrel(packet_id=packet_id, reason_code=self._wire.unknown_identifier))

    def pubcomp(self, packet_id: int) -> None:
        """The flow of a QoS 2 message is complete.

        Raises:
            Violation: PUBREC did not come before.
        """
        self._completed(self._out.answered(packet_id, Said.PUBCOMP))

    def end(self) -> None:
        """Forget everything, on disk too; hand back what nobody acknowledged."""
        self.live_for(0)
        deliveries, self._out = list(self._out), Outbound()
        for delivery in deliveries:
            if delivery.item.on_ack:
                is_begun = delivery.qos == 2 and (delivery.is_repeat or delivery.stage is not Stage.WAITING)
                delivery.item.on_ack(Fate.BROKEN if is_begun else Fate.UNSENT)

    def _add(self, qos: int, item: Item) -> None:
        delivery = self._out.add(qos, item, item.size_bytes)
        if qos:
            self.shelf.put(delivery)
            self.shelf.surely_after(partial(self._mark, delivery))
        self._pump_for(item)

    def _mark(self, delivery: Delivery[Item]) -> None:
        self._kept = max(self._kept, delivery.number + 1)
        self._pump_for(delivery.item)

    def _pump_for(self, item: Item) -> None:
        """Send what waits, now that there is more; what the client itself published at QoS 2 comes behind its PUBREC.

        MQTT asks for no order between the two, but there are clients that rely on it. A durable session keeps none: its
        PUBREC waits for another write.
        """
        message = item.message
        if message.qos == 2 and message.publisher is self and self._wire is not None:
            self._wire.wake()
        else:
            self.pump()

    def _send(self, wire: Wire, delivery: Delivery[Item]) -> None:
        item = delivery.item
        cause = self._problem(wire, delivery)
        if cause is None:
            self._out.sent(delivery)
            self._hub.stats.deliveries += 1
            return
        self._hub.stats.dropped[cause] += 1
        self._out.drop(delivery)
        self.shelf.remove(delivery)
        if item.on_ack:
            item.on_ack(Fate.UNSENT if cause == "not-authorized" else Fate.UNSENDABLE)

    def _problem(self, wire: Wire, delivery: Delivery[Item]) -> str | None:
        """Write a delivery; tell why it was not."""
        if not wire.permissions.may_receive(delivery.item.message.topic):
            return "not-authorized"  # the policy changed while it waited
        packet = self._packet(wire, delivery)
        if packet is None:
            return "expired"
        try:
            return None if self._write(wire, packet) else "packet-too-large"
        except CodecError:  # an event's attribute that no MQTT string can hold
            return "not-encodable"

    def _packet(self, wire: Wire, delivery: Delivery[Item]) -> Publish | None:
        message, identifiers, retain, *_ = delivery.item
        payload, properties = message.form(wire.version or Version.V311)
        if message.expires_at_s is not None:
            left_s = message.expires_at_s - self._hub.loop.time()
            if left_s <= 0 and not delivery.is_repeat:  # what has begun is completed [MQTT-3.3.2-5]
                return None
            whole_s = max(0, ceil(round(left_s, 3)))  # rounding errors of the clock make no second
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

    def _write(self, wire: Wire, packet: Publish) -> bool:
        """Write a PUBLISH, with a topic alias as long as the client has some to give (3.3.2.3.4)."""
        topic, known = packet.topic, self._aliases.get(packet.topic)
        alias = known or len(self._aliases) + 1
        if alias > self._maximum_aliases:
            return wire.send(packet)
        properties = msgspec.structs.replace(packet.properties, topic_alias=alias)
        aliased = msgspec.structs.replace(packet, topic="" if known else topic, properties=properties)
        if wire.send(aliased):
            self._aliases[topic] = alias
            return True
        return wire.send(packet)

    def _completed(self, delivery: Delivery[Item] | None, fate: Fate = Fate.TAKEN) -> None:
        if delivery is not None:
            self.shelf.remove(delivery)
            if delivery.item.on_ack:
                delivery.item.on_ack(fate)
            self.pump()

    def _release(self, delivery: Delivery[Item]) -> None:
        """PUBREL lets the client reuse its identifier, so that must find us after a crash as it finds us now."""
        on_ack, wire = delivery.item.on_ack, self._wire
        delivery.item = RELEASED
        self.shelf.put(delivery)
        self.shelf.surely_after(partial(self._send_pubrel, wire, delivery))
        if on_ack:
            on_ack(Fate.TAKEN)

    def _send_pubrel(self, wire: Wire | None, delivery: Delivery[Item]) -> None:
        if wire is not None and self._wire is wire and delivery.stage is Stage.RELEASED:
            wire.send(Pubrel(packet_id=delivery.packet_id))

    # Room.

    def _makes_room(self, size_bytes: int) -> bool:
        if self._has_room(size_bytes):
            return True
        for delivery in [each for each in self._out if each.stage is Stage.WAITING and self._is_expired(each)]:
            self._give_up(self._out.drop(delivery), "expired")
        while not self._has_room(size_bytes) and (shed := self._out.shed()) is not None:
            self._give_up(shed, "queue-full")
        return self._has_room(size_bytes)

    def _has_room(self, size_bytes: int) -> bool:
        limits = self._hub.settings.limits
        return self._out.has_room(size_bytes, messages=limits.queue_messages, bytes_=limits.queue_bytes)

    def _is_expired(self, delivery: Delivery[Item]) -> bool:
        expires_at_s = delivery.item.message.expires_at_s
        return expires_at_s is not None and expires_at_s <= self._hub.loop.time() and not delivery.is_repeat

    def _give_up(self, delivery: Delivery[Item], cause: str) -> None:
        self._hub.stats.dropped[cause] += 1
        self.shelf.remove(delivery)
        if delivery.item.on_ack:
            delivery.item.on_ack(Fate.UNSENDABLE)

    def _refuse(self, message: Message, qos: int) -> None:
        self._hub.stats.dropped["queue-full"] += 1
        if not self._warned:
            self._warned = True  # once an absence
            log.warning("session_queue_full", client=self.client_id, principal=str(self.principal), topic=message.topic)
        if qos and self._wire is not None:
            self._wire.end(ReasonCode.QUOTA_EXCEEDED, "slow-reader: more messages wait than the session may keep")

    # What is kept.

    def keep_head(self) -> None:
        """Have everything but messages written, if the session is durable."""
        self.shelf.put_head(self._head())

    def restore(self, head: Head, received: Iterable[int], out: Iterable[tuple[int, Out]]) -> None:
        """Take what was kept, but for the subscriptions."""
        self.shelf.is_durable = True
        self.epoch, self.expiry_s, self.roles = head.epoch, head.expiry_s, head.roles
        self.left_at_s = self._hub.clock() if head.left_at_s is None else head.left_at_s
        self.will = None if head.will is None else records.read_will(head.will, head.will_delay_s)
        self.receiver.restore(received)
        self._out.restore(self.shelf.read(out, head))
        self._kept = self._out.next_number

    def _head(self) -> Head:
        sent = max((each.number + 1 for each in self._out if each.is_repeat), default=0)
        subscriptions = {str(filter_): each for filter_, each in self.subscriptions.items()}
        will = None if self.will is None else records.write_will(self.will)
        delay_s = 0 if self.will is None else self.will.properties.will_delay_interval or 0
        return Head(
            records.FORMAT, self.epoch, self.expiry_s, self.left_at_s, sent, self.roles, subscriptions, will, delay_s
        )
