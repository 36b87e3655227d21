"""One session's place in the store: what of it is written, and when; nothing while it lives no longer than its connection.

It turns deliveries into records and back, between loop time (in memory) and Unix time (kept); it decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from edge_protocol.topics import TopicName
from gateway.mqtt import records
from gateway.mqtt.codec import CodecError
from gateway.mqtt.messages import Message
from gateway.mqtt.records import Head, Out
from gateway.rules.flows import Delivery, Stage
from gateway.rules.sharing import Fate

if TYPE_CHECKING:
    from gateway.mqtt.hub import Hub

OnAck = Callable[[Fate], object]
"""Told once how a delivery ended."""


class Item(NamedTuple):
    """What is delivered; with a key it is kept by whoever offered it, too; with a share a group offered it (`mqtt.groups`)."""

    message: Message
    identifiers: tuple[int, ...]
    retain: bool
    on_ack: OnAck | None = None
    key: str = ""
    share: bytes = b""


RELEASED: Final = Item(Message(TopicName("released"), b"", 2), (), retain=False)
"""In place of what the client has (PUBREC came): only its identifier is still in use."""


class Shelf:
    """Writes one session through the journal.

    Attributes:
        is_durable: Whether the session outlives its connection; if not, nothing is written.
    """

    __slots__ = ("_hub", "_key", "is_durable")

    def __init__(self, hub: Hub, key: str) -> None:
        self._hub = hub
        self._key = key
        self.is_durable = False

    def after(self, call: Callable[[], object]) -> None:
        """Call back when all that was put is durable, however long that takes; at once if nothing has to be."""
        if self.is_durable:
            self._hub.journal.surely(call)
        else:
            call()

    def put_head(self, head: Head) -> None:
        """Keep what a session is, without its messages."""
        self._put(records.HEAD, msgspec.msgpack.encode(head))

    def put_received(self, packet_id: int, *, is_received: bool) -> None:
        """Keep, or forget, the identifier of a received QoS 2 message."""
        self._put(f"{records.IN}{packet_id:05d}", b"" if is_received else None)

    def put(self, delivery: Delivery[Item]) -> None:
        """Keep a delivery at QoS 1 or 2, as it stands."""
        if not self.is_durable or _is_kept_elsewhere(delivery):
            return
        if delivery.stage is Stage.RELEASED:
            self._put_out(delivery, Out(None))
            return
        message, identifiers, retain, _, key, share = delivery.item
        try:
            packet, plain = records.write_message(message, delivery.qos, identifiers, retain=retain)
        except CodecError:
            return  # it cannot be sent either; that is found out, and counted, when it is its turn
        out = Out(packet, plain, self._unix(message.expires_at_s), key, share, message.qos, message.retain)
        self._put_out(delivery, out)

    def remove(self, delivery: Delivery[Item]) -> None:
        """Forget a delivery."""
        if delivery.qos and not _is_kept_elsewhere(delivery):
            self._put(_out(delivery.number), None)

    def clear(self, deliveries: Iterable[Delivery[Item]], received: Iterable[int]) -> None:
        """Forget everything, and keep nothing from now on."""
        for delivery in deliveries:
            self.remove(delivery)
        for packet_id in received:
            self.put_received(packet_id, is_received=False)
        self._put(records.HEAD, None)
        self.is_durable = False

    def read(self, out: Iterable[tuple[int, Out]], head: Head) -> Iterator[Delivery[Item]]:
        """The deliveries that were kept."""
        for number, each in out:
            # DUP says "might be a re-delivery" (3.3.1.1): after a crash nobody knows
            is_repeat = head.left_at_s is None or number < head.sent
            if each.packet is None:
                yield _released(number)
                continue
            packet = records.read_publish(each.packet)
            message = records.read_message(packet, each.plain, self._loop_time(each.expires_at_s))
            if each.share:
                message.qos, message.retain = each.qos, each.retain
            item = Item(message, packet.properties.subscription_identifiers, packet.retain, None, each.key, each.share)
            yield Delivery(number, packet.qos, item, message.size_bytes, is_repeat=is_repeat)

    def _put_out(self, delivery: Delivery[Item], out: Out) -> None:
        self._put(_out(delivery.number), msgspec.msgpack.encode(out))

    def _put(self, name: str, value: bytes | None) -> None:
        if self.is_durable:
            self._hub.journal.put(self._key + name, value)

    def _unix(self, at_s: float | None) -> float | None:
        return None if at_s is None else at_s - self._hub.loop.time() + self._hub.clock()

    def _loop_time(self, at_s: float | None) -> float | None:
        return None if at_s is None else at_s - self._hub.clock() + self._hub.loop.time()


def _is_kept_elsewhere(delivery: Delivery[Item]) -> bool:
    """Whether it comes again after a restart as if it had never been sent: at QoS 2 it must not, its identifier may be in use."""
    return bool(delivery.item.key) and delivery.qos == 1


def _out(number: int) -> str:
    return f"{records.OUT}{number:016d}"


def _released(number: int) -> Delivery[Item]:
    delivery = Delivery(number, 2, RELEASED, 0, is_repeat=True)
    delivery.stage = Stage.RELEASED
    return delivery
