"""Shared subscriptions on ordinary topics (MQTT 5.0, section 4.8.2): a group takes a message once, for one of its members.

To the router a group is one subscriber. It chooses who gets a message (`rules.sharing`) and, while that is not
acknowledged, keeps it: a session that ends hands it back, and another member gets it; what was sent at QoS 2 the session
never hands back [MQTT-4.8.2-5], nor what its client refused [MQTT-4.8.2-6]. A durable session that is away keeps its own.
After a restart of the gateway sessions still have what they were given, and the group takes it back from those that end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Protocol

from gateway.mqtt.messages import EventMessage, Message
from gateway.rules.sharing import Fate, least_loaded, share_id

if TYPE_CHECKING:
    from edge_protocol.topics import TopicFilter
    from gateway.mqtt.router import Subscribed, Subscriber
    from gateway.mqtt.shelf import Item, OnAck
    from gateway.mqtt.trie import Trie


class Sharer(Hashable, Protocol):
    """A session, as its groups see it."""

    @property
    def is_connected(self) -> bool:
        """Whether a client is there to take deliveries."""
        ...

    def offer(
        self,
        message: Message,
        qos: int,
        identifiers: tuple[int, ...],
        *,
        retain: bool,
        on_ack: Callable[[Fate], object] | None = None,
        key: str = "",
        share: bytes = b"",
    ) -> bool:
        """Deliver a message if its topic is allowed (`Subscriber.offer`).

        Args:
            message: What was published.
            qos: To send it at.
            identifiers: To send it with.
            retain: The RETAIN flag to send.
            on_ack: Told once, perhaps before this returns, how it ended; not where the answer is False.
            key: Names a message that the caller keeps too, and offers again after a restart of the gateway.
            share: Names the group it is offered by, which takes it up again after a restart.
        """
        ...


class _Member:
    """Who shares, and what speaks for and against choosing it (`rules.sharing.Load`)."""

    __slots__ = ("owed", "sharer", "subscription")

    def __init__(self, sharer: Sharer, subscription: Subscribed) -> None:
        self.sharer, self.subscription = sharer, subscription
        self.owed = 0

    @property
    def is_away(self) -> bool:
        return not self.sharer.is_connected

    def wants(self, message: Message) -> bool:
        """Whether it can have a message now: events that come by a cursor are not for it, nor QoS 0 while it is away."""
        if self.subscription.is_cursor and isinstance(message, EventMessage):
            return False
        return bool(min(message.qos, self.subscription.qos)) or not self.is_away


class Group:
    """The members of one `$share/NAME/FILTER`; who was given something longest ago comes first."""

    __slots__ = ("_back", "_id", "_is_giving", "_members")

    def __init__(self, id_: bytes) -> None:
        """Begin without members.

        Args:
            id_: What sessions keep with its messages (`share_id`).
        """
        self._id = id_
        self._members: dict[Sharer, _Member] = {}
        self._back: deque[tuple[Message, set[Sharer]]] = deque()  # handed back, and who had them
        self._is_giving = False

    def __len__(self) -> int:
        return len(self._members)

    def put(self, sharer: Sharer, subscription: Subscribed) -> Subscribed | None:
        """Add or replace a member's subscription; give back the one it replaces."""
        member = self._members.get(sharer)
        if member is None:
            self._members[sharer] = _Member(sharer, subscription)
            return None
        old, member.subscription = member.subscription, subscription
        return old

    def remove(self, sharer: Sharer) -> Subscribed | None:
        """Let a member go; what is on its way to it stays its own [MQTT-3.10.4-3]."""
        member = self._members.pop(sharer, None)
        return member.subscription if member else None

    def offer(self, message: Message, _qos: int, _identifiers: tuple[int, ...], *, retain: bool = False) -> bool:  # noqa: ARG002 - each member has its own of these
        """Give a message to one member (`Subscriber`); tell whether there is one who may have it."""
        return self._give(message, set())

    def claim(self, sharer: Sharer, message: Message) -> OnAck:
        """After a restart: go on with a delivery that a session has, whether or not it is still a member."""
        member = self._members.get(sharer)
        if member is not None:
            member.owed += 1
        return partial(self._ended, member, message, {sharer})

    def _give(self, message: Message, tried: set[Sharer]) -> bool:
        while (member := least_loaded(self._wanting(message, tried))) is not None:
            tried.add(member.sharer)
            if self._hand(member, message, tried):
                return True
        return False

    def _wanting(self, message: Message, tried: set[Sharer]) -> Iterator[_Member]:
        return (each for each in self._members.values() if each.sharer not in tried and each.wants(message))

    def _hand(self, member: _Member, message: Message, tried: set[Sharer]) -> bool:
        self._members[member.sharer] = self._members.pop(member.sharer)
        subscription = member.subscription
        qos = min(message.qos, subscription.qos)
        identifiers = () if subscription.identifier is None else (subscription.identifier,)
        retain = message.retain and subscription.retain_as_published
        member.owed += bool(qos)
        ended = partial(self._ended, member, message, tried) if qos else None
        is_allowed = member.sharer.offer(message, qos, identifiers, retain=retain, on_ack=ended, share=self._id)
        member.owed -= bool(qos) and not is_allowed
        return is_allowed

    def _ended(self, member: _Member | None, message: Message, tried: set[Sharer], fate: Fate) -> None:
        if member is not None:
            member.owed -= 1
        if fate is Fate.UNSENT:
            self._back.append((message, tried))
            self._give_again()

    def _give_again(self) -> None:
        """In a loop: a member that is full hands back at once, and so may all others of a large group."""
        if self._is_giving:
            return
        self._is_giving = True
        try:
            while self._back:
                self._give(*self._back.popleft())
        finally:
            self._is_giving = False


class Groups:
    """All groups of one router, in its trie under the filters behind `$share/NAME/`."""

    def __init__(self, trie: Trie[Subscriber, Subscribed], placeholder: Subscribed) -> None:
        """Begin without any.

        Args:
            trie: Of the router.
            placeholder: What the router knows of a group's subscription: its members have their own.
        """
        self._trie = trie
        self._placeholder = placeholder
        self._groups: dict[bytes, Group] = {}

    def put(self, name: str, filter_: TopicFilter, sharer: Sharer, subscription: Subscribed) -> Subscribed | None:
        """Add or replace a member's subscription; give back the one it replaces."""
        id_ = share_id(name, filter_)
        group = self._groups.get(id_)
        if group is None:
            group = self._groups[id_] = Group(id_)
            self._trie.put(filter_, group, self._placeholder)
        return group.put(sharer, subscription)

    def claim(self, sharer: Sharer, item: Item) -> OnAck | None:
        """After a restart, when all have subscribed again: whom to tell how a session's delivery ended; None if it has no group."""
        group = self._groups.get(item.share)
        return group.claim(sharer, item.message) if group else None

    def remove(self, name: str, filter_: TopicFilter, sharer: Sharer) -> Subscribed | None:
        """Take a member's subscription out; None if there was none."""
        id_ = share_id(name, filter_)
        group = self._groups.get(id_)
        if group is None:
            return None
        old = group.remove(sharer)
        if not len(group):
            del self._groups[id_]
            self._trie.remove(filter_, group)
        return old
