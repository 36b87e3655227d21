"""Where to listen, and whom a balancer may speak for: URLs and networks of the settings, read and checked."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_network
from typing import Final
from urllib.parse import urlsplit

from gateway.errors import ConfigError
from gateway.mqtt.accepting import Network
from gateway.mqtt.channel import is_loopback
from gateway.mqtt.websocket import PATH

_DEFAULT_PORTS: Final = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}
_EXPECTED: Final = "mqtts://HOST:PORT or mqtt://HOST:PORT, or for WebSocket wss://HOST:PORT/mqtt or ws://HOST:PORT/mqtt"


@dataclass(frozen=True, slots=True)
class Listener:
    """Where to listen, read from a URL; `key` names the setting."""

    scheme: str
    host: str
    port: int
    key: str

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host == "localhost" or is_loopback(self.host)

    @property
    def is_tls(self) -> bool:
        """Whether it speaks TLS."""
        return self.scheme in ("mqtts", "wss")

    @property
    def is_websocket(self) -> bool:
        """Whether MQTT comes in WebSocket frames."""
        return self.scheme in ("ws", "wss")

    def url(self, address: str) -> str:
        """The URL of an address, HOST:PORT."""
        return f"{self.scheme}://{address}{PATH if self.is_websocket else ''}"


def read_listener(url: str, key: str, *, allow_plaintext: bool) -> Listener:
    """Read `mqtts://HOST:PORT`, `mqtt://HOST:PORT`, `wss://HOST:PORT/mqtt` or `ws://HOST:PORT/mqtt`.

    Raises:
        ConfigError: Another scheme, a bad port, or plain text where others could listen in.
    """
    try:
        parts = urlsplit(url)
        port = parts.port if parts.port is not None else _DEFAULT_PORTS[parts.scheme]
    except (ValueError, KeyError) as exc:
        raise ConfigError(key, url, _EXPECTED) from exc
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        raise ConfigError(key, url, _EXPECTED)
    listener = Listener(parts.scheme, parts.hostname, port, key)
    if parts.path not in {"", "/", PATH if listener.is_websocket else ""}:
        raise ConfigError(key, url, _EXPECTED)
    if not (listener.is_tls or listener.is_loopback or allow_plaintext):
        plain = f"{parts.scheme}://"
        raise ConfigError(
            key, url, f"a loopback address for {plain} (or mqtt.allow_plaintext = true), or {_tls_of(parts.scheme)}://"
        )
    return listener


def read_networks(texts: tuple[str, ...], key: str) -> tuple[Network, ...]:
    """Read networks such as `10.0.0.0/8`, `192.0.2.7` or `fd00::/8`.

    Raises:
        ConfigError: One that is none.
    """
    networks = []
    for n, text in enumerate(texts):
        try:
            networks.append(ip_network(text))
        except ValueError as exc:
            raise ConfigError(f"{key}[{n}]", text, "a network such as 10.0.0.0/8, or an address") from exc
    return tuple(networks)


def _tls_of(scheme: str) -> str:
    return {"mqtt": "mqtts", "ws": "wss"}[scheme]
