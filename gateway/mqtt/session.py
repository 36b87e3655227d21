"""A session: what a client subscribed to, and what is on its way in both directions (MQTT 5.0, section 4.1).

It belongs to (principal, client id) and outlives its connection, which it knows only as a `Wire`, by its Session Expiry
Interval; then it is durable: what it holds at QoS 1 and 2 is written through the journal, and sent only once it is written.
Permission is asked again for each message, order is kept, bounds are answered: a full queue gives up expired messages,
then QoS 0, oldest first, then refuses the newest (counted and logged), and ends a connection that is too slow (0x97).
All queues together have a bound too, of which a principal gets a share: over it, clients that are away get nothing more.

What may not be sent any more (policy, expiry, Maximum Packet Size) is dropped, as if it had been sent [MQTT-3.1.2-25]. At
QoS 2 a flow that has begun, perhaps on an earlier connection, is completed by PUBREL instead: the client may hold its
identifier, and would take the next message that has it for a repetition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from edge_protocol.topics import TopicFilter
from gateway.mqtt import records
from gateway.mqtt.codec import Pubrel, ReasonCode, Will
from gateway.mqtt.messages import Message
from gateway.mqtt.receiving import Receiver
from gateway.mqtt.records import Head, Out
from gateway.mqtt.sending import Sender, Wire
from gateway.mqtt.shelf import RELEASED, Item, OnAck, Shelf
from gateway.ports.identity import Principal
from gateway.rules.flows import Delivery, Outbound, Said, Stage
from gateway.rules.sharing import Fate

if TYPE_CHECKING:
    from gateway.mqtt.hub import Hub
    from gateway.mqtt.router import Subscribed

log = structlog.get_logger()

_PRUNE_S: Final = 1.0
_NEVER_S: Final = float("-inf")


class Session:
    """Subscriptions and deliveries of one client.

    Attributes:
        principal: Whose it is.
        client_id: Under which name.
        epoch: Registration of the device it belongs to.
        expiry_s: How long it lives without a connection; 0: as long as its connection; 0xFFFFFFFF: for ever.
        left_at_s: Unix time at which its connection was gone; None while it has one.
        roles: Of its last grant, for its will.
        jti: Id of the token of its last grant, or "": when that is revoked, the session is.
        will: What is published if the connection is lost.
        subscriptions: Its filters, as granted.
        receiver: QoS 2 messages from the client.
        shelf: Where it is kept.
    """

    __slots__ = (
        "_hub",
        "_kept",
        "_out",
        "_pruned_s",
        "_sender",
        "_warned",
        "_wire",
        "client_id",
        "epoch",
        "expiry_s",
        "jti",
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
        self.jti = ""
        self.will: Will | None = None
        self.subscriptions: dict[TopicFilter, Subscribed] = {}
        self._hub = hub
        self._wire: Wire | None = None
        self._out: Outbound[Item] = Outbound(hub.stats.queues.of(principal))
        self._pruned_s = _NEVER_S
        self._kept = 0  # deliveries below this number are durable
        self._sender: Sender | None = None
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

    def has_share(self, size_bytes: int) -> bool:
        """Whether its principal may have so much more of what waits for all sessions together."""
        return self._out.has_share(size_bytes)

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
        self._sender = Sender(wire, topic_alias_maximum, self._hub.loop)
        self._warned = False
        for delivery in self._out.released():
            wire.send(Pubrel(packet_id=delivery.packet_id))
        self.pump()

    def detach(self) -> None:
        """The connection is gone: what it was sent waits again; QoS 0 is for who is there."""
        self._wire = self._sender = None
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
        share: bytes = b"",
    ) -> bool:
        """Deliver a message, now or when the client is ready for it (`Subscriber`).

        With `on_ack` the caller is told how the delivery ended, once. With `key` it keeps the message until then, and
        after a restart of the gateway offers it again, unless it finds it here (`claim`); with `share` it finds it here. A
        session that ends hands back what was not acknowledged; what was sent at QoS 2 is never another's [MQTT-4.8.2-5].
        """
        wire = self._wire
        if wire is not None and not wire.permissions.may_receive(message.topic):
            return False
        if wire is None and not qos:
            self._hub.stats.dropped["offline"] += 1
        elif self._makes_room(size_bytes := message.size_bytes):
            self._add(qos, Item(message, identifiers, retain, on_ack, key, share), size_bytes)
            return True
        else:
            self._refuse(message, qos)
        if on_ack:
            on_ack(Fate.UNSENT)
        return True

    def claim(self, owner: Callable[[Item], OnAck | None]) -> None:
        """After a restart: let whoever offered messages be told again how those end that are here; None if one is not its own."""
        for delivery in self._out:
            item = delivery.item
            if item.on_ack is None and (on_ack := owner(item)) is not None:
                delivery.item = item._replace(on_ack=on_ack)

    def pump(self) -> None:
        """Send what waits, as far as the client is ready and it is durable."""
        while (sender := self._sender) is not None and sender.can_write:
            delivery = self._out.ready(self._hub.settings.limits.queue_bytes)
            if delivery is None or delivery.number >= self._kept:
                return
            self._send(sender, delivery)

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
        for delivery in self._out.forget():
            if delivery.item.on_ack:
                delivery.item.on_ack(Fate.BROKEN if delivery.is_begun else Fate.UNSENT)

    def _add(self, qos: int, item: Item, size_bytes: int) -> None:
        delivery = self._out.add(qos, item, size_bytes)
        if qos:
            self.shelf.put(delivery)
            self.shelf.after(partial(self._mark, delivery))
        self._pump_for(item)

    def _mark(self, delivery: Delivery[Item]) -> None:
        self._kept = max(self._kept, delivery.number + 1)
        self._pump_for(delivery.item)

    def _pump_for(self, item: Item) -> None:
        """Send what waits, now that there is more; what the client itself published at QoS 2 comes behind its PUBREC.

        MQTT asks for no order between the two, but there are clients that rely on it.
        """
        message = item.message
        if message.qos == 2 and message.publisher is self and self._wire is not None:
            self._wire.wake()
        else:
            self.pump()

    def _send(self, sender: Sender, delivery: Delivery[Item]) -> None:
        item = delivery.item
        cause = sender.send(delivery)
        if cause is None:
            self._out.sent(delivery)
            self._hub.stats.deliveries += 1
            return
        self._hub.stats.dropped[cause] += 1
        fate = Fate.UNSENT if cause == "not-authorized" else Fate.UNSENDABLE
        if delivery.is_begun:
            self._out.skip(delivery)
            self._release(delivery, Fate.BROKEN if fate is Fate.UNSENT else fate)
            return
        self._out.drop(delivery)
        self.shelf.remove(delivery)
        if item.on_ack:
            item.on_ack(fate)

    def _completed(self, delivery: Delivery[Item] | None, fate: Fate = Fate.TAKEN) -> None:
        if delivery is not None:
            self.shelf.remove(delivery)
            if delivery.item.on_ack:
                delivery.item.on_ack(fate)
            self.pump()

    def _release(self, delivery: Delivery[Item], fate: Fate = Fate.TAKEN) -> None:
        """PUBREL frees the identifier at the client, so that must find us after a crash as it finds us now."""
        on_ack, wire = delivery.item.on_ack, self._wire
        delivery.item = RELEASED
        self.shelf.put(delivery)
        self.shelf.after(partial(self._send_pubrel, wire, delivery))
        if on_ack:
            on_ack(fate)

    def _send_pubrel(self, wire: Wire | None, delivery: Delivery[Item]) -> None:
        if wire is not None and self._wire is wire and delivery.stage is Stage.RELEASED:
            wire.send(Pubrel(packet_id=delivery.packet_id))

    # Room.

    def prune(self) -> None:
        """Drop what has expired; at most once a second, since it looks at all."""
        now_s = self._hub.loop.time()
        if now_s < self._pruned_s + _PRUNE_S:
            return
        self._pruned_s = now_s
        for delivery in [each for each in self._out if each.stage is Stage.WAITING and self._is_expired(each)]:
            self._give_up(self._out.drop(delivery), "expired")

    def shed(self, cause: str) -> bool:
        """Give up the oldest message at QoS 0 that waits; tell whether there was one."""
        delivery = self._out.shed()
        if delivery is not None:
            self._give_up(delivery, cause)
        return delivery is not None

    def _makes_room(self, size_bytes: int) -> bool:
        if not self._has_room(size_bytes):
            self.prune()
            while not self._has_room(size_bytes) and self.shed("queue-full"):
                pass
        return self._has_room(size_bytes) and self._fits_share(size_bytes)

    def _has_room(self, size_bytes: int) -> bool:
        limits = self._hub.settings.limits
        return self._out.has_room(size_bytes, messages=limits.queue_messages, bytes_=limits.queue_bytes)

    def _fits_share(self, size_bytes: int) -> bool:
        """Whether all queues together have room for it; who is there is not made to suffer for those who are not."""
        if self._wire is not None or self.has_share(size_bytes):
            return True
        self._hub.sessions.make_room(self)
        return self.has_share(size_bytes)

    def _is_expired(self, delivery: Delivery[Item]) -> bool:
        expires_at_s = delivery.item.message.expires_at_s
        return expires_at_s is not None and expires_at_s <= self._hub.loop.time() and not delivery.is_repeat

    def _give_up(self, delivery: Delivery[Item], cause: str) -> None:
        self._hub.stats.dropped[cause] += 1
        self.shelf.remove(delivery)
        if delivery.item.on_ack:
            delivery.item.on_ack(Fate.UNSENDABLE)

    def _refuse(self, message: Message, qos: int) -> None:
        cause = "queues-full" if self._has_room(message.size_bytes) else "queue-full"
        self._hub.stats.dropped[cause] += 1
        if not self._warned:
            self._warned = True  # once an absence
            log.warning(
                "session_queue_full",
                client=self.client_id,
                principal=str(self.principal),
                topic=message.topic,
                cause=cause,
            )
        if qos and self._wire is not None:
            self._wire.end(ReasonCode.QUOTA_EXCEEDED, "slow-reader: more messages wait than the session may keep")

    # What is kept.

    def keep_head(self) -> None:
        """Have everything but messages written, if the session is durable."""
        self.shelf.put_head(self._head())

    def restore(self, head: Head, received: Iterable[int], out: Iterable[tuple[int, Out]]) -> None:
        """Take what was kept, but for the subscriptions."""
        self.shelf.is_durable = True
        self.epoch, self.expiry_s, self.roles, self.jti = head.epoch, head.expiry_s, head.roles, head.jti
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
            records.FORMAT,
            self.epoch,
            self.expiry_s,
            self.left_at_s,
            sent,
            self.roles,
            subscriptions,
            will,
            delay_s,
            self.jti,
        )
