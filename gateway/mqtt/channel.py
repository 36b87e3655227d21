"""The socket half of a connection: output gathered for a turn, reasons not to read, a gentle close.

It knows transports and bytes, no MQTT but the fitting of a packet into what the client accepts. Reading stops while any
hold is set (a token being decided on, the budget, a rate, a peer that does not read); `_resume` is told when the last
one is gone.
"""

from __future__ import annotations

import asyncio
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, cast

import msgspec

from gateway.mqtt.accepting import host_port
from gateway.mqtt.codec import EMPTY, Connack, Disconnect, Packet, Properties, Publish, Version, encode
from gateway.mqtt.proxy import Peer
from gateway.mqtt.tls import certified_names

if TYPE_CHECKING:
    from gateway.mqtt.hub import Hub

NEVER: Final = float("inf")
DECIDING, _STOPPED, _BUDGET, _RATE, _WRITING = 1, 2, 4, 8, 16  # holds: bits, since an IntFlag costs ten times as much
_UNBOUNDED: Final = 1 << 28  # Maximum Packet Size of a client that names none


class _Gone(asyncio.Transport):
    """The transport of a connection whose socket is gone: has nothing to say, and does nothing."""

    def is_closing(self) -> bool:
        return True

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        return

    def abort(self) -> None:
        return


_GONE: Final = _Gone()


class Channel(asyncio.Protocol):
    """Base of `Connection`.

    Attributes:
        behind: The client, if a balancer speaks for it; None: it is the socket's own peer.
        inflight_bytes: What its unsettled publishes are charged (`Account`).
        check_at_s: When the wheel looks at it next (`Timed`).
    """

    __slots__ = (
        "_ended_s",
        "_heard_s",
        "_holds",
        "_hub",
        "_is_finished",
        "_opened_s",
        "_out",
        "_out_bytes",
        "_stuck_s",
        "_transport",
        "behind",
        "check_at_s",
        "inflight_bytes",
    )

    _transport: asyncio.Transport

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.behind: Peer | None = None
        self.inflight_bytes = 0
        self.check_at_s = NEVER
        self._holds = 0
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._is_finished = False
        self._opened_s = self._heard_s = self._ended_s = hub.loop.time()
        self._stuck_s = NEVER

    @property
    def peer(self) -> str:
        """The client's address, for logs and presence."""
        if self.behind:
            return host_port(self.behind.host, self.behind.port)
        name = self._transport.get_extra_info("peername")
        return host_port(*name[:2]) if name else "?"

    @property
    def is_peer_local(self) -> bool:
        """Whether it was reached from this machine; never through a balancer, which may stand anywhere."""
        name = self._transport.get_extra_info("peername")
        return self.behind is None and bool(name) and is_loopback(name[0])

    @property
    def certified_names(self) -> frozenset[str]:
        """The names that the client's certificate proves; none without mutual TLS."""
        ssl_object = self._transport.get_extra_info("ssl_object")
        return certified_names(ssl_object.getpeercert()) if ssl_object else frozenset()

    def now_s(self) -> float:
        """The loop's time."""
        return self._hub.loop.time()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=self._hub.settings.limits.unsent_bytes)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        """The socket is gone; so is the way to it, since in a cycle it would keep what TLS has allocated for minutes."""
        self._transport = _GONE

    def eof_received(self) -> bool:
        """The peer will send no more: MQTT knows no half-open connection."""
        return False

    def pause_writing(self) -> None:
        """The peer does not read: neither do we, or answers would pile up."""
        self._stuck_s = self.now_s()
        self._hold(_WRITING)
        self._hub.wheel.schedule(self, self._stuck_s + self._hub.settings.limits.slow_reader_s)

    def resume_writing(self) -> None:
        """The peer reads again."""
        self._stuck_s = NEVER
        self._release(_WRITING)
        self._hub.turn.add(self)

    @property
    def can_write(self) -> bool:
        """Whether the peer has taken enough of what was written before."""
        return self._stuck_s == NEVER and self._out_bytes < self._hub.settings.limits.unsent_bytes

    def write(self, data: bytes) -> None:
        """Write bytes of whole packets, at the end of this turn."""
        if not self._is_finished:
            self._out.append(data)
            self._out_bytes += len(data)
            self._hub.turn.add(self)

    def _flush(self) -> None:
        if self._out:
            data = b"".join(self._out)
            self._out.clear()
            self._out_bytes = 0
            if not self._transport.is_closing():
                self._hub.stats.sent_bytes += len(data)
                self._transport.write(data)

    def finish_turn(self) -> None:
        """Write what the turn produced."""
        self._flush()

    def check(self, now_s: float) -> float:
        """Act on what is due (`Timed`)."""
        raise AssertionError(f"a bare channel has no deadlines, asked at {now_s}")

    def hold_for_budget(self) -> None:
        """Stop reading until publishes have settled."""
        self._hold(_BUDGET)

    def release_from_budget(self) -> None:
        """Enough has settled."""
        self._release(_BUDGET)

    def hold_for_rate(self, wait_s: float) -> None:
        """Stop reading for so many seconds: that is how a rate is answered."""
        self._hold(_RATE)
        self._hub.loop.call_later(wait_s, self._release, _RATE)

    def stop_reading(self) -> None:
        """Read nothing more, for good: the gateway shuts down."""
        self._hold(_STOPPED)

    def abort(self) -> None:
        """Close without further words."""
        self._transport.abort()

    def _hold(self, why: int) -> None:
        if not self._holds and not self._is_finished:
            self._transport.pause_reading()
        self._holds |= why

    def _release(self, why: int) -> None:
        was_held, self._holds = self._holds, self._holds & ~why
        if was_held and not self._holds and not self._is_finished:
            self._heard_s = self.now_s()  # it could not be heard meanwhile
            self._hub.loop.call_soon(self._resume)

    def _resume(self) -> None:
        if not self._holds and not self._is_finished:
            self._transport.resume_reading()

    def _finish(self) -> None:
        """Write the last words, and give the peer a moment to read them: a close with unread input would reset."""
        self._flush()
        self._is_finished = True
        self._ended_s = self.now_s()
        self._hub.wheel.schedule(self, self._ended_s + self._hub.settings.limits.linger_s)
        if self._transport.is_closing():
            return  # soon: as soon as the peer has taken everything, or the wheel comes by
        if not self._transport.can_write_eof():
            self._transport.close()  # TLS: waits for the peer's close_notify
            return
        try:
            self._transport.write_eof()
        except OSError:  # the peer is gone, and we are the first to notice
            self._transport.abort()
            return
        if self._holds:
            self._transport.resume_reading()


def fitted(packet: Packet, version: Version, asked: Properties) -> bytes | None:
    """Write a packet as a client wants it: None if it is larger than the client accepts [MQTT-3.1.2-24].

    Reason strings and user properties are left out where it wants none [MQTT-3.1.2-29] or they do not fit.

    Args:
        packet: To this client.
        version: What it speaks.
        asked: Properties of its CONNECT.
    """
    if asked.request_problem_information is False and not isinstance(packet, Publish | Connack | Disconnect):
        packet = _bare(packet)
    data = encode(packet, version)
    limit = asked.maximum_packet_size or _UNBOUNDED
    if len(data) > limit and not isinstance(packet, Publish):
        data = encode(_bare(packet), version)
    return data if len(data) <= limit else None


def is_loopback(host: str) -> bool:
    """Tell whether an address, as text, is of this machine only."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def reason_text(text: str) -> str | None:
    """A Reason String: short, and nothing in it that MQTT's strings cannot hold (1.5.4)."""
    return text[:500].replace("\0", "?").encode(errors="replace").decode() or None


def _bare(packet: Packet) -> Packet:
    properties: Properties = getattr(packet, "properties", EMPTY)
    if properties is EMPTY:
        return packet
    return msgspec.structs.replace(
        packet, properties=msgspec.structs.replace(properties, reason_string=None, user_properties=())
    )
