"""The composition root: the only place that builds the parts and connects them; it also says in which order they end.

Doors open last and close first: storage, openers, dispatch, MQTT, HTTP, and back again. A part that breaks ends the
process (its supervisor starts it anew); what was acknowledged is on disk by then.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final
from urllib.parse import SplitResult

import structlog
import uvloop
from aiohttp import web

from edge_protocol.envelope import AgeLimits
from edge_protocol.errors import Rejected, TokenRejected
from edge_protocol.event import Event
from edge_protocol.topics import KEYS_TOPIC
from gateway import parts, targets
from gateway.addresses import public_addresses
from gateway.config import HandlerSettings as HandlerTable
from gateway.config import Settings, listen_url
from gateway.core import Core
from gateway.cursors import BusCursors
from gateway.devices.authenticator import ISSUER_PREFIX, AuthSettings, GatewayAuthenticator, own_issuer
from gateway.devices.labels import Labels
from gateway.dispatch.dispatcher import Dispatcher
from gateway.errors import ConfigError, SubscriptionDiffers, Unavailable
from gateway.ingest.pipeline import Pipeline
from gateway.mqtt.listeners import MqttServer
from gateway.operations.events import append_events, limits_of
from gateway.ports.bus import End, Position
from gateway.ports.cursors import NAME_PREFIX
from gateway.ports.identity import Credentials, Principal, PrincipalKind
from gateway.rules.sizes import size_text
from gateway.tail import show_events
from gateway.telemetry import Telemetry
from gateway.web.admin import AdminApi, admin_app
from gateway.web.control import SOCKET_NAME, ControlServer
from gateway.web.device import DeviceApi, device_app
from gateway.web.ingress import read_events
from gateway.web.metrics import Metrics
from gateway.web.server import HttpServer

log = structlog.get_logger()

LabelsOf = Callable[[str], Mapping[str, str]]
DRAIN_S: Final = 10.0
HOUSEKEEPING_S: Final = 5.0
PRUNE_S: Final = 3600.0


def serve(settings: Settings) -> None:
    """Run the gateway until SIGTERM or SIGINT; SIGHUP loads the certificates again.

    Raises:
        ConfigError: A file, an address or a target cannot be used.
        BusUnavailable: The store cannot be opened.
    """

    async def main() -> None:
        stop, reload = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, reload.set)
        await Gateway.run(settings, stop, reload=reload)

    gc.freeze()  # what was imported lives as long as the process: a full collection stopped all for 15 ms to look through it
    uvloop.run(main())


class Gateway:
    """A running gateway. Implements `Live` for the operations."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.settings, self.storage = core.settings, core.storage
        self._is_open = False
        self._published_keys = ""
        self._enrol_port: int | None = None
        self._background: list[asyncio.Task[None]] = []
        self._dispatchers: dict[str, Dispatcher] = {}
        settings = self.settings
        self._authenticator = GatewayAuthenticator(
            core.registry,
            core.policy,
            self.storage.state,
            AuthSettings(
                audience=settings.audience,
                max_lifetime_s=int(settings.auth.max_token_lifetime),
                skew_s=int(settings.auth.clock_skew),
                replay_protection=settings.auth.replay_protection,
                anonymous_role=settings.auth.anonymous_role,
            ),
            issuers=[own_issuer(settings.audience, lambda: core.identity.operator.public)],
        )
        self._pipeline = Pipeline(
            self.storage.bus,
            core.registry,
            audience=settings.audience,
            open_keys=core.identity.open_keys(time.time()).values(),
            limits=limits_of(settings),
            ages=AgeLimits(window_s=int(settings.bus.deduplication_window), skew_s=int(settings.auth.clock_skew)),
            processes=settings.limits.opener_processes or None,
        )
        self._cursors = BusCursors(self.storage, self._dispatchers, keep_s=settings.bus.cursor_retention)
        self._mqtt = MqttServer(
            parts.server_settings(settings),
            authenticator=self._authenticator,
            ingest=self._pipeline,
            state=self.storage.state,
            stored_through=self.storage.bus.stored_through,
            cursors=self._cursors,
            announce=self._announce,
        )
        self._authenticator.on_revoked = self._revoke
        self._authenticator.revoked.on_revoked = self._mqtt.disconnect_token
        self.telemetry = Telemetry(
            self.storage.bus,
            self.storage.subscriptions,
            mqtt=self._mqtt.stats,
            ingest=self._pipeline.stats,
            dispatchers=self._dispatchers,
        )

    @classmethod
    async def run(
        cls,
        settings: Settings,
        stop: asyncio.Event,
        *,
        started: asyncio.Event | None = None,
        reload: asyncio.Event | None = None,
    ) -> None:
        """Build everything, serve until `stop` is set, and end in order.

        Args:
            settings: The configuration.
            stop: Set it to end.
            started: Is set once the gateway is ready.
            reload: Set it to have the certificates loaded again.
        """
        async with AsyncExitStack() as ends:
            storage = await parts.open_storage(settings)
            ends.push_async_callback(storage.aclose)
            gateway = cls(Core(settings, storage))
            await gateway._pipeline.start()
            ends.push_async_callback(gateway._pipeline.aclose)
            async with asyncio.TaskGroup() as tasks:
                gateway._background.append(
                    tasks.create_task(gateway._reload_certificates(reload or asyncio.Event()), name="certificates")
                )
                await gateway._serve(tasks, stop, started or asyncio.Event())
        log.info("gateway_stopped")

    async def _serve(self, tasks: asyncio.TaskGroup, stop: asyncio.Event, started: asyncio.Event) -> None:
        await self._authenticator.revoked.load()
        self._background += [
            tasks.create_task(self.core.registry.run(), name="registry"),
            tasks.create_task(self._authenticator.revoked.run(), name="revoked-tokens"),
            tasks.create_task(self._keep_house(), name="housekeeping"),
            tasks.create_task(show_events(self.storage.bus, self._mqtt.router), name="live-tail"),
            self._cursors.start(tasks),
        ]
        async with AsyncExitStack() as doors:
            await self._start_dispatch(tasks, doors)
            await self._open_doors(doors)
            self._background.append(tasks.create_task(self._prune(), name="prune"))  # sessions have been looked through
            started.set()
            await stop.wait()
            self._is_open = False
            log.info("gateway_stopping")
        for task in self._background:
            task.cancel()

    async def _open_doors(self, doors: AsyncExitStack) -> None:
        self._publish_keys()
        await self._mqtt.start()
        doors.push_async_callback(self._close_mqtt)
        await self.telemetry.refresh()
        if self.settings.http.listen:
            await self._listen_http(doors)
        if self.settings.http.device_listen:
            await self._listen_for_devices(doors)
        control = await ControlServer.start(self.core.operations(self), self.settings.state / SOCKET_NAME)
        doors.push_async_callback(control.aclose)
        self._is_open = True
        log.info("gateway_ready", mqtt=list(self._mqtt.addresses), audience=self.settings.audience)

    async def _listen_http(self, doors: AsyncExitStack) -> None:
        api = AdminApi(
            ready=self._ready,
            metrics=Metrics(self.telemetry.snapshot).render,
            raise_events=self._raise_events,
            key_set=self._key_set,
        )
        url = listen_url(f"http://{self.settings.http.listen}", "http.listen", ("http",))
        server = await _bind(admin_app(api), url, "http.listen", tls=None)
        doors.push_async_callback(server.aclose)

    async def _listen_for_devices(self, doors: AsyncExitStack) -> None:
        enrolment = self.core.enrolment([url for url in self.addresses()[0] if url.startswith("mqtt")])  # agents: no ws
        api = DeviceApi(enrol=enrolment.enrol, ca=lambda: self.core.ca_pem, key_set=self._key_set, clock=time.time)
        url = listen_url(self.settings.http.device_listen, "http.device_listen", ("https",))
        context = parts.tls(self.settings)
        self._mqtt.on_certificates = lambda: parts.load_certificate(context, self.settings)
        server = await _bind(device_app(api), url, "http.device_listen", tls=context)
        doors.push_async_callback(server.aclose)
        self._enrol_port = server.port

    # --- dispatch

    async def _start_dispatch(self, tasks: asyncio.TaskGroup, doors: AsyncExitStack) -> None:
        await self._release_unconfigured()
        labels_of = await self._labels(tasks)
        for table in self.settings.handlers:
            dispatcher = await self._dispatcher(table, labels_of, doors)
            self._dispatchers[table.name] = dispatcher
            tasks.create_task(dispatcher.run(), name=f"dispatch-{table.name}")
            doors.push_async_callback(dispatcher.stop, DRAIN_S)
        doors.push_async_callback(self._cursors.aclose)

    async def _labels(self, tasks: asyncio.TaskGroup) -> LabelsOf:
        """Labels by device, kept in memory only if a handler asks for them."""
        if not any(table.labels for table in self.settings.handlers):
            return lambda _device: {}
        labels = Labels(self.storage.state)
        await labels.load()
        self._background.append(tasks.create_task(labels.run(), name="labels"))
        return labels.of

    async def _release_unconfigured(self) -> None:
        """A handler that left the configuration keeps its place and its dead letters, but holds retention no more."""
        configured = {table.name for table in self.settings.handlers}
        for state in await self.storage.subscriptions.list():
            name = state.spec.name
            if state.spec.live and name not in configured and not name.startswith(NAME_PREFIX):
                log.warning("handler_not_configured", handler=state.spec.name, dead_letters=state.dead)
                await self.storage.subscriptions.replace(parts.not_live(state.spec))

    async def _dispatcher(self, table: HandlerTable, labels_of: LabelsOf, doors: AsyncExitStack) -> Dispatcher:
        spec = parts.subscription(table)
        try:
            await self.storage.subscriptions.open(spec, End())
        except SubscriptionDiffers:
            await self.storage.subscriptions.replace(spec)
        deliverer = await targets.open_target(parts.target_config(table))
        doors.push_async_callback(deliverer.aclose)
        return Dispatcher(
            spec,
            parts.handler_settings(table),
            bus=self.storage.bus,
            subscriptions=self.storage.subscriptions,
            deliverer=deliverer,
            labels_of=labels_of,
            on_delivered=self.telemetry.latencies.note,
        )

    # --- background

    async def _keep_house(self) -> None:
        """Retention, the daily key set, what the metrics show."""
        keep = parts.retention(self.settings)
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            try:
                while await self.storage.bus.trim(keep, not_past=await self._needed()):
                    pass
                self._publish_keys()
            except (Unavailable, OSError) as exc:  # OSError: the key set is a file
                log.warning("housekeeping_failed", reason=str(exc))
            await self.telemetry.refresh()

    async def _prune(self) -> None:
        """Forget ids of used and revoked tokens, enrolment codes and retired envelope keys that have expired."""
        enrolment = self.core.enrolment(())
        while True:
            try:
                await self._authenticator.prune()
                await enrolment.prune()
                self._pipeline.use_open_keys(self.core.identity.open_keys(time.time()).values())
            except Unavailable as exc:
                log.warning("prune_failed", reason=str(exc))
            await asyncio.sleep(PRUNE_S)

    async def _needed(self) -> Mapping[int, Position]:
        """What live subscriptions have not finished with: for each partition the lowest of what they need."""
        needed: dict[int, Position] = {}
        for state in await self.storage.subscriptions.list():
            if state.spec.live:
                for partition, at in state.needed.items():
                    needed[partition] = min(at, needed.get(partition, at))
        return needed

    async def _close_mqtt(self) -> None:
        """What was read is stored and acknowledged before anybody is sent off."""
        if not await self._mqtt.drain(DRAIN_S):
            log.warning("drain_timed_out", after_s=DRAIN_S)
        await self._mqtt.aclose()

    def _revoke(self, principal: Principal, reason: str) -> None:
        self._mqtt.disconnect(principal, reason=reason)

    async def _announce(self, events: Sequence[Event]) -> None:
        """Store what the MQTT server says of a device's presence."""
        await append_events(self.storage.bus, events, limits=limits_of(self.settings), now_s=time.time())

    async def _reload_certificates(self, asked: asyncio.Event) -> None:
        """For new connections; those that are open keep what they began with."""
        while True:
            await asked.wait()
            asked.clear()
            self._mqtt.reload_certificates()

    def _publish_keys(self) -> None:
        key_set = self._key_set()
        if key_set != self._published_keys:
            self._mqtt.publish_retained(KEYS_TOPIC, key_set.encode())
            self._published_keys = key_set

    def _key_set(self) -> str:
        return self.core.identity.key_set(audience=self.settings.audience, now_s=time.time())

    # --- what the doors call

    async def _ready(self) -> Mapping[str, str]:
        checks = {"listeners": "" if self._is_open else "not accepting connections", "bus": "", "disk": ""}
        try:
            stats = await self.storage.bus.stats()
            await self.storage.state.put("probe/ready", b"", expect=None)
            if stats.free_bytes >= self.settings.bus.min_free_disk:
                checks["bus"] = stats.full
            else:
                floor = size_text(self.settings.bus.min_free_disk)
                checks["disk"] = f"{size_text(stats.free_bytes)} free, bus.min_free_disk is {floor}"
        except Unavailable as exc:
            checks["bus"] = str(exc)
        return checks

    async def _raise_events(
        self, *, token: bytes, body: bytes, content_type: str | None, headers: Mapping[str, str]
    ) -> list[str]:
        """`POST /event_bus`: a service proves itself and raises events of types its role may."""
        grant = await self._authenticator.authenticate(Credentials(client_id="", token=token))
        if grant.principal.kind is not PrincipalKind.CLIENT:
            raise TokenRejected("wrong-principal", "expected a token of a service; devices publish over MQTT")
        source, limits = grant.principal.source, limits_of(self.settings)
        raised = read_events(body, content_type=content_type, headers=headers, limits=limits, source=source)
        for event in raised:
            if not grant.permissions.may_raise(event.type):
                raise Rejected("not-authorized", f"type {event.type!r}: no role of this token has it under `emit`")
        await append_events(self.storage.bus, raised, limits=limits, now_s=time.time())
        return [event.id for event in raised]

    # --- what the operations ask (Live)

    def handler(self, name: str) -> Mapping[str, Any]:
        """State, rate and counters of a handler's dispatcher."""
        return self.telemetry.handler(name)

    def wake(self, name: str) -> None:
        """Let a handler look at its deferred entries now."""
        if name in self._dispatchers:
            self._dispatchers[name].wake()

    async def revoke_all_tokens(self) -> int:
        """Replace the operator key, and cut off everybody that it vouched for."""
        await asyncio.to_thread(self.core.identity.replace_operator_key)
        return self._mqtt.disconnect_issuer(ISSUER_PREFIX + self.settings.audience, "all tokens revoked")

    async def remove_cursor(self, name: str, *, dry_run: bool) -> Sequence[str]:
        """Remove a durable MQTT subscription and end the sessions that hold it."""
        return await self._mqtt.remove_cursor(name, dry_run=dry_run)

    def is_connected(self, device: str) -> bool | None:
        """Whether a device is connected."""
        return self._mqtt.is_connected(Principal(PrincipalKind.DEVICE, "", device))

    def addresses(self) -> tuple[Sequence[str], str | None]:
        """Where devices connect, with the ports that are really bound."""
        return public_addresses(self.settings, mqtt=self._mqtt.addresses or None, enrol_port=self._enrol_port)

    def stats(self) -> Mapping[str, Any]:
        """Counters of all parts."""
        return self.telemetry.stats()


async def _bind(app: web.Application, url: SplitResult, key: str, *, tls: ssl.SSLContext | None) -> HttpServer:
    try:
        return await HttpServer.start(app, url.hostname or "", url.port or 0, tls=tls)
    except OSError as exc:
        raise ConfigError(
            key, url.netloc, f"an address that can be bound ({str(exc.strerror).rpartition(': ')[2]})"
        ) from exc
