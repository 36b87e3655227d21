"""What happens to a publish, a client's or a will: authorize its topic, then hand it to ingest, store or routing.

One function decides for both (wire protocol, section 3, "Authorization"); it knows no connection: a publish ends by
calling `settle` once, with the receipt that section 6 asks for.

What was routed is never refused afterwards: subscribers may have it, and a refusal would make the publisher send it again.
Its receipt waits for the store, as long as that takes; so at QoS 2 nothing is delivered twice, though the store may fail
between the two. Only what comes while the store is known to fail is refused, before anybody gets it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import structlog

from edge_protocol.errors import TopicInvalid
from edge_protocol.topics import Kind, Place, TopicName, place_of
from gateway.mqtt.codec import Publish, PublishRun, ReasonCode, Will, is_payload_format_valid
from gateway.mqtt.hub import Hub
from gateway.mqtt.messages import Message, message_of, with_response_topic
from gateway.mqtt.retained import Owner
from gateway.mqtt.states import check_state
from gateway.ports.identity import Principal
from gateway.ports.ingest import (
    NOT_AUTHORIZED,
    PAYLOAD_FORMAT_INVALID,
    STORED,
    TOPIC_NAME_INVALID,
    UNAVAILABLE,
    UNSPECIFIED_ERROR,
    Arrival,
    Lane,
    Receipt,
)
from gateway.rules.policy import Permissions

if TYPE_CHECKING:
    from gateway.mqtt.session import Session

log = structlog.get_logger()

Settle = Callable[[Receipt], None]

_NOBODY: Final = Receipt(ReasonCode.NO_MATCHING_SUBSCRIBERS)
_NOT_QUEUED: Final = Receipt(UNAVAILABLE, "queue-unavailable: no message can be stored for its subscribers now")
_CACHED_CHARS: Final = 256
_placed = lru_cache(maxsize=8192)(place_of)  # topics repeat; refusals and long names are not kept


def refusal(message: Publish | Will, place: Place, topic: TopicName, permissions: Permissions) -> Receipt | None:
    """Why a message may not be published, before its payload is looked into; None if it may."""
    if message.retain and place.kind is not Kind.ORDINARY:
        return Receipt(NOT_AUTHORIZED, "retain: expected no RETAIN under devices/ and gateway/")
    if not permissions.may_publish(topic):
        return Receipt(NOT_AUTHORIZED, f"not-authorized: publishing to {topic[:200]!r} is not allowed")
    if place.event_type is not None and permissions.require_envelope:
        return Receipt(NOT_AUTHORIZED, "envelope-required: plain events are not accepted from this role")
    if not is_payload_format_valid(message):
        return Receipt(PAYLOAD_FORMAT_INVALID, "payload-format: said to be UTF-8, and is not [MQTT-3.3.1-1]")
    return None


def place_or_refusal(topic: str) -> Place | Receipt:
    """Where a topic belongs, or that there is no such topic (0x90)."""
    try:
        return (_placed if len(topic) <= _CACHED_CHARS else place_of)(TopicName(topic))
    except TopicInvalid as exc:
        return Receipt(TOPIC_NAME_INVALID, f"topic: {exc}")


class Publisher:
    """Publishes for one client.

    Attributes:
        permissions: What it may; replaced when policy or token change.
        lane: Its event publishes, stored in order or not at all.
        session: Whose No Local subscriptions do not get them; None for a will.
    """

    __slots__ = ("_epoch", "_hub", "_principal", "lane", "permissions", "session")

    def __init__(
        self, hub: Hub, principal: Principal, permissions: Permissions, epoch: int, session: Session | None = None
    ) -> None:
        self._hub = hub
        self._principal = principal
        self._epoch = epoch
        self.permissions = permissions
        self.lane = Lane()
        self.session = session

    def publish(self, packet: Publish, place: Place, topic: TopicName, settle: Settle) -> None:
        """Take a publish over; `settle` is called once, now or later, on the loop's thread."""
        refused = refusal(packet, place, topic, self.permissions)
        if refused is not None:
            settle(refused)
        elif place.kind is Kind.EVENTS:
            self._submit(packet, place, settle)
        elif place.kind is Kind.STATE:
            self._save(packet, place, topic, settle)
        else:
            self._take(self._message(packet, place, topic), packet.packet_id, settle)

    def publish_run(self, run: PublishRun, place: Place, topic: TopicName, settle: Settle) -> bool:
        """Take events over that are alike, `settle` being called once for all; False if each must be looked at for itself.

        `settle` is not called before this returns.
        """
        first = run.first
        is_plain = not first.properties.user_properties and not first.properties.payload_format_indicator
        if not is_plain or refusal(first, place, topic, self.permissions) is not None:
            return False
        return self._hub.ingest.submit_run(self._arrival(first, place), run.payloads, settle)

    def _take(self, message: Message, packet_id: int, settle: Settle) -> None:
        """Route a message, and keep it if it is retained; one that there is no room for is not published at all."""
        refused = self._hub.retained.refusal(message) if message.retain else None
        has_sender = self.session is not None  # nobody would repeat a will
        if has_sender and self._hub.journal.is_failing and (message.qos or message.retain):
            refused = _NOT_QUEUED
        if refused is not None:
            settle(refused)
        else:
            self._route(message, packet_id, settle)

    def _route(self, message: Message, packet_id: int, settle: Settle) -> None:
        """Offer a message to its subscribers; settled when the queues of durable sessions hold it (wire protocol, 3)."""
        journal = self._hub.journal
        before = journal.count
        if message.retain:
            client_id = self.session.client_id if self.session else ""
            self._hub.retained.keep(message, Owner(self._principal, client_id, self._epoch))
        receipt = STORED if self._hub.router.route(message) else _NOBODY
        if journal.count == before:
            settle(receipt)
            return
        if message.qos == 2 and self.session is not None:
            self.session.receiver.note(packet_id)
        journal.surely(lambda: settle(receipt))

    def _submit(self, packet: Publish, place: Place, settle: Settle) -> None:
        self._hub.turn.submitted()
        self._hub.ingest.submit(self._arrival(packet, place), settle)

    def _arrival(self, packet: Publish, place: Place) -> Arrival:
        return Arrival(
            principal=self._principal,
            permissions=self.permissions,
            device=place.device or "",
            event_type=place.event_type,
            payload=packet.payload,
            content_type=packet.properties.content_type,
            attributes=packet.properties.user_properties,
            received_ms=int(self._hub.clock() * 1000),
            lane=self.lane,
        )

    def _save(self, packet: Publish, place: Place, topic: TopicName, settle: Settle) -> None:
        limits = self._hub.settings.limits
        bad = check_state(packet.payload, max_bytes=limits.state_bytes, depth=limits.json_depth)
        if bad is not None:
            settle(bad)
            return
        message = self._message(packet, place, topic)

        def stored(receipt: Receipt) -> None:
            if receipt.code < UNSPECIFIED_ERROR:
                self._route(message, packet.packet_id, lambda _routed: settle(receipt))
            else:
                settle(receipt)

        self._hub.states.save(place.device or "", packet.payload, stored)

    def _message(self, packet: Publish, place: Place, topic: TopicName) -> Message:
        message = message_of(packet, topic, self.session, self._hub.loop.time())
        return with_response_topic(message, f"{topic}/response") if place.kind is Kind.COMMAND else message


def publish_will(hub: Hub, principal: Principal, permissions: Permissions, epoch: int, will: Will) -> None:
    """Publish the will of a client that was lost, if policy still allows it [MQTT-3.1.2-8]."""
    place = place_or_refusal(will.topic)
    if isinstance(place, Receipt):
        return
    hub.stats.wills += 1
    packet = Publish(
        topic=will.topic,
        payload=will.payload,
        qos=will.qos,
        retain=will.retain,
        packet_id=1 if will.qos else 0,
        properties=will.properties,
    )

    def settled(receipt: Receipt) -> None:
        if receipt.code >= 0x80:
            log.warning("will_refused", principal=str(principal), code=receipt.code, reason=receipt.reason)

    Publisher(hub, principal, permissions, epoch).publish(packet, place, TopicName(will.topic), settled)
