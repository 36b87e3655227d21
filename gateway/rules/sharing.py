"""Who of a group gets the next message, and which events an MQTT filter wants; pure arithmetic, nothing is remembered.

Two ways to share, because they promise different things. Ordinary messages go where least is unacknowledged, in turn
among equals: fair, in no order. Events of one device go to one member, so that their order holds: the member is found by
rendezvous hashing (Thaler and Ravishankar, 1998), so a member that comes or goes moves only the devices it takes or had.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto
from hashlib import blake2b
from math import inf
from typing import Final, Protocol, TypeVar

from edge_protocol.topics import TopicFilter

_EVENTS: Final = ("devices", "", "events")  # levels of an event's topic; "" is the device
_ANY: Final = "*"


class Fate(Enum):
    """How a delivery to one session ended, for whoever offered it."""

    TAKEN = auto()  # the client has it: PUBACK, PUBREC
    REFUSED = auto()  # the client answered with a code of 0x80 or more: nobody else gets it [MQTT-4.8.2-6]
    UNSENDABLE = auto()  # no packet takes it to this client, or it expired: as if it had been sent [MQTT-3.1.2-25]
    UNSENT = auto()  # the session ended, is full or may not have it, and is done with it: another may have it
    BROKEN = auto()  # the session ended in the middle of QoS 2: no other client may have it [MQTT-4.8.2-5]


def share_id(name: str, filter_: TopicFilter) -> bytes:
    """Name a shared subscription in few bytes, however long its name and filter are: it is kept with each message."""
    return blake2b(f"{name}/{filter_}".encode(), digest_size=16).digest()  # no name has a "/" [MQTT-4.8.2-2]


class Load(Protocol):
    """What counts when a member is chosen; both grow with what speaks against it."""

    @property
    def is_away(self) -> bool:
        """Whether its client is not connected."""
        ...

    @property
    def owed(self) -> int:
        """Deliveries it has not acknowledged."""
        ...


M = TypeVar("M", bound=Load)
K = TypeVar("K")


def least_loaded(members: Iterable[M]) -> M | None:
    """Choose for an ordinary message: connected before away, then the fewest unacknowledged, then who waited longest.

    Args:
        members: Who was chosen longest ago comes first. No more of them are looked at than up to one without any load.
    """
    chosen, least = None, (True, inf)
    for member in members:
        load = member.is_away, member.owed
        if chosen is None or load < least:
            chosen, least = member, load
            if load == (False, 0):
                break
    return chosen


def by_preference(device: str, members: Iterable[tuple[str, K]]) -> list[K]:
    """Order members by how much a device prefers each.

    Args:
        device: Its id.
        members: Each with a name that stays the same as long as the member lives.
    """
    return [each for _, each in sorted(members, key=lambda member: _score(device, member[0]), reverse=True)]


def _score(device: str, name: str) -> bytes:
    return blake2b(name.encode(), key=blake2b(device.encode()).digest(), digest_size=8).digest()


@dataclass(frozen=True, slots=True)
class EventFilter:
    """What of the bus can fall under a topic filter: patterns as `Selection` has them, at least as wide as the filter.

    Attributes:
        devices: Never empty, so that events of services, which have no topic, are not selected.
        types: Empty for all.
    """

    devices: tuple[str, ...]
    types: tuple[str, ...]


def event_filter(filter_: TopicFilter) -> EventFilter | None:
    """Read a topic filter as one over events, `devices/{id}/events/{type...}`; None if no event can fall under it.

    It may select more than the filter does (`+` among the levels of the type): ask `matches` for each event.
    """
    levels = filter_.split("/")
    for level, wanted in zip(levels, _EVENTS, strict=False):
        if level == "#":
            break
        if wanted and level not in {wanted, "+"}:
            return None
    else:
        if len(levels) <= len(_EVENTS):
            return None
    device = levels[1] if len(levels) > 1 and levels[1] not in {"+", "#"} else _ANY
    return EventFilter((device,), _types(levels[len(_EVENTS) :]))


def _types(levels: list[str]) -> tuple[str, ...]:
    fixed: list[str] = []
    for level in levels:
        if level in {"+", "#"}:
            break
        fixed.append(level)
    name = ".".join(fixed)
    if not name:
        return ()
    if len(fixed) == len(levels):
        return (name,)
    below = f"{name}.{_ANY}"
    return (name, below) if levels[len(fixed)] == "#" else (below,)
