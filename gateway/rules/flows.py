"""Flows of QoS 1 and 2 as tables: what an answer does to a delivery, and to a received packet identifier (section 4.3).

`Outbound` is everything on its way to one client, in order; `Received` the identifiers of what it sent at QoS 2. Both
outlive connections; they know no packet, clock or storage: messages are whatever the caller puts in.

Strategy: a delivery gets its number when it is queued, and its packet identifier is that number modulo 65535. So it is
known before the delivery is stored, the same after a restart, and no second record is needed to remember it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Mapping
from enum import Enum, auto
from typing import Final, Generic, TypeVar
from weakref import WeakValueDictionary

from gateway.rules.session import DEFAULT_RECEIVE_MAXIMUM, MAX_PACKET_ID, PROTOCOL_ERROR, Violation

T = TypeVar("T")
OVERHEAD_BYTES: Final = 512
"""Of a message that waits, in memory: its delivery, its properties, the objects that hold its topic and payload."""


class Stage(Enum):
    """Where a delivery at QoS 1 or 2 stands."""

    WAITING = auto()  # to be sent, or sent again
    SENT = auto()  # PUBLISH was written on this connection
    RELEASED = auto()  # PUBREC came: the client has it, PUBREL is ours to (re)send
    DONE = auto()


class Said(Enum):
    """What happens to a delivery."""

    SENT = auto()
    PUBACK = auto()
    PUBREC = auto()
    REFUSED = auto()  # PUBREC with a code of 0x80 or more
    PUBCOMP = auto()
    LOST = auto()  # the connection is gone
    SKIPPED = auto()  # it was sent before, perhaps, and cannot be sent again


FLOWS: Final[Mapping[tuple[int, Stage, Said], Stage]] = {
    (1, Stage.WAITING, Said.SENT): Stage.SENT,
    (1, Stage.SENT, Said.PUBACK): Stage.DONE,
    (1, Stage.SENT, Said.LOST): Stage.WAITING,
    (2, Stage.WAITING, Said.SENT): Stage.SENT,
    (2, Stage.WAITING, Said.SKIPPED): Stage.RELEASED,  # the client may hold its identifier: PUBREL frees it
    (2, Stage.SENT, Said.PUBREC): Stage.RELEASED,
    (2, Stage.SENT, Said.REFUSED): Stage.DONE,
    (2, Stage.SENT, Said.LOST): Stage.WAITING,
    (2, Stage.RELEASED, Said.PUBREC): Stage.RELEASED,  # a second PUBREC gets a second PUBREL
    (2, Stage.RELEASED, Said.PUBCOMP): Stage.DONE,
    (2, Stage.RELEASED, Said.LOST): Stage.RELEASED,
}
"""The allowed moves by QoS (figures 4.2 and 4.3); an answer beside them is a protocol error."""


class Delivery(Generic[T]):
    """A message on its way to one client.

    Attributes:
        number: Counts deliveries at QoS 1 and 2 of a session; -1 at QoS 0.
        item: The message, as the caller knows it.
        size_bytes: What it counts against the bound.
        is_repeat: It may have been sent before: DUP [MQTT-3.3.1-1].
        is_counted: It takes a place of the client's Receive Maximum on this connection.
    """

    __slots__ = ("is_counted", "is_repeat", "item", "number", "qos", "size_bytes", "stage")

    def __init__(self, number: int, qos: int, item: T, size_bytes: int, *, is_repeat: bool = False) -> None:
        self.number, self.qos, self.item, self.size_bytes = number, qos, item, size_bytes
        self.stage = Stage.WAITING
        self.is_repeat = is_repeat
        self.is_counted = False

    @property
    def packet_id(self) -> int:
        """1 to 65535; 0 at QoS 0."""
        return self.number % MAX_PACKET_ID + 1 if self.qos else 0

    @property
    def is_begun(self) -> bool:
        """Whether it is at QoS 2 and was sent, perhaps on an earlier connection: the client may have it."""
        return self.qos == 2 and (self.is_repeat or self.stage is not Stage.WAITING)

    def move(self, said: Said) -> None:
        """Apply what happened.

        Raises:
            Violation: It cannot happen here; nothing changed.
        """
        moved = FLOWS.get((self.qos, self.stage, said))
        if moved is None:
            raise Violation(
                PROTOCOL_ERROR,
                f"{said.name} for packet {self.packet_id}, which is QoS {self.qos} and {self.stage.name.lower()} (4.3)",
            )
        self.stage = moved


class Queues:
    """What waits in the queues of all clients together, where so many bytes may.

    Attributes:
        limit_bytes: The bound.
        half_bytes: Half of it.
        size_bytes: What it takes, `OVERHEAD_BYTES` a message included: many small messages are no less of a burden.
        counted_bytes: What of it counts against the bound: of each owner half of the bound at most.
    """

    __slots__ = ("_shares", "counted_bytes", "half_bytes", "limit_bytes", "size_bytes")

    def __init__(self, limit_bytes: int = 0) -> None:
        self.limit_bytes, self.half_bytes = limit_bytes, limit_bytes // 2
        self.size_bytes = self.counted_bytes = 0
        self._shares: WeakValueDictionary[Hashable, Share] = WeakValueDictionary()

    def of(self, owner: Hashable) -> Share:
        """What one owner has of it; it lives as long as somebody holds it."""
        share = self._shares.get(owner)
        if share is None:
            share = self._shares[owner] = Share(self)
        return share


class Share:
    """What waits in all queues of one owner, and counts in those of all.

    Attributes:
        size_bytes: As of `Queues`.
    """

    __slots__ = ("__weakref__", "_all", "_counted_bytes", "size_bytes")

    def __init__(self, all_: Queues) -> None:
        self._all = all_
        self.size_bytes = self._counted_bytes = 0

    def add(self, size_bytes: int) -> None:
        """Count what begins to wait; below 0, what waits no longer."""
        all_ = self._all
        all_.size_bytes += size_bytes
        self.size_bytes = counted_bytes = self.size_bytes + size_bytes
        if counted_bytes > all_.half_bytes:  # noqa: PLR1730  # cheaper than min(), for each message to each client
            counted_bytes = all_.half_bytes
        all_.counted_bytes += counted_bytes - self._counted_bytes
        self._counted_bytes = counted_bytes

    def has_room(self, size_bytes: int) -> bool:
        """Tell whether one more may wait: an owner may have at most what is then left for all others.

        So it is never full: one gets half, each of two a third (Choudhury and Hahne, "Dynamic queue length thresholds",
        1998). Who has more, since nobody asked, leaves the other half to the others all the same.
        """
        others_bytes = self._all.counted_bytes - self._counted_bytes
        return 2 * (self.size_bytes + size_bytes + OVERHEAD_BYTES) + others_bytes <= self._all.limit_bytes


class Outbound(Generic[T]):
    """What waits for one client, and what it has not acknowledged.

    Attributes:
        maximum: Of the client (Receive Maximum), on this connection.
    """

    __slots__ = (
        "_counted",
        "_flows",
        "_flows_bytes",
        "_next",
        "_queue",
        "_queue_bytes",
        "_share",
        "_unkept",
        "maximum",
    )

    def __init__(self, share: Share | None = None) -> None:
        """Begin empty; what waits counts in `share`, too."""
        self.maximum = DEFAULT_RECEIVE_MAXIMUM
        self._share = share or Share(Queues())
        self._queue: deque[Delivery[T]] | tuple[()] = ()  # most are empty, and a deque takes 760 bytes
        self._queue_bytes = 0
        self._flows: dict[int, Delivery[T]] = {}
        self._flows_bytes = 0
        self._counted = 0
        self._unkept = 0  # deliveries at QoS 0 in the queue
        self._next = 0

    def __len__(self) -> int:
        return len(self._queue) + len(self._flows)

    def __iter__(self) -> Iterator[Delivery[T]]:
        """Everything: what was sent, then what waits, each in order."""
        yield from self._flows.values()
        yield from self._queue

    @property
    def next_number(self) -> int:
        """The number that the next delivery at QoS 1 or 2 gets."""
        return self._next

    def has_room(self, size_bytes: int, *, messages: int, bytes_: int) -> bool:
        """Tell whether one more may wait, where so many messages and bytes may."""
        return len(self._queue) < messages and self._queue_bytes + size_bytes <= bytes_

    def has_share(self, size_bytes: int) -> bool:
        """Tell whether one more may wait, as far as all queues together are concerned (`Share.has_room`)."""
        return self._share.has_room(size_bytes)

    def add(self, qos: int, item: T, size_bytes: int) -> Delivery[T]:
        """Queue a message behind all others."""
        delivery = Delivery(self._next if qos else -1, qos, item, size_bytes)
        self._next += bool(qos)
        self._append(delivery)
        return delivery

    def restore(self, deliveries: Iterable[Delivery[T]]) -> None:
        """Take what was stored, ascending by number; it goes first."""
        for delivery in deliveries:
            self._next = delivery.number + 1
            if delivery.stage is Stage.RELEASED:
                self._flows[delivery.packet_id] = delivery
            else:
                self._append(delivery)

    def shed(self) -> Delivery[T] | None:
        """Give up the oldest message at QoS 0 that waits; None if there is none."""
        if not self._unkept:
            return None
        return self.drop(next(each for each in self._queue if not each.qos))

    def drop(self, delivery: Delivery[T]) -> Delivery[T]:
        """Give up a delivery that waits."""
        assert self._queue, "it waits"
        if self._queue[0] is delivery:
            self._queue.popleft()
        else:
            self._queue.remove(delivery)
        self._queue = self._queue or ()
        self._queue_bytes -= delivery.size_bytes
        self._share.add(-delivery.size_bytes - OVERHEAD_BYTES)
        self._unkept -= not delivery.qos
        return delivery

    def skip(self, delivery: Delivery[T]) -> None:
        """Complete the flow of the head of the queue, a repetition at QoS 2, without sending it again: PUBREL is due."""
        self.drop(delivery)
        delivery.move(Said.SKIPPED)
        self._flows[delivery.packet_id] = delivery
        self._flows_bytes += delivery.size_bytes

    def forget(self) -> list[Delivery[T]]:
        """Give everything up, and back: nothing of it waits any more."""
        deliveries = list(self)
        self._share.add(-self._queue_bytes - OVERHEAD_BYTES * len(self._queue))
        self._queue = ()
        self._flows.clear()
        self._queue_bytes = self._flows_bytes = self._counted = self._unkept = 0
        self._share = Share(Queues())  # whatever a session that has ended is offered is nobody's burden
        return deliveries

    def ready(self, bytes_: int) -> Delivery[T] | None:
        """The next to send, if the client takes it now; unacknowledged are never more than so many bytes, or one."""
        if not self._queue:
            return None
        head = self._queue[0]
        if head.qos:
            is_full = self._counted >= self.maximum or (self._flows and self._flows_bytes + head.size_bytes > bytes_)
            if is_full or head.packet_id in self._flows:  # an old one still uses the identifier [MQTT-2.2.1-3]
                return None
        return head

    def sent(self, delivery: Delivery[T]) -> None:
        """Note that the head of the queue was written."""
        self.drop(delivery)
        if delivery.qos:
            delivery.move(Said.SENT)
            delivery.is_counted = True
            self._counted += 1
            self._flows[delivery.packet_id] = delivery
            self._flows_bytes += delivery.size_bytes

    def answered(self, packet_id: int, said: Said) -> Delivery[T] | None:
        """Take an acknowledgement; None for an identifier that is not in use.

        Raises:
            Violation: It is not what the delivery waits for.
        """
        delivery = self._flows.get(packet_id)
        if delivery is None:
            return None
        delivery.move(said)
        del self._flows[packet_id]
        if delivery.stage is not Stage.DONE:
            self._flows[packet_id] = delivery  # behind those released before: PUBRELs keep that order [MQTT-4.6.0-4]
        else:
            self._counted -= delivery.is_counted
            self._flows_bytes -= delivery.size_bytes
        return delivery

    def suspend(self) -> list[Delivery[T]]:
        """The connection is gone: what was sent waits again, in order; give back what was given up, all of QoS 0."""
        lost = [each for each in self._queue if not each.qos]
        kept = [each for each in self._queue if each.qos]
        again = [each for each in self._flows.values() if each.stage is Stage.SENT]
        for delivery in self._flows.values():
            delivery.is_repeat = True
            delivery.is_counted = False
            delivery.move(Said.LOST)
        self._flows = {each.packet_id: each for each in self._flows.values() if each.stage is Stage.RELEASED}
        self._flows_bytes = sum(each.size_bytes for each in self._flows.values())
        self._counted = self._unkept = 0
        before_bytes = self._queue_bytes + OVERHEAD_BYTES * len(self._queue)
        self._queue = deque([*again, *kept]) or ()
        self._queue_bytes = sum(each.size_bytes for each in self._queue)
        self._share.add(self._queue_bytes + OVERHEAD_BYTES * len(self._queue) - before_bytes)
        return lost

    def released(self) -> list[Delivery[T]]:
        """Those whose PUBREL is to be sent (again), in the order of their PUBRECs."""
        return [each for each in self._flows.values() if each.stage is Stage.RELEASED]

    def _append(self, delivery: Delivery[T]) -> None:
        self._queue = self._queue or deque()
        self._queue.append(delivery)
        self._queue_bytes += delivery.size_bytes
        self._share.add(delivery.size_bytes + OVERHEAD_BYTES)
        self._unkept += not delivery.qos


class Step(Enum):
    """Where an identifier of a received QoS 2 message stands; one that is not known is free."""

    STORING = auto()  # the message is being stored, PUBREC is owed
    RECEIVED = auto()  # stored: whatever comes under this identifier is a repetition, until PUBREL


class Received:
    """Packet identifiers of the QoS 2 messages that a client sent and has not released (figure 4.3, method B)."""

    __slots__ = ("_steps",)

    def __init__(self, received: Iterable[int] = ()) -> None:
        self._steps = dict.fromkeys(received, Step.RECEIVED)

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[int]:
        """Identifiers that are received: the durable ones."""
        return (each for each, step in self._steps.items() if step is Step.RECEIVED)

    def step(self, packet_id: int) -> Step | None:
        """Where an identifier stands."""
        return self._steps.get(packet_id)

    def begin(self, packet_id: int) -> None:
        """A message came under a free identifier."""
        self._steps[packet_id] = Step.STORING

    def settle(self, packet_id: int, *, is_stored: bool) -> None:
        """The message is stored; or refused, which frees the identifier [MQTT-4.3.3-9]."""
        if is_stored:
            self._steps[packet_id] = Step.RECEIVED
        else:
            del self._steps[packet_id]

    def release(self, packet_id: int) -> bool:
        """PUBREL came; False if the identifier is not received: PUBCOMP says 0x92."""
        if self._steps.get(packet_id) is not Step.RECEIVED:
            return False
        del self._steps[packet_id]
        return True
