"""Topic policy: deny by default, one function over topics for publish, will, subscribe and delivery.

Owns what roles allow (wire protocol, section 3, "Authorization") and what no policy can allow: the topics reserved under
`devices/` and `gateway/`. It knows no connection, token or message. Topics are compared by the one matcher of
`edge_protocol.topics`, as bytes came, never normalised.

Strategy: patterns are substituted once, when a principal connects; each answer is remembered by topic, in a bounded
cache that is emptied when it is full, since a client chooses the topics it asks about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from edge_protocol.errors import TopicInvalid
from edge_protocol.events import is_event_type
from edge_protocol.ids import device_id
from edge_protocol.topics import (
    Kind,
    Place,
    TopicFilter,
    TopicName,
    covers,
    events_topic,
    matches,
    place_of,
    split_share,
    topic_filter,
)
from gateway.rules.selection import PRESENCE_TYPES, matches_pattern

DEVICE: Final = "{device}"
"""Stands in a pattern for the connected device's id; always a whole level."""

_CACHED_TOPICS: Final = 512  # answers remembered a principal and question: 100 bytes each, a device uses a handful
_CACHED_CHARS: Final = 256  # longer topics are asked about anew: a client could otherwise fill memory with names
_NEVER: Final = frozenset((Kind.TOKEN, Kind.CONFIG, Kind.RECEIPTS, Kind.KEYS))  # tokens are consumed before any policy


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRule:
    """What one role may do: a `[[policy]]` table of gateway.toml.

    Attributes:
        role: Its name.
        publish: Topic filters it may publish under; `{device}` is the connected device's id.
        subscribe: Topic filters it may subscribe within and receive from.
        deny_publish: Filters that win over `publish`.
        deny_subscribe: Filters that win over `subscribe`.
        require_envelope: Whether plain events and wills are refused; None: exactly if `{device}` occurs.
        events_per_s: Publishes a second that are read from one connection; None: no bound.
        bytes_per_s: Likewise, bytes of payload.
        burst: Seconds' worth of either that may come at once.
        emit: Event types a service may raise through the HTTP event bus, exact or with a final `*`.
    """

    role: str
    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()
    deny_publish: tuple[str, ...] = ()
    deny_subscribe: tuple[str, ...] = ()
    require_envelope: bool | None = None
    events_per_s: float | None = None
    bytes_per_s: float | None = None
    burst: float = 2.0
    emit: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for pattern in self._patterns():
            _check_pattern(pattern)
        for pattern in self.emit:
            if pattern != "*" and not is_event_type(pattern.removesuffix("*").removesuffix(".")):
                raise ValueError(f"event type {pattern!r}: expected a type, exact or with a final '*'")
        for rate in (self.events_per_s, self.bytes_per_s, self.burst):
            if rate is not None and not rate > 0:
                raise ValueError(f"rate {rate!r}: expected a number above 0")

    @property
    def is_for_devices(self) -> bool:
        """Whether `{device}` occurs: such a rule allows nothing to a principal that is no device."""
        return any(DEVICE in pattern for pattern in self._patterns())

    @property
    def needs_envelope(self) -> bool:
        """`require_envelope` with its default."""
        return self.is_for_devices if self.require_envelope is None else self.require_envelope

    def _patterns(self) -> tuple[str, ...]:
        return (*self.publish, *self.subscribe, *self.deny_publish, *self.deny_subscribe)


def _check_pattern(pattern: str) -> None:
    levels = pattern.split("/")
    if any(("{" in level or "}" in level) and level != DEVICE for level in levels):
        raise ValueError(f"pattern {pattern!r}: expected {DEVICE} as a whole level, and no other braces")
    if levels[0] == "$share":
        raise ValueError(f"pattern {pattern!r}: expected the filter behind $share/GROUP/, which is stripped first")
    topic_filter(pattern)


@dataclass(frozen=True, slots=True, kw_only=True)
class Permissions:
    """What a principal's roles allow, substituted for it. Two are equal when they allow the same.

    Attributes:
        publish: Topic filters, as in `PolicyRule` but without `{device}`; likewise the next three.
        require_envelope: Whether one of its roles refuses plain events.
        events_per_s: The lowest rate of its roles; None: no bound.
        bytes_per_s: Likewise.
        burst: The lowest of its roles, in seconds.
        emit: Event types it may raise as a service.
    """

    publish: tuple[TopicFilter, ...] = ()
    subscribe: tuple[TopicFilter, ...] = ()
    deny_publish: tuple[TopicFilter, ...] = ()
    deny_subscribe: tuple[TopicFilter, ...] = ()
    require_envelope: bool = False
    events_per_s: float | None = None
    bytes_per_s: float | None = None
    burst: float = 2.0
    emit: tuple[str, ...] = ()
    _publish: dict[str, bool] = field(default_factory=dict, init=False, repr=False, compare=False)
    _receive: dict[str, bool] = field(default_factory=dict, init=False, repr=False, compare=False)

    def may_publish(self, topic: TopicName) -> bool:
        """Tell whether a client may publish to a topic, or leave a will there.

        False, whatever the policy: an unknown topic under `devices/` or `gateway/`, and those that only the gateway
        publishes. A token topic too: the connection consumes what comes there, it is no publish. On
        `devices/{id}/events`, a carrier, true if some event type may pass there; each event is asked for by `may_emit`.
        """
        return _cached(self._publish, topic, self._decide_publish)

    def may_subscribe(self, filter_: str) -> bool:
        """Tell whether an allow pattern covers the whole filter and no deny pattern does; `$share/GROUP/` is stripped."""
        try:
            _, inner = split_share(filter_)
        except TopicInvalid:
            return False
        return _any_covers(self.subscribe, inner) and not _any_covers(self.deny_subscribe, inner)

    def may_receive(self, topic: TopicName) -> bool:
        """Tell whether a message on this topic may be delivered: asked for every delivery, live, queued or retained."""
        return _cached(self._receive, topic, self._decide_receive)

    def may_emit(self, device: str, event_type: str) -> bool:
        """Tell whether an event, sealed or plain, may be published for a device: as on `events/` + its type."""
        return self.may_publish(events_topic(device, event_type))

    def may_raise(self, event_type: str) -> bool:
        """Tell whether a service may raise an event of this type through the HTTP event bus."""
        return event_type not in PRESENCE_TYPES and any(matches_pattern(pattern, event_type) for pattern in self.emit)

    def _decide_publish(self, topic: TopicName) -> bool:
        try:
            place = place_of(topic)
        except TopicInvalid:
            return False
        if place.kind in _NEVER or place.event_type in PRESENCE_TYPES:
            return False
        if place.kind is Kind.EVENTS and place.event_type is None:
            return self._may_carry(place, topic)
        return _any_matches(self.publish, topic) and not _any_matches(self.deny_publish, topic)

    def _may_carry(self, place: Place, topic: TopicName) -> bool:
        levels = topic.count("/") + 1
        starts = (TopicFilter("/".join(pattern.split("/")[:levels])) for pattern in self.publish)
        everything = TopicFilter(f"{events_topic(place.device or '')}/#")
        return _any_matches(starts, topic) and not _any_covers(self.deny_publish, everything)

    def _decide_receive(self, topic: TopicName) -> bool:
        return _any_matches(self.subscribe, topic) and not _any_matches(self.deny_subscribe, topic)


NOTHING: Final = Permissions()
"""What an unknown role allows."""


def _cached(cache: dict[str, bool], topic: TopicName, decide: Callable[[TopicName], bool]) -> bool:
    answer = cache.get(topic)
    if answer is None:
        if len(topic) > _CACHED_CHARS:
            return decide(topic)
        if len(cache) >= _CACHED_TOPICS:
            cache.clear()
        answer = cache[topic] = decide(topic)
    return answer


def _any_matches(patterns: Iterable[TopicFilter], topic: TopicName) -> bool:
    return any(matches(pattern, topic) for pattern in patterns)


def _any_covers(patterns: Iterable[TopicFilter], filter_: TopicFilter) -> bool:
    return any(covers(pattern, filter_) for pattern in patterns)


class Policy:
    """All roles. Rules of one role add up, and so do several roles of one principal: allows and denies alike."""

    def __init__(self, rules: Iterable[PolicyRule]) -> None:
        self.rules = tuple(rules)
        self._by_role: dict[str, list[PolicyRule]] = {}
        for rule in self.rules:
            self._by_role.setdefault(rule.role, []).append(rule)

    @property
    def roles(self) -> Mapping[str, bool]:
        """The known roles, and whether one is for devices."""
        return {role: any(rule.is_for_devices for rule in rules) for role, rules in self._by_role.items()}

    def permissions(self, roles: Iterable[str], device: str | None) -> Permissions:
        """Substitute what some roles allow for one principal. An unknown role allows nothing.

        Args:
            roles: Its roles.
            device: Its device id; None for one that is no device: a rule with `{device}` then allows nothing, and of
                its denials those without `{device}` stay.

        Raises:
            TopicInvalid: The device id is not one whole topic level, so nothing may be substituted by it.
        """
        rules = [rule for role in dict.fromkeys(roles) for rule in self._by_role.get(role, ())]
        if not rules:
            return NOTHING
        if device is not None:
            device_id(device)  # CVE-2017-7650: an id of `#` or `+` must never reach a pattern
        allowing = [rule for rule in rules if device is not None or not rule.is_for_devices]
        return Permissions(
            publish=_substituted((rule.publish for rule in allowing), device),
            subscribe=_substituted((rule.subscribe for rule in allowing), device),
            deny_publish=_substituted((rule.deny_publish for rule in rules), device),
            deny_subscribe=_substituted((rule.deny_subscribe for rule in rules), device),
            require_envelope=any(rule.needs_envelope for rule in allowing),
            events_per_s=_lowest(rule.events_per_s for rule in allowing),
            bytes_per_s=_lowest(rule.bytes_per_s for rule in allowing),
            burst=_lowest(rule.burst for rule in rules) or 0.0,
            emit=tuple(dict.fromkeys(pattern for rule in allowing for pattern in rule.emit)),
        )


def _substituted(lists: Iterable[tuple[str, ...]], device: str | None) -> tuple[TopicFilter, ...]:
    patterns = (pattern for patterns in lists for pattern in patterns)
    if device is None:
        patterns = (pattern for pattern in patterns if DEVICE not in pattern)
    return tuple(dict.fromkeys(TopicFilter(pattern.replace(DEVICE, device or "")) for pattern in patterns))


def _lowest(rates: Iterable[float | None]) -> float | None:
    return min((rate for rate in rates if rate is not None), default=None)
