"""Topic names and filters: one grammar, one matcher for routing and for authorization (MQTT 5.0, section 4.7).

Topics are compared as they came, never normalised. What the protocol reserves under `devices/` and `gateway/` is one
table, read by `place_of`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final, NewType

from edge_protocol.errors import TopicInvalid
from edge_protocol.events import is_event_type
from edge_protocol.ids import DeviceId, device_id

TopicName = NewType("TopicName", str)
TopicFilter = NewType("TopicFilter", str)

MAX_TOPIC_BYTES: Final = 65535
KEYS_TOPIC: Final = TopicName("gateway/keys")
TOKEN_TOPIC: Final = TopicName("gateway/token")


def topic_name(text: str) -> TopicName:
    """Check a topic name: 1 to 65535 bytes, no wildcard, no NUL [MQTT-4.7.3-1, -2, -3, MQTT-3.3.2-2].

    Raises:
        TopicInvalid: It breaks one of these rules.
    """
    _check_length(text)
    if "+" in text or "#" in text:
        raise TopicInvalid(f"topic name {text[:200]!r}: expected no wildcard [MQTT-3.3.2-2]")
    return TopicName(text)


def topic_filter(text: str) -> TopicFilter:
    """Check a topic filter without `$share`: `+` and `#` alone in their level, `#` last [MQTT-4.7.1-1, -2].

    Raises:
        TopicInvalid: It breaks one of these rules.
    """
    _check_length(text)
    levels = text.split("/")
    for n, level in enumerate(levels):
        if "#" in level and (level != "#" or n != len(levels) - 1):
            raise TopicInvalid(f"topic filter {text[:200]!r}: expected '#' alone in the last level [MQTT-4.7.1-1]")
        if "+" in level and level != "+":
            raise TopicInvalid(f"topic filter {text[:200]!r}: expected '+' alone in its level [MQTT-4.7.1-2]")
    return TopicFilter(text)


def split_share(text: str) -> tuple[str | None, TopicFilter]:
    """Split `$share/group/filter` [MQTT-4.8.2-1, -2]; the group is None for a filter that is not shared.

    Raises:
        TopicInvalid: No group or no filter, a wildcard in the group, or a bad filter.
    """
    if text != "$share" and not text.startswith("$share/"):
        return None, topic_filter(text)
    _, _, rest = text.partition("/")
    group, slash, inner = rest.partition("/")
    if not group or not slash or not inner or "+" in group or "#" in group:
        raise TopicInvalid(f"topic filter {text[:200]!r}: expected $share/GROUP/FILTER [MQTT-4.8.2-1]")
    return group, topic_filter(inner)


def matches(filter_: TopicFilter, topic: TopicName) -> bool:
    """Tell whether a topic falls under a filter (MQTT 5.0, section 4.7).

    Args:
        filter_: One or more levels; `+` is one level, a final `#` is its parent and all below.
        topic: A published name, without wildcards.

    Returns:
        False for topics starting with `$` when the filter starts with a wildcard [MQTT-4.7.2-1].
    """
    return _covers(filter_.split("/"), topic.split("/"))


def covers(pattern: TopicFilter, filter_: TopicFilter) -> bool:
    """Tell whether every topic that falls under `filter_` falls under `pattern` too."""
    if pattern == "+/#":  # says the same as "#": any first level, and all below it
        pattern = TopicFilter("#")
    return _covers(pattern.split("/"), filter_.split("/"))


def _covers(pattern: list[str], levels: list[str]) -> bool:
    if pattern[0] in ("+", "#") and levels[0].startswith("$"):
        return False
    for n, wanted in enumerate(pattern):
        if wanted == "#":
            return True
        if n == len(levels):
            return False
        if levels[n] == "#" or (wanted != "+" and wanted != levels[n]):
            return False
    return len(levels) == len(pattern)


def _check_length(text: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as exc:
        raise TopicInvalid("topic: expected no surrogates [MQTT-1.5.4-1]") from exc
    if not 1 <= size <= MAX_TOPIC_BYTES:
        raise TopicInvalid(f"topic of {size} bytes: expected 1 to {MAX_TOPIC_BYTES} [MQTT-4.7.3-1, -3]")
    if "\0" in text:
        raise TopicInvalid("topic: expected no NUL character [MQTT-4.7.3-2]")


class Kind(Enum):
    """What a topic is for (wire protocol, section 3)."""

    EVENTS = "events"
    STATE = "state"
    TOKEN = "token"  # noqa: S105  # the name of a topic, not a secret
    COMMAND = "command"
    RESPONSE = "response"
    CONFIG = "config"
    RECEIPTS = "receipts"
    KEYS = "keys"
    ORDINARY = "ordinary"

    @property
    def is_up(self) -> bool:
        """Whether clients publish it (commands come from services)."""
        return self in _UP


_UP = frozenset((Kind.EVENTS, Kind.STATE, Kind.TOKEN, Kind.COMMAND, Kind.RESPONSE, Kind.ORDINARY))
_ONE_LEVEL: Final = {"state": Kind.STATE, "token": Kind.TOKEN, "config": Kind.CONFIG, "receipts": Kind.RECEIPTS}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a topic belongs.

    Attributes:
        device: Whose topic it is, or None.
        event_type: The type that a typed event topic names, or None.
        name: A command's name, or "".
    """

    kind: Kind
    device: DeviceId | None = None
    event_type: str | None = None
    name: str = ""


def place_of(topic: TopicName) -> Place:
    """Read a topic name (wire protocol, section 3).

    Raises:
        TopicInvalid: It is under `devices/` or `gateway/` and there is no such topic.
    """
    first, *rest = topic.split("/")
    if first == "gateway":
        if topic == KEYS_TOPIC:
            return Place(Kind.KEYS)
        if topic == TOKEN_TOPIC:
            return Place(Kind.TOKEN)
        raise TopicInvalid(f"topic {topic[:200]!r}: under gateway/ there are only {KEYS_TOPIC} and {TOKEN_TOPIC}")
    if first != "devices":
        return Place(Kind.ORDINARY)
    if len(rest) < 2:
        raise TopicInvalid(f"topic {topic[:200]!r}: expected devices/ID/events and the like")
    return _device_place(topic, device_id(rest[0]), rest[1:])


def _device_place(topic: str, device: DeviceId, levels: list[str]) -> Place:
    match levels:
        case ["events"]:
            return Place(Kind.EVENTS, device)
        case ["events", *kind] if is_event_type(".".join(kind)) and not any("." in level for level in kind):
            return Place(Kind.EVENTS, device, event_type=".".join(kind))
        case [one] if one in _ONE_LEVEL:
            return Place(_ONE_LEVEL[one], device)
        case ["commands", name] if name:
            return Place(Kind.COMMAND, device, name=name)
        case ["commands", name, "response"] if name:
            return Place(Kind.RESPONSE, device, name=name)
    raise TopicInvalid(
        f"topic {topic[:200]!r}: under devices/ID/ there are events, events/TYPE, state, token, commands/NAME, "
        "commands/NAME/response, config and receipts"
    )


def events_topic(device: str, event_type: str | None = None) -> TopicName:
    """Topic of a device's events; with a type, of one type (`.` becomes `/`)."""
    base = f"devices/{device}/events"
    return TopicName(base if event_type is None else f"{base}/{event_type.replace('.', '/')}")


def token_topic(device: str) -> TopicName:
    """Topic on which a device renews its token."""
    return TopicName(f"devices/{device}/token")
