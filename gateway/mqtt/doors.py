"""The doors of one listener, and what those who come in speak to: a connection, directly or in WebSocket frames."""

from __future__ import annotations

import asyncio

from gateway.errors import ConfigError
from gateway.mqtt.accepting import Door, Network, bind
from gateway.mqtt.addresses import Listener
from gateway.mqtt.connection import Connection
from gateway.mqtt.hub import Hub
from gateway.mqtt.proxy import Peer
from gateway.mqtt.tls import Certificates
from gateway.mqtt.websocket import WebSocket


def doors_of(
    hub: Hub, listener: Listener, trusted: tuple[Network, ...], certificates: Certificates | None
) -> list[Door]:
    """Bind the addresses of a listener; nobody is let in yet.

    Args:
        hub: What its connections share.
        listener: Where.
        trusted: Networks of balancers.
        certificates: For listeners with TLS.

    Raises:
        ConfigError: An address cannot be bound.
    """
    limits = hub.settings.limits
    try:
        found = bind(listener.host, listener.port, limits.receive_buffer_bytes)
    except OSError as exc:
        url = f"{listener.scheme}://{listener.host}:{listener.port}"
        raise ConfigError(listener.key, url, f"an address that can be bound ({exc.strerror})") from exc
    return [
        Door(
            bound,
            lambda peer: _protocol(hub, listener, peer),
            tasks=hub.tasks,
            limits=limits,
            has_room=lambda entering: _has_room(hub, entering),
            trusted=trusted,
            context=(lambda: certificates.context) if listener.is_tls and certificates else None,
        )
        for bound in found
    ]


def _has_room(hub: Hub, entering: int) -> bool:
    """Whether one more socket may be taken, besides those that are about to enter: even refusals are bounded."""
    cap = hub.settings.limits.connections
    return len(hub.sockets) + entering <= cap + max(16, cap // 10)


def _protocol(hub: Hub, listener: Listener, peer: Peer | None) -> asyncio.Protocol:
    """What one accepted socket speaks to; anonymous clients are for plain MQTT on loopback without PROXY only."""
    connection = Connection(hub, is_loopback=listener.scheme == "mqtt" and listener.is_loopback)
    connection.behind = peer
    if not listener.is_websocket:
        return connection
    limits = hub.settings.limits
    return WebSocket(
        connection,
        origins=hub.settings.origins,
        max_frame_bytes=2 * limits.packet_bytes,  # the largest packet, with others before and behind it
        linger_s=limits.linger_s,
    )
