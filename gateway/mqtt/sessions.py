"""All sessions, with a connection or without: who resumes which, when one ends, and what is left of them after a restart.

A session belongs to (principal, client id) and to one registration of a device (wire protocol, section 2); a client that
asks for a clean start, or was registered anew, gets another one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Final

import msgspec
import structlog

from edge_protocol.topics import TopicFilter
from gateway.mqtt import records, wills
from gateway.mqtt.codec import CodecError
from gateway.mqtt.records import Head, Out
from gateway.mqtt.session import Session
from gateway.mqtt.wills import Absence
from gateway.ports.identity import Grant, Principal
from gateway.ports.state import Entry

if TYPE_CHECKING:
    from gateway.mqtt.codec import Will
    from gateway.mqtt.hub import Hub
    from gateway.ports.state import StateStore
    from gateway.rules.policy import Permissions

log = structlog.get_logger()

_PAGE: Final = 64  # entries a scan: values are at most about 1 MiB
_PRUNE_S: Final = 10.0
_head = msgspec.msgpack.Decoder(Head)
_out = msgspec.msgpack.Decoder(Out)


class Sessions:
    """Sessions by principal and client id."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._by_principal: dict[Principal, dict[str, Session]] = {}
        self._absences: dict[Session, Absence] = {}
        self._is_closed = False
        self._pruned_s = float("-inf")

    def __len__(self) -> int:
        return sum(map(len, self._by_principal.values()))

    def __iter__(self) -> Iterator[Session]:
        for mine in self._by_principal.values():
            yield from mine.values()

    def get(self, principal: Principal, client_id: str) -> Session | None:
        """A session that lives, or None."""
        return self._by_principal.get(principal, {}).get(client_id)

    def of(self, principal: Principal) -> tuple[Session, ...]:
        """All sessions of a principal."""
        return tuple(self._by_principal.get(principal, {}).values())

    def open(
        self, grant: Grant, client_id: str, *, clean_start: bool, expiry_s: int, will: Will | None
    ) -> tuple[Session, bool]:
        """Give a client its session, which has no connection now; tell whether it was there [MQTT-3.2.2-3]."""
        session = self._found(grant, client_id, clean_start=clean_start)
        is_present = session is not None
        if session is None:
            session = Session(self._hub, grant.principal, client_id)
            self._by_principal.setdefault(grant.principal, {})[client_id] = session
        self._resume(session)
        session.epoch, session.roles, session.will = grant.epoch, grant.roles, will
        session.jti = grant.jti or ""
        session.live_for(expiry_s)
        session.keep_head()
        return session, is_present

    def _found(self, grant: Grant, client_id: str, *, clean_start: bool) -> Session | None:
        """The session that a client comes back to; one that it may not come back to ends."""
        session = self.get(grant.principal, client_id)
        if session is None:
            return None
        if session.epoch != grant.epoch:
            session.will = None  # of a device that is no more
            self.end(session)
        elif clean_start:
            self.end(session)  # [MQTT-3.1.2-4]
        elif absence := self._absences.get(session):
            absence.check(self._hub.loop.time())  # the wheel may be a tick behind [MQTT-3.1.2-8], [MQTT-4.1.0-2]
        return self.get(grant.principal, client_id)

    def left(self, session: Session, permissions: Permissions) -> None:
        """Its connection, which had these permissions, is gone: it ends, or waits for the next one."""
        session.detach()
        session.left_at_s = now_s = self._hub.clock()
        if self._is_closed:
            session.keep_head()  # wills are published after the restart, as section 3.1.2.5 allows
            return
        if now_s >= wills.due_at_s(session):
            wills.fire(self._hub, session, permissions)
        session.keep_head()
        self._wait(session)

    def close(self) -> None:
        """The gateway shuts down: sessions that lose their connection from now on are left as they are."""
        self._is_closed = True

    def end(self, session: Session) -> None:
        """End a session that has no connection: its will is due, its subscriptions and messages are gone."""
        self._resume(session)
        mine = self._by_principal[session.principal]
        del mine[session.client_id]
        if not mine:
            del self._by_principal[session.principal]
        for filter_ in session.subscriptions:
            self._hub.router.unsubscribe(filter_, session)
        session.subscriptions.clear()
        self._hub.cursors.drop(session)
        session.end()
        wills.fire(self._hub, session)

    def make_room(self, wanting: Session) -> None:
        """A session has no share of all queues left: drop what has expired, then QoS 0, its principal's first.

        At most every 10 seconds, since it looks at all; so it makes a sixteenth free.
        """
        now_s = self._hub.loop.time()
        if now_s < self._pruned_s + _PRUNE_S:
            return
        self._pruned_s = now_s
        queues = self._hub.stats.queues
        sessions = tuple(self)
        for session in sessions:
            session.prune()
        for session in self.of(wanting.principal):
            while not wanting.has_share(queues.limit_bytes // 16) and session.shed("queues-full"):
                pass
        for session in sessions:
            while queues.size_bytes > queues.limit_bytes * 15 // 16 and session.shed("queues-full"):
                pass

    def revoke(self, principal: Principal) -> None:
        """End all sessions of a principal, wills and all (wire protocol, section 2); its connections are gone already."""
        self._revoke(self.of(principal))

    def revoke_token(self, issuer: str, jti: str) -> None:
        """End the sessions whose clients a token proved last, likewise."""
        self._revoke([each for each in self if each.jti == jti and each.principal.issuer == issuer])

    def _revoke(self, sessions: Iterable[Session]) -> None:
        for session in sessions:
            session.will = None
            self.end(session)

    async def load(self, store: StateStore) -> None:
        """Take up what was kept: those that were connected have lost their connection now.

        Those of devices that were disabled, removed or registered anew while the gateway was stopped are ended (P7), and
        those of tokens that were revoked. Whatever ends does so when all are there: what it had of a group is another's.
        """
        revoked: list[Session] = []
        async for (principal, client_id), entries in _grouped(store):
            kept = {records.split_key(entry.key)[2]: entry.value for entry in entries}
            head = _read_head(kept.pop(records.HEAD, b""))
            if head is None:
                self._discard(entries)
                continue
            session = Session(self._hub, principal, client_id)
            try:
                self._restore(session, head, kept)
            except (msgspec.DecodeError, CodecError, ValueError) as error:
                log.warning("session_not_read", client=client_id, principal=str(principal), error=type(error).__name__)
                session.end()
                self._discard(entries)
                continue
            if await self._is_revoked(principal, head):
                revoked.append(session)
        self._take_up(revoked)
        if self._by_principal:
            log.info("sessions_loaded", count=len(self))

    def _take_up(self, revoked: Iterable[Session]) -> None:
        for session in self:
            session.claim(partial(self._hub.router.claim, session))
        self._revoke(revoked)
        for session in tuple(self):  # not before all are here: what is due at once, such as a will, may be for any
            self._wait(session)

    def _discard(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self._hub.journal.put(entry.key, None)

    async def _is_revoked(self, principal: Principal, head: Head) -> bool:
        authenticator = self._hub.authenticator
        return authenticator.is_revoked(principal, head.jti) or not await authenticator.is_known(principal, head.epoch)

    def _restore(self, session: Session, head: Head, kept: dict[str, bytes]) -> None:
        received = [int(name[len(records.IN) :]) for name in kept if name.startswith(records.IN)]
        out = (
            (int(name[len(records.OUT) :]), _out.decode(value))
            for name, value in kept.items()
            if name.startswith(records.OUT)
        )
        session.restore(head, received, out)  # what cannot be read is found here
        for filter_, subscription in head.subscriptions.items():
            session.subscriptions[TopicFilter(filter_)] = subscription
            self._hub.router.subscribe(TopicFilter(filter_), session, subscription)
        self._by_principal.setdefault(session.principal, {})[session.client_id] = session
        session.keep_head()

    def _wait(self, session: Session) -> None:
        absence = self._absences[session] = Absence(self._hub, session, self.end)
        absence.begin()

    def _resume(self, session: Session) -> None:
        session.left_at_s = None
        if absence := self._absences.pop(session, None):
            absence.end()


async def _grouped(store: StateStore) -> AsyncIterator[tuple[tuple[Principal, str], list[Entry]]]:
    """Entries by session; one session is in memory at a time."""
    pending: list[Entry] = []
    after = ""
    while page := await store.scan(records.PREFIX, after, _PAGE):
        after = page[-1].key
        groups = [list(group) for _, group in groupby([*pending, *page], key=lambda entry: _owner(entry.key))]
        pending = groups.pop()
        for group in groups:
            yield _owner(group[0].key), group
    if pending:
        yield _owner(pending[0].key), pending


def _owner(key: str) -> tuple[Principal, str]:
    principal, client_id, _ = records.split_key(key)
    return principal, client_id


def _read_head(value: bytes) -> Head | None:
    try:
        head = _head.decode(value)
    except msgspec.DecodeError:
        return None
    return head if head.format == records.FORMAT else None
