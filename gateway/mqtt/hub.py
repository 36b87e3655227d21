"""What all connections of one server share, and the registry of those that were let in."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from edge_protocol.times import rfc3339
from gateway.mqtt.cursors import SessionCursors
from gateway.mqtt.journal import Journal
from gateway.mqtt.retained import Retained
from gateway.mqtt.router import Router
from gateway.mqtt.settings import ServerSettings
from gateway.mqtt.slots import InflightBudget
from gateway.mqtt.states import LastStates
from gateway.mqtt.stats import MqttStats
from gateway.mqtt.turns import Tasks, Turn, Wheel
from gateway.ports.identity import Authenticator, Principal
from gateway.ports.ingest import Ingest
from gateway.rules.rate import TokenBucket

if TYPE_CHECKING:
    from gateway.mqtt.connection import Connection
    from gateway.mqtt.sessions import Sessions

StoredThrough = Callable[[str, Sequence[str]], Awaitable[Mapping[str, int]]]
"""`EventBus.stored_through`: for each known stream of a source, how far it is stored."""

RETRY_AFTER_S: Final = 2
_SPREAD_S: Final = 28


class Clients:
    """Connections by session, (principal, client id), and by principal."""

    def __init__(self) -> None:
        self._by_session: dict[tuple[Principal, str], Connection] = {}
        self._by_principal: dict[Principal, dict[Connection, None]] = {}

    def get(self, principal: Principal, client_id: str) -> Connection | None:
        """The connection that has a session now."""
        return self._by_session.get((principal, client_id))

    def prove(self, principal: Principal, connection: Connection) -> None:
        """Note whose a connection is, before it is let in: revocation must not miss it."""
        self._by_principal.setdefault(principal, {})[connection] = None

    def add(self, principal: Principal, client_id: str, connection: Connection) -> None:
        """Let a connection have a session that no other has."""
        self._by_session[principal, client_id] = connection

    def remove(self, principal: Principal, client_id: str, connection: Connection) -> None:
        """Forget a connection; one that has lost its session to another takes nothing with it."""
        if self._by_session.get((principal, client_id)) is connection:
            del self._by_session[principal, client_id]
        mine = self._by_principal.get(principal, {})
        mine.pop(connection, None)
        if not mine:
            self._by_principal.pop(principal, None)

    def of(self, principal: Principal) -> tuple[Connection, ...]:
        """All connections of a principal, those that are about to be let in too."""
        return tuple(self._by_principal.get(principal, ()))


class Watcher(Protocol):
    """Whoever wants to know which clients are there (presence)."""

    def session_began(self, principal: Principal, client_id: str, connection: Connection) -> None:
        """A client was let in; its CONNACK has been written."""
        ...

    def session_ended(self, principal: Principal, client_id: str, connection: Connection, reason: str) -> None:
        """That connection is gone, and why; its session may live on."""
        ...


@dataclass(slots=True, kw_only=True, eq=False)
class Hub:
    """What a connection needs beyond its socket.

    Attributes:
        clock: Unix time in seconds.
        connects: CONNECTs that are looked into; beyond, they are refused before that costs anything.
        stored_through: For the streams that a CONNECT names.
        journal: Writes what durable sessions change.
        retained: Retained messages of clients.
        sockets: Every connection with a socket, let in or not.
        watchers: Are told of connections that begin and end.
        sessions: Those with a connection and those without.
        cursors: Through which sessions get events that they must not miss.
    """

    settings: ServerSettings
    authenticator: Authenticator
    ingest: Ingest
    stored_through: StoredThrough
    clock: Callable[[], float]
    loop: asyncio.AbstractEventLoop
    router: Router
    states: LastStates
    tasks: Tasks
    turn: Turn
    wheel: Wheel
    budget: InflightBudget
    connects: TokenBucket
    stats: MqttStats
    journal: Journal
    retained: Retained
    cursors: SessionCursors
    clients: Clients = field(default_factory=Clients)
    sockets: set[Connection] = field(default_factory=set)
    watchers: list[Watcher] = field(default_factory=list)
    sessions: Sessions = field(init=False)

    def server_time(self) -> str:
        """Now, as the `server-time` property says it (RFC 3339)."""
        return rfc3339(self.clock())


def retry_after_s(name: str) -> int:
    """When to come back, spread by client, so that those who were sent off together do not return together."""
    return RETRY_AFTER_S + zlib.crc32(name.encode()) % _SPREAD_S
