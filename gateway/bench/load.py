"""What a run sends, and where: the settings of the generator."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from edge_protocol.envelope_keys import DEFAULT_SUITE, Suite
from gateway.mqtt.codec import Version

EVENT_TYPE: Final = "bench"
PREPARED: Final = 20_000
"""Publishes prepared for a closed loop that is bounded by time only, where each differs."""


class BenchFailed(Exception):
    """The run could not be made, or broke; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A gateway to send to, or any MQTT server.

    Attributes:
        url: `mqtt://HOST:PORT` or `mqtts://HOST:PORT`.
        ca: File with the certificates to trust, for `mqtts`; "" for the system's.
    """

    url: str
    ca: str = ""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port.

        Raises:
            BenchFailed: The URL is no address of an MQTT server.
        """
        parts = urlsplit(self.url)
        try:
            fine = parts.scheme in {"mqtt", "mqtts"} and parts.hostname and parts.port
        except ValueError:
            fine = None
        if not fine:
            raise BenchFailed(f"url {self.url!r}: expected mqtt://HOST:PORT or mqtts://HOST:PORT")
        return str(parts.hostname), int(parts.port or 0)

    @property
    def is_loopback(self) -> bool:
        """Whether it is on this machine."""
        host = self.address[0]
        try:
            return ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    def tls(self) -> ssl.SSLContext | None:
        """The client's TLS context, None for `mqtt`.

        Raises:
            BenchFailed: The file with the CA cannot be read.
        """
        if not self.url.startswith("mqtts:"):
            return None
        try:
            return ssl.create_default_context(cafile=self.ca or None)
        except OSError as exc:
            raise BenchFailed(f"ca {self.ca!r}: expected a PEM file that can be read ({exc.strerror or exc})") from exc


@dataclass(frozen=True, kw_only=True)
class Load:
    """What every device sends.

    Attributes:
        seconds: Stop after this long; None for no limit in time.
        count: Stop after so many publishes in all; None for no limit in number.
        rate: Publishes a second in all: an open loop. None: a closed loop, as fast as the windows allow.
        window: Unacknowledged publishes a connection.
        qos: 0 or 1.
        size: Bytes of data of an event.
        events: Events an envelope; 0 for plain events on a typed topic.
        structured: Plain events as CloudEvents with ids of their own, instead of bare data.
        suite: Of the envelopes.
        version: Of MQTT.
        processes: Processes that share the devices.
        topic: Publish to this topic instead, bare, without a token: for other servers.
    """

    seconds: float | None = None
    count: int | None = None
    rate: float | None = None
    window: int = 64
    qos: int = 1
    size: int = 256
    events: int = 0
    structured: bool = False
    suite: Suite = DEFAULT_SUITE
    version: Version = Version.V5
    processes: int = 1
    topic: str = ""

    @property
    def publishes(self) -> int | None:
        """How many publishes there may be in all: what has to be prepared if each differs; None if any number."""
        bounds = [] if self.count is None else [self.count]
        if self.seconds is not None and self.rate is not None:
            bounds.append(int(self.seconds * self.rate))
        if (self.events or self.structured) and not bounds:
            bounds.append(PREPARED)
        return min(bounds, default=None)
