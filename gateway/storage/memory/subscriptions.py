"""`Subscriptions` in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gateway.errors import Fenced, NotFound, SubscriptionDiffers
from gateway.ports.bus import Position, Start
from gateway.ports.subscriptions import (
    Deferred,
    DeferredState,
    Done,
    Floor,
    Floors,
    Key,
    Lease,
    Query,
    SubscriptionSpec,
    SubscriptionState,
    Waiting,
)
from gateway.storage.memory.log import Log


@dataclass(slots=True)
class _Subscription:
    spec: SubscriptionSpec
    floor: Floor
    epoch: int = 0
    paused: bool = False


class MemorySubscriptions:
    """Cursors in a dict; their contract stands in the port."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._subscriptions: dict[str, _Subscription] = {}
        self._entries: dict[Key, Deferred] = {}

    def _find(self, name: str) -> _Subscription:
        self._log.check_open()
        if name not in self._subscriptions:
            raise NotFound(f"no subscription {name!r}; `gateway handlers list` shows those there are")
        return self._subscriptions[name]

    async def open(self, spec: SubscriptionSpec, start: Start) -> None:
        """Create a subscription (contract in the port)."""
        self._log.check_open()
        known = self._subscriptions.get(spec.name)
        if known is None:
            self._subscriptions[spec.name] = _Subscription(spec, Floor(self._log.place_of(start)))
        elif known.spec != spec:
            raise SubscriptionDiffers(f"subscription {spec.name!r} exists with another specification")

    async def replace(self, spec: SubscriptionSpec) -> None:
        """Give it a new spec (contract in the port)."""
        self._find(spec.name).spec = spec

    async def claim(self, name: str, *, ttl_s: float) -> Lease:  # noqa: ARG002  # in one process nothing expires
        """Take the right to move it (contract in the port)."""
        found = self._find(name)
        found.epoch += 1
        return Lease(name, found.epoch, {0: found.floor})

    async def save(
        self, lease: Lease, floors: Floors, deferred: Sequence[Deferred] = (), resolved: Sequence[Key] = ()
    ) -> None:
        """Move floors and put entries aside (contract in the port)."""
        found = self._find(lease.name)
        if found.epoch != lease.epoch:
            raise Fenced(f"subscription {lease.name!r} was claimed by another owner")
        found.floor = floors.get(0, found.floor)
        self._delete(resolved)
        self._entries.update({entry.key: entry for entry in deferred})

    def _delete(self, keys: Sequence[Key]) -> int:
        return sum(self._entries.pop(key, None) is not None for key in keys)

    async def deferred(self, query: Query, *, limit: int) -> Sequence[Deferred]:
        """List entries (contract in the port)."""
        self._log.check_open()
        found = [entry for entry in self._entries.values() if _matches(entry, query)]
        if query.due_ms is None:
            return sorted(found, key=lambda entry: (entry.subscription, entry.position))[:limit]
        return sorted(found, key=lambda entry: (entry.next_ms, entry.position))[:limit]

    async def resolve(self, keys: Sequence[Key], to: Done | Waiting) -> int:
        """Discard or replay entries (contract in the port)."""
        self._log.check_open()
        if isinstance(to, Done):
            return self._delete(keys)
        found = [self._entries[key] for key in dict.fromkeys(keys) if key in self._entries]
        waiting = DeferredState.WAITING
        self._entries.update(
            {entry.key: replace(entry, state=waiting, attempts=0, next_ms=to.next_ms) for entry in found}
        )
        return len(found)

    async def seek(self, name: str, start: Start) -> None:
        """Set its floor anew (contract in the port)."""
        found = self._find(name)
        found.floor = Floor(self._log.place_of(start))
        found.epoch += 1
        self._delete([entry.key for entry in self._of(name) if entry.state != DeferredState.DEAD])

    async def pause(self, name: str, *, paused: bool) -> None:
        """Remember an operator's wish (contract in the port)."""
        self._find(name).paused = paused

    async def list(self) -> Sequence[SubscriptionState]:
        """List all (contract in the port)."""
        self._log.check_open()
        return [self._state(self._subscriptions[name]) for name in sorted(self._subscriptions)]

    def _of(self, name: str) -> Sequence[Deferred]:
        return [entry for entry in self._entries.values() if entry.subscription == name]

    def _state(self, found: _Subscription) -> SubscriptionState:
        counts = Counter(entry.state for entry in self._of(found.spec.name))
        return SubscriptionState(
            spec=found.spec,
            floors={0: found.floor},
            needed={0: self._needed(found)},
            lag=self._log.events_above(found.floor.position),
            waiting=counts[DeferredState.WAITING],
            blocked=counts[DeferredState.BLOCKED],
            dead=counts[DeferredState.DEAD],
            paused=found.paused,
        )

    def _needed(self, found: _Subscription) -> Position:
        blocked = (entry for entry in self._of(found.spec.name) if entry.state == DeferredState.BLOCKED)
        return Position(min([found.floor.position, *(entry.position - 1 for entry in blocked)]))

    def needed(self) -> Position | None:
        """Tell what the log must keep for live subscriptions: all above this; None without one."""
        return min((self._needed(found) for found in self._subscriptions.values() if found.spec.live), default=None)

    async def remove(self, name: str) -> None:
        """Forget one (contract in the port)."""
        self._log.check_open()
        self._subscriptions.pop(name, None)
        self._delete([entry.key for entry in self._of(name)])


def _matches(entry: Deferred, query: Query) -> bool:
    is_due = query.due_ms is None or (entry.state == DeferredState.WAITING and entry.next_ms <= query.due_ms)
    given = ("subscription", "state", "source", "event_id")
    return (
        is_due
        and entry.position > query.after
        and all(getattr(query, name) in (None, getattr(entry, name)) for name in given)
    )
