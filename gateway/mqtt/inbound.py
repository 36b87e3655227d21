"""What one client publishes: order of acknowledgements, flow control, topic aliases, rates, fresh tokens.

Every publish, refused ones too, takes a slot; slots are answered from the head of a FIFO, at the end of a turn, so
PUBACKs and PUBRECs keep the order of arrival [MQTT-4.6.0-2, -3] and are written once. How a receipt is said, in 5.0 and
in 3.1.1, is decided in one place, `_answer` (wire protocol, section 6). That a QoS 2 message is taken once is the
session's to know (`receiving`).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, cast

import structlog

from edge_protocol.topics import Kind, Place, TopicName
from gateway.mqtt.channel import reason_text
from gateway.mqtt.codec import (
    EMPTY,
    Properties,
    Puback,
    Pubcomp,
    Publish,
    PublishRun,
    Pubrec,
    Pubrel,
    ReasonCode,
    Version,
    puback_ok,
    pubacks_ok,
)
from gateway.mqtt.hub import retry_after_s
from gateway.mqtt.publishing import Publisher, Settle, place_or_refusal
from gateway.mqtt.slots import Slot, Slots
from gateway.ports.ingest import NOT_AUTHORIZED, UNSPECIFIED_ERROR, Receipt
from gateway.rules.rate import TokenBucket
from gateway.rules.session import Input, ReceiveWindow, Violation

if TYPE_CHECKING:
    from gateway.mqtt.connection import Connection
    from gateway.mqtt.hub import Hub

log = structlog.get_logger()

_UNBOUNDED: Final = 1 << 16
_IGNORED: Final = Receipt(ReasonCode.NO_MATCHING_SUBSCRIBERS)
_NO_RATES: Final = (None, None)
_OVERHEAD_BYTES: Final = 512  # of a publish in flight: slot, closure, arrival


class Inbound:
    """The publishing half of a connection."""

    __slots__ = (
        "_aliases",
        "_buckets",
        "_connection",
        "_flows",
        "_hub",
        "_is_broken",
        "_slots",
        "_window",
        "publisher",
    )

    def __init__(self, connection: Connection, hub: Hub, publisher: Publisher) -> None:
        self.publisher = publisher
        self._connection = connection
        self._hub = hub
        self._slots = Slots()
        self._window = ReceiveWindow(hub.settings.limits.receive_maximum)
        self._flows: set[int] = set()  # QoS 2 identifiers that take a place of the window
        self._aliases: dict[int, str] = {}
        self._is_broken = False
        self._buckets: tuple[TokenBucket | None, TokenBucket | None] = _NO_RATES
        self.limit_rates()

    @property
    def unsettled(self) -> int:
        """Publishes that were taken and are not answered."""
        return len(self._slots)

    def limit_rates(self) -> None:
        """Apply the rates of the permissions, which were set or have changed."""
        allowed, now_s = self.publisher.permissions, self._hub.loop.time()
        rates = allowed.events_per_s, allowed.bytes_per_s
        events, size = (TokenBucket(rate, allowed.burst, now_s) if rate else None for rate in rates)
        self._buckets = events, size

    def take(self, packet: Publish) -> None:
        """Take a PUBLISH.

        Raises:
            Violation: It breaks what CONNACK announced.
        """
        topic = self._topic(packet)
        place = place_or_refusal(topic)
        run = self._read_on(packet) if isinstance(place, Place) and _may_begin_run(packet, place) else None
        if run is None or not self._take_run(run, topic, cast("Place", place)):
            for each in run.packets() if run else (packet,):
                self._take_one(each, topic, place)

    def _take_one(self, packet: Publish, topic: str, place: Place | Receipt) -> None:
        self._count(packet)
        charge_bytes = len(packet.payload) + len(topic) + _OVERHEAD_BYTES
        slot = self._slots.add(Slot(packet.packet_id, packet.qos, charge_bytes))
        self._hub.budget.take(self._connection, charge_bytes)
        self._slow_down(len(packet.payload))
        try:
            self._hand_over(packet, topic, place, slot)
        except BaseException:
            if slot.receipt is None:  # whatever broke, the budget must not
                self._settle(slot, Receipt(UNSPECIFIED_ERROR, "internal error"))
            raise

    def release(self, packet: Pubrel) -> None:
        """Take a PUBREL: the flow of a QoS 2 message ends."""
        self._connection.session.receiver.release(packet.packet_id, partial(self._complete, packet.packet_id))

    def answer(self) -> None:
        """Write what is due: acknowledgements of finished slots up to the first unfinished one."""
        while not self._is_broken and (done := self._slots.pop()) is not None:
            self._answer(*done)

    def _hand_over(self, packet: Publish, topic: str, place: Place | Receipt, slot: Slot) -> None:
        settle: Settle | None = partial(self._settle, slot)
        if packet.qos == 2:
            settle = self._connection.session.receiver.take(packet.packet_id, partial(self._settle, slot))
        if settle is None:
            return  # a repetition
        if isinstance(place, Receipt):
            settle(place)
        elif place.kind is Kind.TOKEN:
            self._take_token(packet, place, settle)
        elif self._is_ignored(topic):
            settle(_IGNORED)
        else:
            self.publisher.publish(packet, place, TopicName(topic), settle)

    def _read_on(self, packet: Publish) -> PublishRun | None:
        """What follows an event and is like it: a run of 100 costs little more than one publish.

        Not while a rate is set, which stops reading between two publishes.
        """
        if packet.qos == 2 or self._buckets != _NO_RATES:
            return None
        return self._connection.read_on(packet, self._window.room if self._is_counted(packet) else _UNBOUNDED)

    def _take_run(self, run: PublishRun, topic: str, place: Place) -> bool:
        """Take publishes that are stored as one; False if each must be looked at for itself."""
        count = len(run.payloads)
        charge_bytes = sum(map(len, run.payloads)) + count * (len(topic) + _OVERHEAD_BYTES)
        slot = Slot(run.first.packet_id, run.first.qos, charge_bytes, run)
        if not self.publisher.publish_run(run, place, TopicName(topic), partial(self._settle, slot)):
            return False
        self._slots.add(slot)
        self._hub.budget.take(self._connection, charge_bytes)
        if self._is_counted(run.first):
            self._window.open(count)
        return True

    def _is_ignored(self, topic: str) -> bool:
        """Whether a 3.1.1 client publishes to a `$` topic of nobody's: that may not cost it the connection (4.7.2)."""
        is_reserved = topic.startswith("$") and self._connection.version is Version.V311
        return is_reserved and not self.publisher.permissions.may_publish(TopicName(topic))

    def _complete(self, packet_id: int, is_known: bool) -> None:
        connection = self._connection
        self.answer()  # no PUBREC behind its PUBCOMP
        if packet_id in self._flows:
            self._flows.remove(packet_id)
            self._window.close()
        code = ReasonCode.SUCCESS if is_known else connection.unknown_identifier
        connection.send(Pubcomp(packet_id=packet_id, reason_code=code))

    def _topic(self, packet: Publish) -> str:
        alias = packet.properties.topic_alias
        if alias is None:
            return packet.topic
        if alias > self._hub.settings.limits.topic_alias_maximum:
            raise Violation(
                ReasonCode.TOPIC_ALIAS_INVALID, f"topic alias {alias} over the announced maximum [MQTT-3.3.2-9]"
            )
        if packet.topic:
            self._aliases[alias] = packet.topic
        elif alias not in self._aliases:
            raise Violation(ReasonCode.PROTOCOL_ERROR, f"topic alias {alias} was never set (section 3.3.2.3.4)")
        return self._aliases[alias]

    def _count(self, packet: Publish) -> None:
        """Count a publish against the Receive Maximum: at QoS 2 until PUBCOMP, and repeated not again (section 4.9)."""
        if not self._is_counted(packet):
            return
        if packet.qos == 1:
            self._window.open()
        elif packet.packet_id not in self._flows:
            self._window.open()
            self._flows.add(packet.packet_id)

    def _is_counted(self, packet: Publish) -> bool:
        return packet.qos > 0 and self._connection.version is Version.V5

    def _slow_down(self, size_bytes: int) -> None:
        now_s = self._hub.loop.time()
        events, size = self._buckets
        wait_s = max(events.take(1, now_s) if events else 0.0, size.take(size_bytes, now_s) if size else 0.0)
        if wait_s > 0:
            self._connection.hold_for_rate(wait_s)

    def _take_token(self, packet: Publish, place: Place, settle: Settle) -> None:
        if packet.retain:
            settle(Receipt(NOT_AUTHORIZED, "retain: expected no RETAIN under devices/ and gateway/"))
        elif place.device != self._connection.principal.device:
            settle(Receipt(NOT_AUTHORIZED, "not-authorized: a token is renewed on its principal's own topic"))
        elif not packet.qos:
            settle(Receipt(NOT_AUTHORIZED, "token: expected QoS 1"))
        else:
            self._connection.renew(Input.TOKEN, packet.payload, settle)

    def _settle(self, slot: Slot, receipt: Receipt) -> None:
        self._hub.budget.give(self._connection, slot.charge_bytes)
        if self._slots.settle(slot, receipt):
            self._hub.turn.add(self._connection)

    def _answer_run(self, run: PublishRun, receipt: Receipt) -> None:
        if receipt.code >= UNSPECIFIED_ERROR:
            for each in run.packets():
                if not self._is_broken:
                    self._answer(Slot(each.packet_id, each.qos, 0), receipt)
            return
        self._hub.stats.publishes[receipt.code] += len(run.payloads)
        if self._is_counted(run.first):
            self._window.close(len(run.payloads))
        if run.packet_ids:
            self._connection.write(pubacks_ok(run.packet_ids))

    def _answer(self, slot: Slot, receipt: Receipt) -> None:
        if slot.run is not None:
            self._answer_run(slot.run, receipt)
            return
        self._hub.stats.publishes[receipt.code] += 1
        is_refused = receipt.code >= UNSPECIFIED_ERROR
        if slot.qos == 1 and self._connection.version is Version.V5:
            self._window.close()
        elif is_refused and slot.packet_id in self._flows and slot.qos:
            self._flows.remove(slot.packet_id)  # PUBREC with an error ends the flow [MQTT-4.3.3-9]
            self._window.close()
        if is_refused:
            self._refuse(slot, receipt)
        elif slot.qos:
            self._acknowledge(slot, ReasonCode(receipt.code))

    def _acknowledge(self, slot: Slot, code: ReasonCode, said: Properties = EMPTY) -> None:
        """PUBACK or PUBREC; in 3.1.1 neither has a code."""
        connection = self._connection
        code = code if connection.version is Version.V5 else ReasonCode.SUCCESS
        if slot.qos == 1 and not code:
            connection.write(puback_ok(slot.packet_id))
        else:
            kind = Puback if slot.qos == 1 else Pubrec
            connection.send(kind(packet_id=slot.packet_id, reason_code=code, properties=said))

    def _refuse(self, slot: Slot, receipt: Receipt) -> None:
        connection, is_v5 = self._connection, self._connection.version is Version.V5
        rule, code = receipt.reason.partition(":")[0], ReasonCode(receipt.code)
        log.info("publish_refused", client=connection.client_id, code=f"0x{receipt.code:02X}", rule=rule)
        if slot.qos and is_v5:
            self._acknowledge(slot, code, _said(receipt))
        is_untrue = bool(slot.qos) and not is_v5 and self._hub.settings.strict_311  # 3.1.1 can only say stored
        if is_untrue or not receipt.is_final:
            self._is_broken = True
            again = () if receipt.is_final or receipt.retry_after_s is not None else self._come_back()
            connection.end(code, receipt.reason, (*_advice(receipt), *again))
        elif slot.qos and not is_v5:
            self._acknowledge(slot, code)

    def _come_back(self) -> tuple[tuple[str, str], ...]:
        return (("retry-after", str(retry_after_s(self._connection.client_id))),)


def _may_begin_run(packet: Publish, place: Place) -> bool:
    """Whether it is a plain event: bare data, or a CloudEvent as JSON."""
    return place.kind is Kind.EVENTS and (place.event_type is not None or packet.payload[:1] == b"{")


def _advice(receipt: Receipt) -> tuple[tuple[str, str], ...]:
    """What the sender shall do, as user properties (wire protocol, section 6)."""
    advice = (("action", "reseal"),) if receipt.reseal else ()
    return advice if receipt.retry_after_s is None else (*advice, ("retry-after", str(receipt.retry_after_s)))


def _said(receipt: Receipt) -> Properties:
    return Properties(reason_string=reason_text(receipt.reason), user_properties=_advice(receipt))
