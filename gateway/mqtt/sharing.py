"""How one cursor's events get to the sessions that share it: the target that dispatch delivers to.

Strategy: a device's events go to one member, and one at a time (dispatch), so order holds. What was handed to a session is
remembered by its idempotency key: when dispatch asks again, after a pause, the session still has it and sends it itself.
Of a member that is away, QoS 1 goes to another; QoS 2 waits for it [MQTT-4.8.2-4]; what its session gives up when it ends
goes again at either QoS: to the bus a subscriber is a handler, which gets an event at least once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Final

from edge_protocol.events import Event
from edge_protocol.topics import TopicFilter, matches
from gateway.mqtt.messages import EventMessage
from gateway.ports.target import Delivered, Down, Refused, Verdict
from gateway.rules.sharing import Fate, by_preference

if TYPE_CHECKING:
    from gateway.mqtt.groups import Sharer
    from gateway.mqtt.router import Subscribed
    from gateway.mqtt.shelf import Item, OnAck

_OWED_BYTES: Final = 1 << 20  # with one member at a time: a quarter of what a session's queue holds
_NOBODY: Final = "nobody is connected"
_FULL: Final = "the subscriber does not keep up"
_VERDICTS: Final[Mapping[Fate | None, Verdict]] = {
    Fate.TAKEN: Delivered(),
    Fate.REFUSED: Refused("the subscriber answered with a code of 0x80 or more"),
    Fate.UNSENDABLE: Refused("no packet takes it to this subscriber: too large for it, or not to be written as MQTT"),
}
"""What is final; after any other fate the event goes again."""


class _Handed:
    """An event that a session has: how its delivery ended, and who waits for that."""

    __slots__ = ("fate", "qos", "size", "waiter")

    def __init__(self, qos: int, size: int) -> None:
        self.qos, self.size = qos, size
        self.fate: Fate | None = None
        self.waiter: asyncio.Future[None] | None = None


class _Member:
    """A session that takes events, and what it has of them."""

    __slots__ = ("handed", "identifiers", "name", "owed_bytes", "qos", "session")

    def __init__(self, session: Sharer, name: str) -> None:
        self.session, self.name = session, name
        self.qos, self.identifiers = 1, tuple[int, ...]()
        self.handed: dict[str, _Handed] = {}
        self.owed_bytes = 0

    @property
    def is_full(self) -> bool:
        return self.owed_bytes >= _OWED_BYTES

    def grant(self, subscription: Subscribed) -> None:
        self.qos = subscription.qos
        self.identifiers = () if subscription.identifier is None else (subscription.identifier,)

    def drop(self, key: str) -> None:
        self.owed_bytes -= self.handed.pop(key).size


class Sharing:
    """The target of one cursor: its members (`Deliverer`)."""

    def __init__(self, name: str, filter_: TopicFilter) -> None:
        """Begin without members.

        Args:
            name: Of the subscription.
            filter_: What it delivers, without `$share`.
        """
        self._name = name
        self.members: dict[Sharer, _Member] = {}
        self._filter = filter_
        self._is_closed = False
        self._room: asyncio.Future[None] | None = None

    async def deliver(self, event: Event, *, key: str, attempt: int) -> Verdict:  # noqa: ARG002 - the same each time
        """Hand an event to a member, and wait for what becomes of it."""
        device = event.device or ""
        message = EventMessage(device, event)
        if not matches(self._filter, message.topic):
            return Delivered()  # the cursor selects more than the filter
        forbidden: set[_Member] = set()
        gave_back: set[_Member] = set()
        while not self._is_closed and any(each.session.is_connected for each in self.members.values()):
            member = self._chosen(device, key, forbidden | gave_back)
            if member is None:
                return Down(_FULL) if gave_back else Delivered()  # held back: policy forbids it to every member
            if key not in member.handed and member.is_full:
                await self._has_room()
            elif key not in member.handed and not self._hand(member, message, key):
                forbidden.add(member)
            elif (fate := await self._fate(member, key)) in _VERDICTS:
                return _VERDICTS[fate]
            elif fate is not None:
                gave_back.add(member)
        return Down(_NOBODY)

    async def aclose(self) -> None:
        """Let go of everything: what is not acknowledged goes again when the cursor is opened again."""
        self._is_closed = True
        self.stir()

    def stir(self) -> None:
        """A member came or went: whoever waits looks again."""
        for member in self.members.values():
            for handed in member.handed.values():
                _resolve(handed.waiter)
        _resolve(self._room)

    def join(self, session: Sharer, name: str, subscription: Subscribed) -> None:
        """Add a member, or change what it was granted; `name` is the same as long as its session lives."""
        member = self.members.setdefault(session, _Member(session, name))
        member.grant(subscription)
        self.stir()

    def claim(self, session: Sharer, item: Item) -> OnAck | None:
        """After a restart: take up what a member's session still has, by the key that it was offered with."""
        name, _, ours = item.key.rpartition(" ")
        if name != self._name:
            return None
        member = self.members[session]
        handed = member.handed[ours] = _Handed(qos=2, size=0)
        return partial(self._told, member, handed)

    def leave(self, session: Sharer) -> None:
        """Let a member go; what it has and did not acknowledge goes again, to another."""
        member = self.members.pop(session, None)
        for handed in member.handed.values() if member else ():
            handed.fate = handed.fate or Fate.UNSENT
            _resolve(handed.waiter)
        self.stir()

    def _chosen(self, device: str, key: str, passed_over: set[_Member]) -> _Member | None:
        """Who has it already, unless another may have it sooner; else whom the device prefers of those connected."""
        for member in self.members.values():
            handed = member.handed.get(key)
            if handed is None:
                continue
            if handed.fate is not None or member.session.is_connected or handed.qos > 1:
                return member
            member.drop(key)
            break
        there = (
            (each.name, each) for each in self.members.values() if each.session.is_connected and each not in passed_over
        )
        return next(iter(by_preference(device, there)), None)

    def _hand(self, member: _Member, message: EventMessage, key: str) -> bool:
        handed = _Handed(member.qos, len(message.payload))
        member.handed[key] = handed
        member.owed_bytes += handed.size
        told = partial(self._told, member, handed)
        is_allowed = member.session.offer(
            message, member.qos, member.identifiers, retain=False, on_ack=told, key=f"{self._name} {key}"
        )
        if not is_allowed:
            member.drop(key)
        return is_allowed

    def _told(self, member: _Member, handed: _Handed, fate: Fate) -> None:
        """A delivery has ended; its room is free, even if dispatch never asks for it again (a cursor can be moved)."""
        handed.fate = fate
        member.owed_bytes -= handed.size
        handed.size = 0
        _resolve(handed.waiter)
        _resolve(self._room)

    async def _fate(self, member: _Member, key: str) -> Fate | None:
        """Wait for how a delivery ends; None if somebody came or went before."""
        handed = member.handed[key]
        if handed.fate is None:
            handed.waiter = asyncio.get_running_loop().create_future()
            await handed.waiter
        if handed.fate is not None and member.handed.get(key) is handed:
            member.drop(key)
        return handed.fate

    async def _has_room(self) -> None:
        if self._room is None or self._room.done():
            self._room = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._room)


def _resolve(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
