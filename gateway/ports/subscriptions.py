"""Durable named subscriptions: where each handler stands in the log, and what it put aside.

The log itself knows nothing of retries; the retry logic exists once, in dispatch, and keeps here what must outlive it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from gateway.ports.bus import Position, Start


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionSpec:
    """What a subscription is made of, fixed for its lifetime.

    Attributes:
        name: Unique: a handler's name, or `mqtt:...` for MQTT subscribers.
        types: Event types, exact or with a final `*`; empty for all.
        devices: Device ids, exact or with a final `*`; empty for all.
        labels: Labels a device must have, all of them; empty for no condition.
        live: Retention waits for it. False for one that may lose what it did not read in time.
    """

    name: str
    types: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    live: bool = True


@dataclass(frozen=True, slots=True)
class Floor:
    """How far a subscription has come in one partition.

    Attributes:
        position: Everything at or below it is finished (delivered, or put aside as deferred).
        done: Closed intervals of positions above it that are finished too, ascending, apart from each other.
    """

    position: Position
    done: tuple[tuple[Position, Position], ...] = ()


Floors = Mapping[int, Floor]


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to move a subscription's floors.

    Attributes:
        epoch: Fencing number; only grows.
        floors: Where to go on, as last saved, for each partition of this lease.
    """

    name: str
    epoch: int
    floors: Floors


class DeferredState(StrEnum):
    """What a deferred entry waits for."""

    WAITING = "waiting"  # for its next attempt
    BLOCKED = "blocked"  # for an earlier event of its source: a reference to a row of the log, without the event
    DEAD = "dead"  # for an operator


@dataclass(frozen=True, slots=True, kw_only=True)
class Deferred:
    """An event put aside, or, if BLOCKED, a reference to a row of the log (position = its first unfinished event).

    Attributes:
        event: The event as CloudEvents JSON; empty if BLOCKED. A waiting or dead event no longer needs the log.
        attempts: Deliveries tried so far.
        next_ms: When to try again, Unix milliseconds (WAITING).
        cause: Why the last attempt failed, for people.
        since_ms: When it was first put aside, Unix milliseconds.
        event_id, type: Of the event, for lists; empty if BLOCKED.
    """

    subscription: str
    position: Position
    source: str
    state: DeferredState
    attempts: int = 0
    next_ms: int = 0
    cause: str = ""
    since_ms: int = 0
    event_id: str = ""
    type: str = ""
    event: bytes = b""

    @property
    def key(self) -> Key:
        """What names it."""
        return Key(self.subscription, self.position)


@dataclass(frozen=True, slots=True)
class Key:
    """Names one deferred entry."""

    subscription: str
    position: Position


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Which deferred entries: those that match every given field.

    Attributes:
        due_ms: Only WAITING entries with `next_ms` at or before it.
        after: Only positions above it (to page on).
    """

    subscription: str | None = None
    state: DeferredState | None = None
    source: str | None = None
    event_id: str | None = None
    due_ms: int | None = None
    after: Position = field(default=Position(0))


@dataclass(frozen=True, slots=True)
class Done:
    """Forget the entry: delivered, or discarded by an operator."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Make the entry due (replay): its attempts start at 0 again. Only that subscription sees it."""

    next_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionState:
    """A subscription as an operator sees it.

    Attributes:
        floors: As last saved.
        needed: For each partition, the log must keep what lies above this position: the floor, or less where a BLOCKED
            reference stands below it. What `EventBus.trim` gets as `not_past`, if the spec says `live`.
        lag: Events of the log above the floors, finished or not, whatever their type.
        waiting, blocked, dead: Deferred entries by state.
        paused: An operator stopped it.
    """

    spec: SubscriptionSpec
    floors: Floors
    needed: Mapping[int, Position]
    lag: int
    waiting: int
    blocked: int
    dead: int
    paused: bool = False


class Subscriptions(Protocol):
    """Durable cursors with fencing, and what they put aside."""

    async def open(self, spec: SubscriptionSpec, start: Start) -> None:
        """Create a subscription; durable on return. One that exists with the same spec is left as it is.

        Raises:
            SubscriptionDiffers: One of this name exists with another spec.
        """
        ...

    async def replace(self, spec: SubscriptionSpec) -> None:
        """Give an existing subscription a new spec (a handler's configuration changed); its floors stay.

        Raises:
            NotFound: No subscription of this name.
        """
        ...

    async def claim(self, name: str, *, ttl_s: float) -> Lease:
        """Take the right to move it; an earlier owner is fenced off. In one process, `ttl_s` has no effect.

        Raises:
            NotFound: No subscription of this name.
        """
        ...

    async def save(
        self, lease: Lease, floors: Floors, deferred: Sequence[Deferred] = (), resolved: Sequence[Key] = ()
    ) -> None:
        """Move floors, put entries aside (insert or replace by key) and forget resolved ones: one transaction.

        So no event is ever between the floor and the deferred entries.

        Raises:
            Fenced: Another owner claimed it; nothing was written.
            NotFound: It was removed; nothing was written.
            BusUnavailable: Repeat with the same values.
        """
        ...

    async def deferred(self, query: Query, *, limit: int) -> Sequence[Deferred]:
        """List entries: by `next_ms` if `due_ms` is given, else by (subscription, position)."""
        ...

    async def resolve(self, keys: Sequence[Key], to: Done | Waiting) -> int:
        """Discard or replay entries by an operator's will; tell how many there were. Durable on return."""
        ...

    async def seek(self, name: str, start: Start) -> None:
        """Set all floors anew and forget its BLOCKED and WAITING entries (dead letters stay). Fences the owner.

        Raises:
            NotFound: No subscription of this name.
        """
        ...

    async def pause(self, name: str, *, paused: bool) -> None:
        """Remember an operator's wish across restarts.

        Raises:
            NotFound: No subscription of this name.
        """
        ...

    async def list(self) -> Sequence[SubscriptionState]:
        """All subscriptions, by name."""
        ...

    async def remove(self, name: str) -> None:
        """Forget it and all its entries; one that does not exist is no error."""
        ...
