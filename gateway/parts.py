"""What each part is told, out of gateway.toml: settings in, the parts' own settings out."""

from __future__ import annotations

import dataclasses
import ssl
from typing import Final
from urllib.parse import urlsplit

import msgspec

from gateway import storage
from gateway.config import HandlerSettings as HandlerTable
from gateway.config import Settings
from gateway.errors import ConfigError
from gateway.mqtt.settings import ServerLimits, ServerSettings
from gateway.ports.bus import Retention
from gateway.ports.subscriptions import SubscriptionSpec
from gateway.ports.target import TargetConfig
from gateway.rules.handling import HandlerSettings
from gateway.rules.policy import PolicyRule
from gateway.rules.retry import RetryPolicy
from gateway.storage import Storage

_PACKET_MARGIN_BYTES: Final = 128 << 10  # topic and properties around an envelope


async def open_storage(settings: Settings) -> Storage:
    """Open the store that `bus.url` names; a relative file is looked for from the configuration's base."""
    return await storage.open_storage(
        _storage_url(settings),
        deduplication_window_s=settings.bus.deduplication_window,
        min_free_disk_bytes=settings.bus.min_free_disk,
        retention=retention(settings),
    )


def check_storage(settings: Settings) -> None:
    """Check `bus.url` without opening the store.

    Raises:
        ConfigError: No store can be there.
    """
    storage.check_url(_storage_url(settings))


def _storage_url(settings: Settings) -> str:
    url = settings.bus.url
    if url.startswith("sqlite:///") and not url.startswith("sqlite:////"):
        return f"sqlite:///{settings.path(url.removeprefix('sqlite:///')).absolute()}"
    return url


def retention(settings: Settings) -> Retention:
    """What the bus may remove."""
    keep = settings.bus.retention
    return Retention(age_s=keep.age, size_bytes=keep.size)


def policy_rule(settings: Settings, n: int) -> PolicyRule:
    """One `[[policy]]` table.

    Raises:
        ConfigError: A pattern that cannot be.
    """
    table = settings.policy[n]
    rate = table.rate
    try:
        return PolicyRule(
            role=table.role,
            publish=table.publish,
            subscribe=table.subscribe,
            deny_publish=table.deny_publish,
            deny_subscribe=table.deny_subscribe,
            emit=table.emit,
            require_envelope=table.require_envelope,
            **({} if rate is None else msgspec.structs.asdict(rate)),
        )
    except ValueError as exc:
        raise ConfigError(f"policy[{n}]", table.role, f"a rule that can be ({exc})") from exc


def server_settings(settings: Settings) -> ServerSettings:
    """The MQTT server's."""
    limits = settings.limits
    return ServerSettings(
        listen=settings.mqtt.listen,
        certificate=str(settings.path(settings.mqtt.certificate)),
        private_key=str(settings.path(settings.mqtt.private_key)),
        client_ca=str(settings.path(settings.mqtt.client_ca)) if settings.mqtt.client_ca else "",
        allow_plaintext=settings.mqtt.allow_plaintext,
        origins=settings.mqtt.origins,
        proxy_protocol=settings.mqtt.proxy_protocol,
        strict_311=settings.strict_311,
        limits=ServerLimits(
            connections=limits.connections,
            connects_per_s=limits.connects_per_s,
            inflight_bytes=limits.inflight_bytes,
            packet_bytes=limits.envelope_bytes + _PACKET_MARGIN_BYTES,
            receive_maximum=limits.receive_maximum,
            keep_alive_s=limits.keep_alive,
            connect_s=limits.connect_timeout,
            queue_messages=limits.queue_messages,
            queue_bytes=limits.queue_bytes,
            queues_bytes=limits.queues_bytes,
            sessions=limits.sessions,
            session_expiry_s=int(limits.session_expiry),
            session_expiry_311_s=int(limits.session_expiry_311),
            retained_messages=limits.retained_messages,
            retained_bytes=limits.retained_bytes,
            state_bytes=limits.event_bytes,
            json_depth=limits.json_depth,
        ),
    )


def not_live(spec: SubscriptionSpec) -> SubscriptionSpec:
    """The same subscription, which holds retention no more."""
    return dataclasses.replace(spec, live=False)


def subscription(table: HandlerTable) -> SubscriptionSpec:
    """The durable subscription of a handler."""
    labels = tuple(sorted(table.labels.items()))
    return SubscriptionSpec(name=table.name, types=table.types, devices=table.devices, labels=labels)


def target_config(table: HandlerTable) -> TargetConfig:
    """What a handler's target is opened with."""
    return TargetConfig(
        handler=table.name,
        url=urlsplit(table.url),
        timeout_s=table.timeout,
        secret=table.secret,
        headers=table.headers,
        concurrency=table.concurrency,
        batch=table.batch,
    )


def handler_settings(table: HandlerTable) -> HandlerSettings:
    """How a handler delivers."""
    retry = RetryPolicy(max_attempts=table.retry.max_attempts, first_s=table.retry.first, max_s=table.retry.max)
    return HandlerSettings(
        ordering=table.ordering,
        concurrency=table.concurrency,
        batch=table.batch,
        retry=retry,
        give_up_after_s=table.give_up_after,
        on_dead_letter=table.on_dead_letter,
    )


def tls(settings: Settings) -> ssl.SSLContext:
    """The context of the device listener: the same certificate as MQTT's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load_certificate(context, settings)
    return context


def load_certificate(context: ssl.SSLContext, settings: Settings) -> None:
    """Have a context use the certificate files as they are now, for new connections."""
    context.load_cert_chain(settings.path(settings.mqtt.certificate), settings.path(settings.mqtt.private_key))
