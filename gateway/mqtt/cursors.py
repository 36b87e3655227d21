"""Events for MQTT subscribers that must not miss any: a subscription of the bus, delivered by dispatch to sessions.

Two kinds: the members of `$share/NAME/FILTER` at QoS 1 or 2 hold one cursor together, by (role, NAME, filter); a durable
session that subscribes at QoS 1 or 2 has one of its own. PUBACK (PUBREC) is what moves it (`mqtt.sharing`). Everything
else is a live tail, and so is all that a device may see.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from edge_protocol.topics import TopicFilter, split_share
from gateway.errors import Conflict
from gateway.mqtt.sharing import Sharing
from gateway.ports.cursors import NAME_PREFIX, SESSION_PREFIX, Cursor, Cursors
from gateway.ports.subscriptions import SubscriptionSpec
from gateway.rules.sharing import event_filter

if TYPE_CHECKING:
    from gateway.mqtt.connection import Connection
    from gateway.mqtt.router import Router, Subscribed
    from gateway.mqtt.session import Session
    from gateway.mqtt.turns import Tasks
    from gateway.ports.identity import Principal

PER_SESSION: Final = 16  # cursors: each is read from the log and delivered on its own


class _Open:
    """One cursor, and who shares it."""

    __slots__ = ("cursor", "is_shared", "sharing")

    def __init__(self, sharing: Sharing, cursor: Cursor, *, is_shared: bool) -> None:
        self.sharing, self.cursor, self.is_shared = sharing, cursor, is_shared


class SessionCursors:
    """The cursors of all sessions of one server; a `Watcher`: who comes and goes decides who gets events."""

    def __init__(self, cursors: Cursors | None, tasks: Tasks) -> None:
        """Begin without any.

        Args:
            cursors: Opens them; None for a server without a bus: every subscription is a live tail there.
            tasks: Where those are closed that nobody needs.
        """
        self._cursors = cursors
        self._tasks = tasks
        self._open: dict[str, _Open] = {}
        self._names: dict[Session, dict[TopicFilter, str]] = {}
        self._lock = asyncio.Lock()

    def wants(self, session: Session, filter_: TopicFilter, qos: int) -> bool:
        """Tell whether a subscription gets events by a cursor."""
        name, inner = split_share(filter_)
        is_kept = name is not None or session.expiry_s > 0
        is_cursor = is_kept and qos > 0 and session.principal.device is None
        return is_cursor and self._cursors is not None and event_filter(inner) is not None

    def has_room(self, session: Session, filter_: TopicFilter) -> bool:
        """Tell whether a session may have one more."""
        mine = self._names.get(session, {})
        return filter_ in mine or len(mine) < PER_SESSION

    async def join(self, session: Session, filter_: TopicFilter, subscription: Subscribed) -> None:
        """Let a session take events of a filter that `wants` is true for; what is stored from now on will come.

        Raises:
            BusUnavailable: It does not.
        """
        async with self._lock:
            name = self._names.get(session, {}).get(filter_) or _name(session, filter_)
            if name not in self._open:
                self._open[name] = await self._opened(name, filter_)
            self._names.setdefault(session, {})[filter_] = name
            self._open[name].sharing.join(session, f"{session.principal}/{session.client_id}", subscription)
            self._open[name].cursor.wake()

    async def leave(self, session: Session, filter_: TopicFilter) -> None:
        """End a session's part in a filter; without its last member a cursor is retired, or, if it was its own, removed."""
        async with self._lock:
            await self._leave(session, filter_)

    def drop(self, session: Session, *filters: TopicFilter) -> None:
        """As `leave`, soon, for those that it has; without filters all: the session ended."""
        mine = self._names.get(session, {})
        for filter_ in [each for each in filters or mine if each in mine]:
            self._tasks.start(self.leave(session, filter_), name="leave-cursor")

    async def discard(self, name: str, *, end: Callable[[Session], object], dry_run: bool) -> list[str]:
        """Remove a cursor by an operator's will, and end the sessions that hold it: all are away, and shall not come back.

        They end as a whole: a client that does come back learns by Session Present that it has to subscribe again.

        Args:
            name: Of the subscription; one that nobody holds is removed too.
            end: Ends a session.
            dry_run: Only tell what would be done.

        Returns:
            Client ids of the sessions.

        Raises:
            Conflict: A client that holds it is connected.
            BusUnavailable: The sessions have ended, the cursor is still there: repeat.
        """
        async with self._lock:
            holders = [session for session, mine in self._names.items() if name in mine.values()]
            there = [session.client_id for session in holders if session.left_at_s is None]
            if there:
                raise Conflict(
                    f"handler {name!r}: {there[0]!r} is connected and has it; it can unsubscribe, or be revoked"
                )
            if not dry_run:
                await self._discard(name, holders, end)
        return [session.client_id for session in holders]

    async def _discard(self, name: str, holders: Iterable[Session], end: Callable[[Session], object]) -> None:
        assert self._cursors is not None
        filters = [
            (session, filter_) for session in holders for filter_, mine in self._names[session].items() if mine == name
        ]
        for session in holders:
            end(session)  # before anything is waited for: none of them can connect in between
        for session, filter_ in filters:
            await self._leave(session, filter_)
        await self._cursors.remove(name)

    async def restore(self, sessions: Iterable[Session], router: Router) -> None:
        """After a start: open what the sessions that lived on had.

        Raises:
            BusUnavailable: The server cannot start.
        """
        for session in tuple(sessions):  # one may end meanwhile
            for filter_, subscription in tuple(session.subscriptions.items()):
                if self.wants(session, filter_, subscription.qos):
                    session.subscriptions[filter_] = replace(subscription, is_cursor=True)
                    router.subscribe(filter_, session, session.subscriptions[filter_])
                    await self.join(session, filter_, subscription)
                    session.claim(partial(self._open[self._names[session][filter_]].sharing.claim, session))
        if self._cursors is not None:
            await self._cursors.settle()

    def session_began(self, _principal: Principal, _client_id: str, connection: Connection) -> None:
        """A client is there: what waited for it goes on."""
        self._stir(connection.session)
        for name in self._names.get(connection.session, {}).values():
            self._open[name].cursor.wake()

    def session_ended(self, _principal: Principal, _client_id: str, connection: Connection, _reason: str) -> None:
        """A client is gone; what it has and did not acknowledge is looked at again."""
        self._stir(connection.session)

    def _stir(self, session: Session) -> None:
        for name in self._names.get(session, {}).values():
            self._open[name].sharing.stir()

    async def _opened(self, name: str, filter_: TopicFilter) -> _Open:
        assert self._cursors is not None
        group, inner = split_share(filter_)
        wanted = event_filter(inner)
        assert wanted is not None
        sharing = Sharing(name, inner)
        spec = SubscriptionSpec(name=name, types=wanted.types, devices=wanted.devices)
        return _Open(sharing, await self._cursors.open(spec, sharing), is_shared=group is not None)

    async def _leave(self, session: Session, filter_: TopicFilter) -> None:
        again = session.subscriptions.get(filter_)
        if again is not None and again.is_cursor:
            return  # the client came back, and was promised it, before it was this one's turn
        mine = self._names.get(session, {})
        name = mine.pop(filter_, None)
        if not mine:
            self._names.pop(session, None)
        if name is None:
            return
        each = self._open[name]
        each.sharing.leave(session)
        if not each.sharing.members:
            del self._open[name]
            await each.sharing.aclose()
            await (each.cursor.retire() if each.is_shared else each.cursor.remove())


def _name(session: Session, filter_: TopicFilter) -> str:
    """What the subscription is called; percent-encoded, so that no two can be confused whatever a client chooses."""
    group, inner = split_share(filter_)
    if group is not None:
        roles = "+".join(quote(role, safe="") for role in sorted(session.roles))
        return f"{NAME_PREFIX}{roles}/{quote(group, safe='')}:{inner}"
    principal = session.principal
    parts = (principal.kind.value, principal.issuer, principal.sub, session.client_id)
    return f"{SESSION_PREFIX}{':'.join(quote(part, safe='') for part in parts)}:{inner}"
