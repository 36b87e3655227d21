"""Who gets what: subscriptions of all sessions, and the messages the gateway keeps for new ones.

Knows topics and subscribers, no connection. Every delivery is authorized again, by topic name, where it is offered
(wire protocol, section 3, "Authorization").
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

from edge_protocol.events import Event
from edge_protocol.topics import TopicFilter, TopicName, matches, split_share
from gateway.mqtt.groups import Groups, Sharer
from gateway.mqtt.messages import EventMessage, Message
from gateway.mqtt.trie import Trie
from gateway.rules.sharing import event_filter

if TYPE_CHECKING:
    from gateway.mqtt.shelf import Item, OnAck

_PRESENCE_LEVEL: Final = slice(3, 4)  # devices/{id}/events/device/connected
_PRESENCE: Final = "device"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscribed:
    """A subscription that was granted (MQTT 5.0, section 3.8.3.1).

    Attributes:
        qos: Granted.
        identifier: Subscription Identifier, or None.
        no_local: Not what the same session published.
        retain_as_published: Keep the RETAIN flag.
        is_cursor: Events come by a cursor of the bus (`mqtt.cursors`), not from here.
        names_presence: Its filter names the level `device` of presence events; a wildcard there does not ask for them.
    """

    qos: int = 0
    identifier: int | None = None
    no_local: bool = False
    retain_as_published: bool = False
    is_cursor: bool = False
    names_presence: bool = False


class Subscriber(Hashable, Protocol):
    """A session or a group of them, as the router sees it."""

    def offer(self, message: Message, qos: int, identifiers: tuple[int, ...], *, retain: bool) -> bool:
        """Deliver a message if its topic is allowed; tell whether it is.

        Args:
            message: What was published.
            qos: The highest that was granted to any subscription it falls under.
            identifiers: Of those subscriptions.
            retain: The RETAIN flag to send.
        """
        ...


class Router:
    """Subscriptions and retained messages of one gateway."""

    def __init__(self) -> None:
        self._trie: Trie[Subscriber, Subscribed] = Trie()
        self._retained: dict[TopicName, Message] = {}
        self._groups = Groups(self._trie, Subscribed(qos=2))
        self._event_filters = 0

    @property
    def wants_events(self) -> bool:
        """Whether anyone listens where events are published: else there is no need to read the bus for them."""
        return self._event_filters > 0

    def wants(self, topic: TopicName) -> bool:
        """Whether a message on this topic would fall under any subscription."""
        return next(self._trie.matching(topic), None) is not None

    def subscribe(self, filter_: TopicFilter, subscriber: Sharer, subscription: Subscribed) -> bool:
        """Add or replace a subscription, shared if it begins with `$share`; tell whether it is new [MQTT-3.8.4-3]."""
        name, inner = split_share(filter_)
        subscription = replace(subscription, names_presence=inner.split("/")[_PRESENCE_LEVEL] == [_PRESENCE])
        if name is None:
            old = self._trie.put(inner, subscriber, subscription)
        else:
            old = self._groups.put(name, inner, subscriber, subscription)
        self._event_filters += _tails(inner, subscription) - _tails(inner, old)
        return old is None

    def unsubscribe(self, filter_: TopicFilter, subscriber: Sharer) -> bool:
        """Remove a subscription; tell whether there was one."""
        name, inner = split_share(filter_)
        old = self._trie.remove(inner, subscriber) if name is None else self._groups.remove(name, inner, subscriber)
        self._event_filters -= _tails(inner, old)
        return old is not None

    def claim(self, subscriber: Sharer, item: Item) -> OnAck | None:
        """After a restart, when all have subscribed again: whom to tell how a delivery ended that a session has (`Groups.claim`)."""
        return self._groups.claim(subscriber, item)

    def route(self, message: Message) -> int:
        """Offer a message to every subscriber once, however many of its filters match [MQTT-3.3.4-2]; tell how many took it."""
        found: dict[Subscriber, list[Subscribed]] = {}
        for subscriber, subscription in self._trie.matching(message.topic):
            if not _is_withheld(message, subscriber, subscription):
                found.setdefault(subscriber, []).append(subscription)
        return sum(_offer(subscriber, message, subscriptions) for subscriber, subscriptions in found.items())

    def publish_event(self, event: Event) -> int:
        """Show a stored event of a device to those who listen, on `devices/{id}/events/{type}`; tell how many got it."""
        device = event.device
        return self.route(EventMessage(device, event)) if device is not None else 0

    def publish_retained(self, topic: TopicName, payload: bytes) -> int:
        """Publish a message of the gateway's own and keep it for later subscribers; an empty payload only removes it."""
        message = Message(topic, payload, qos=1, retain=True)
        if payload:
            self._retained[topic] = message
        else:
            self._retained.pop(topic, None)
        return self.route(message)

    def show_retained(self, filter_: TopicFilter, subscriber: Subscriber, subscription: Subscribed) -> None:
        """Offer a new subscriber what is kept under its filter, with the RETAIN flag (MQTT 5.0, section 3.3.1.3).

        These are the gateway's own messages: as with `$` topics, a filter that begins with a wildcard does not ask for them.
        """
        if filter_[0] in "+#":
            return
        for topic in [topic for topic in self._retained if matches(filter_, topic)]:
            self.offer_retained(self._retained[topic], subscriber, subscription)

    def offer_retained(self, message: Message, subscriber: Subscriber, subscription: Subscribed) -> bool:
        """Offer a subscriber a message that was kept, with the RETAIN flag (MQTT 5.0, section 3.3.1.3); tell whether it may get it."""
        return _offer(subscriber, message, [subscription], is_kept=True)


def _is_withheld(message: Message, subscriber: Subscriber, subscription: Subscribed) -> bool:
    if isinstance(message, EventMessage):
        return subscription.is_cursor or (message.is_presence and not subscription.names_presence)
    return subscription.no_local and message.publisher is subscriber


def _offer(subscriber: Subscriber, message: Message, found: list[Subscribed], *, is_kept: bool = False) -> bool:
    qos = min(message.qos, max(subscription.qos for subscription in found))
    identifiers = tuple(subscription.identifier for subscription in found if subscription.identifier is not None)
    keeps_flag = is_kept or any(subscription.retain_as_published for subscription in found)  # [MQTT-3.3.1-12, -13]
    return subscriber.offer(message, qos, identifiers, retain=message.retain and keeps_flag)


def _tails(filter_: TopicFilter, subscription: Subscribed | None) -> bool:
    return subscription is not None and not subscription.is_cursor and event_filter(filter_) is not None
