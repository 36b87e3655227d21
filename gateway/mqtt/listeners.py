"""The MQTT server: its listeners, and what the rest of the gateway may ask of its connections.

Owns doors and how parts are connected; a connection's life is its own (`connection`).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Final

import structlog

from edge_protocol.ids import uuid7
from edge_protocol.topics import TopicName
from gateway.errors import Conflict
from gateway.mqtt.accepting import Door
from gateway.mqtt.addresses import Listener, read_listener, read_networks
from gateway.mqtt.codec import ReasonCode
from gateway.mqtt.cursors import SessionCursors
from gateway.mqtt.doors import doors_of
from gateway.mqtt.hub import Hub, StoredThrough
from gateway.mqtt.journal import Journal
from gateway.mqtt.presence import Announce, Presence
from gateway.mqtt.retained import Retained
from gateway.mqtt.router import Router
from gateway.mqtt.sessions import Sessions
from gateway.mqtt.settings import ServerSettings
from gateway.mqtt.slots import InflightBudget
from gateway.mqtt.states import LastStates
from gateway.mqtt.stats import MqttStats
from gateway.mqtt.tls import Certificates
from gateway.mqtt.turns import Tasks, Turn, Wheel
from gateway.ports.cursors import Cursors
from gateway.ports.identity import Authenticator, Principal
from gateway.ports.ingest import Ingest
from gateway.ports.state import StateStore
from gateway.rules.flows import Queues
from gateway.rules.policy import Permissions
from gateway.rules.rate import TokenBucket

log = structlog.get_logger()

CONNECTS_BURST_S: Final = 2.0
_DRAIN_STEP_S: Final = 0.02


class MqttServer:
    """Accepts MQTT clients and connects them with ingest, policy and one another.

    Attributes:
        stats: What it counts.
        router: Publishes the gateway's own messages and stored events to subscribers.
        on_certificates: Called when changed certificate files have been taken into use; set by the service.
    """

    def __init__(
        self,
        settings: ServerSettings,
        *,
        authenticator: Authenticator,
        ingest: Ingest,
        state: StateStore,
        stored_through: StoredThrough,
        cursors: Cursors | None = None,
        announce: Announce | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Check the settings; nothing listens yet.

        Args:
            settings: Where to listen and what is too much.
            authenticator: Proves tokens.
            ingest: Stores events.
            state: Keeps reported states.
            stored_through: `EventBus.stored_through`, told to devices that name their streams in CONNECT.
            cursors: Delivers events to those who must not miss any; None: nobody gets more than a live tail.
            announce: Stores the events that tell of devices' presence; None: nobody is told.
            clock: Unix time in seconds.

        Raises:
            ConfigError: A listener that cannot be.
        """
        self._settings = settings
        self._listeners = [
            read_listener(url, f"mqtt.listen[{n}]", allow_plaintext=settings.allow_plaintext)
            for n, url in enumerate(settings.listen)
        ]
        self._trusted = read_networks(settings.proxy_protocol, "mqtt.proxy_protocol")
        self._parts = authenticator, ingest, state, stored_through, clock
        self._cursors = cursors
        self._announce = announce
        self._presence: Presence | None = None
        self._doors: list[Door] = []
        self._certificates: Certificates | None = None
        self._hub: Hub | None = None
        self._addresses: tuple[str, ...] = ()
        self.on_certificates: Callable[[], object] = lambda: None
        self.stats = MqttStats(queues=Queues(settings.limits.queues_bytes))
        self.router = Router()

    @property
    def addresses(self) -> tuple[str, ...]:
        """URLs that are listened on, with the ports that were taken for port 0."""
        return self._addresses

    async def start(self) -> None:
        """Listen; on return clients are accepted.

        Raises:
            ConfigError: A certificate that cannot be loaded, or an address that cannot be bound.
        """
        self._certificates = Certificates(self._settings) if any(each.is_tls for each in self._listeners) else None
        self._hub = hub = self._connect_parts()
        hub.wheel.start()
        await hub.retained.load(self._parts[2], hub.authenticator.is_known)
        if self._presence:
            await self._presence.load()
        await hub.sessions.load(self._parts[2])
        await hub.cursors.restore(hub.sessions, hub.router)
        if self._certificates:
            self._certificates.on_reload = lambda: self.on_certificates()  # noqa: PLW0108 - it is set later
            hub.wheel.schedule(self._certificates, hub.loop.time())
        try:
            for listener in self._listeners:
                self._listen(hub, listener)
        except BaseException:
            await self.aclose()
            raise
        log.info("mqtt_listening", addresses=self._addresses)

    def reload_certificates(self) -> bool:
        """Use the certificate files as they are now for new connections; tell whether they could be used.

        If not, the certificate in use stays. It is also done when a file changes.
        """
        return self._certificates is None or self._certificates.reload()

    def disconnect(
        self, principal: Principal, code: ReasonCode = ReasonCode.NOT_AUTHORIZED, reason: str = "revoked"
    ) -> int:
        """Cut a principal off at once, its sessions, wills and retained messages discarded; tell how many connections it had."""
        connections = self._hub.clients.of(principal) if self._hub else ()
        for connection in connections:
            connection.end(code, reason, keep_will=False)
        if self._hub:
            self._hub.sessions.revoke(principal)
            self._hub.retained.forget(principal)
        return len(connections)

    def disconnect_token(self, issuer: str, jti: str, reason: str = "token revoked") -> int:
        """Cut off whom a token of an issuer let in; the sessions that it proved last are discarded, with their wills.

        Other tokens of the same principal, and what it retained, are not touched. Tells how many connections it had.
        """
        if self._hub is None:
            return 0
        proven = [each for each in self._hub.sockets if each.grant is not None and each.grant.jti == jti]
        found = [each for each in proven if each.grant is not None and each.grant.principal.issuer == issuer]
        for connection in found:
            connection.end(ReasonCode.NOT_AUTHORIZED, reason, keep_will=False)
        self._hub.sessions.revoke_token(issuer, jti)
        return len(found)

    def disconnect_issuer(self, issuer: str, reason: str) -> int:
        """Cut off everybody that an issuer vouches for (`disconnect`); tell how many connections that were."""
        if self._hub is None:
            return 0
        here = {each.grant.principal for each in self._hub.sockets if each.grant is not None}
        known = here | {session.principal for session in self._hub.sessions} | self._hub.retained.principals
        return sum(self.disconnect(each, reason=reason) for each in known if each.issuer == issuer)

    async def remove_cursor(self, name: str, *, dry_run: bool = False) -> list[str]:
        """Remove a durable subscription whose clients will not come back (`SessionCursors.discard`); tell their client ids.

        Raises:
            Conflict: One of them is connected, or nothing is served now.
            BusUnavailable: Repeat.
        """
        if self._hub is None:
            raise Conflict("the gateway is starting or stopping; try again")
        return await self._hub.cursors.discard(name, end=self._hub.sessions.end, dry_run=dry_run)

    def refresh(self, principal: Principal, permissions: Permissions) -> None:
        """Apply changed permissions to a principal's connections and what they subscribed to."""
        for connection in self._hub.clients.of(principal) if self._hub else ():
            connection.permit(permissions)

    def is_connected(self, principal: Principal) -> bool:
        """Whether a principal has a connection now."""
        return any(each.client_id for each in self._hub.clients.of(principal)) if self._hub else False

    def publish_retained(self, topic: TopicName, payload: bytes) -> None:
        """Publish a message of the gateway's own, and show it to every later subscriber (the key set)."""
        self.router.publish_retained(topic, payload)

    async def drain(self, timeout_s: float = 10.0) -> bool:
        """Accept and read nothing more; wait until what was read is answered. Tell whether all of it was, in time."""
        for door in self._doors:
            door.close()
        if self._hub is None:
            return True
        for connection in tuple(self._hub.sockets):
            connection.stop_reading()
        give_up_s = self._hub.loop.time() + timeout_s
        while any(connection.inflight_bytes for connection in self._hub.sockets):
            if self._hub.loop.time() >= give_up_s:
                return False
            self._hub.ingest.flush()
            await asyncio.sleep(_DRAIN_STEP_S)  # settled by others' threads: there is nothing to wait on but time
        return True

    async def aclose(self) -> None:
        """Send every client off (DISCONNECT 0x8B), close. A second call does nothing."""
        for door in self._doors:
            door.close()
        hub, self._hub = self._hub, None
        if hub is None:
            return
        hub.sessions.close()
        for connection in tuple(hub.sockets):
            connection.shut_down()
        if self._presence:
            await self._presence.aclose()
        await hub.tasks.aclose(timeout_s=1.0)
        give_up_s = hub.loop.time() + self._settings.limits.linger_s + 0.5
        while hub.sockets and hub.loop.time() < give_up_s:  # noqa: ASYNC110 - peers close when they like
            await asyncio.sleep(_DRAIN_STEP_S)
        for connection in tuple(hub.sockets):
            connection.abort()
        hub.wheel.stop()
        await asyncio.sleep(0)  # aborted transports tell their protocols in the next turn

    def _connect_parts(self) -> Hub:
        authenticator, ingest, state, stored_through, clock = self._parts
        loop, limits, tasks = asyncio.get_running_loop(), self._settings.limits, Tasks()
        burst_s = max(CONNECTS_BURST_S, 2 / limits.connects_per_s)  # a rate below one in this time must let somebody in
        hub = Hub(
            settings=self._settings,
            authenticator=authenticator,
            ingest=ingest,
            stored_through=stored_through,
            clock=clock,
            loop=loop,
            router=self.router,
            states=LastStates(state, tasks),
            tasks=tasks,
            turn=Turn(loop, ingest.flush),
            wheel=Wheel(loop),
            budget=InflightBudget(limits.inflight_bytes, limits.connection_inflight_bytes),
            connects=TokenBucket(limits.connects_per_s, burst_s, loop.time()),
            stats=self.stats,
            journal=(journal := Journal(state, tasks)),
            retained=Retained(journal, limits, clock=clock, loop=loop),
            cursors=SessionCursors(self._cursors, tasks),
        )
        hub.sessions = Sessions(hub)
        hub.watchers.append(hub.cursors)
        if self._announce:
            self._presence = Presence(state, self._announce, tasks, clock=clock, make_id=_uuid7)
            hub.watchers.append(self._presence)
        return hub

    def _listen(self, hub: Hub, listener: Listener) -> None:
        for door in doors_of(hub, listener, self._trusted, self._certificates):
            door.open()
            self._doors.append(door)
            self._addresses += (listener.url(door.address),)


def _uuid7(at_s: float) -> str:
    return uuid7(int(at_s * 1000), os.urandom(10))
