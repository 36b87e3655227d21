"""Doors: bound sockets that let peers in, through a PROXY header and TLS, to a protocol.

Strategy: sockets are accepted here and handed to the loop one by one, not by `create_server`: so each connection takes
the TLS context that is current, and a PROXY header, which stands before TLS, is read off the bare socket byte-exact.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Final

import structlog

from gateway.mqtt.proxy import HEAD_BYTES, Peer, ProxyRefused, read_peer, rest_bytes
from gateway.mqtt.settings import ServerLimits
from gateway.mqtt.turns import Tasks

log = structlog.get_logger()

_BACKLOG: Final = 1024
_AT_ONCE: Final = 64  # accepted in one turn of the loop
_PAUSE_S: Final = 0.5  # after an error such as EMFILE, which only time mends

Network = IPv4Network | IPv6Network
Make = Callable[[Peer | None], asyncio.Protocol]
"""A protocol for a socket; the peer is given if a balancer speaks for it."""


class Door:
    """One bound socket."""

    def __init__(
        self,
        bound: socket.socket,
        make: Make,
        *,
        tasks: Tasks,
        limits: ServerLimits,
        has_room: Callable[[int], bool],
        trusted: tuple[Network, ...] = (),
        context: Callable[[], ssl.SSLContext] | None = None,
    ) -> None:
        """Let nobody in yet.

        Args:
            bound: Non-blocking; closed with the door.
            make: Makes the protocol of each connection.
            tasks: Run what happens before a connection has its protocol.
            limits: Deadlines.
            has_room: Whether so many more may come in; else a peer is closed at once.
            trusted: Networks of balancers, which must send a PROXY header.
            context: The current TLS context; None for plain TCP.
        """
        self._bound = bound
        self._make = make
        self._tasks = tasks
        self._limits = limits
        self._has_room = has_room
        self._trusted = trusted
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._entering = 0
        self._is_closed = False

    @property
    def address(self) -> str:
        """HOST:PORT that is bound."""
        return host_port(*self._bound.getsockname()[:2])

    def open(self) -> None:
        """Let peers in."""
        self._bound.listen(_BACKLOG)
        self._loop.add_reader(self._bound, self._accept)

    def close(self) -> None:
        """Let nobody in any more. A second call does nothing."""
        if not self._is_closed:
            self._is_closed = True
            self._loop.remove_reader(self._bound)
            self._bound.close()

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                peer, address = self._bound.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as exc:
                log.warning("accept_failed", reason=exc.strerror, pause_s=_PAUSE_S)
                self._loop.remove_reader(self._bound)
                self._loop.call_later(_PAUSE_S, self._reopen)
                return
            if self._has_room(self._entering):
                peer.setblocking(False)
                self._entering += 1
                self._tasks.start(self._let_in(peer, address), name="accept")
            else:
                peer.close()

    def _reopen(self) -> None:
        if not self._is_closed:
            self._loop.add_reader(self._bound, self._accept)

    async def _let_in(self, peer: socket.socket, address: tuple[str, int]) -> None:
        try:
            source = await self._proxied(peer, address)
            await self._connect(peer, source)
        except ProxyRefused as exc:
            log.warning("proxy_header_refused", peer=host_port(*address[:2]), reason=str(exc))
        except OSError as exc:  # time-outs and TLS errors are such
            log.debug("peer_not_let_in", peer=host_port(*address[:2]), reason=str(exc))
        finally:
            self._entering -= 1

    async def _proxied(self, peer: socket.socket, address: tuple[str, int]) -> Peer | None:
        """Whom a balancer speaks for, itself if it does not say; None for a peer that is no balancer."""
        host = ip_address(address[0].partition("%")[0])
        if not any(host in network for network in self._trusted):
            return None
        try:
            async with asyncio.timeout(self._limits.connect_s):
                head = await self._receive(peer, HEAD_BYTES)
                rest = await self._receive(peer, rest_bytes(head))
            return read_peer(head, rest) or Peer(address[0], address[1])
        except BaseException:
            peer.close()
            raise

    async def _receive(self, peer: socket.socket, size: int) -> bytes:
        """Exactly so many bytes, none of what follows them."""
        data = b""
        while len(data) < size:
            more = await self._loop.sock_recv(peer, size - len(data))
            if not more:
                raise ProxyRefused("the peer closed before its header was complete")
            data += more
        return data

    async def _connect(self, peer: socket.socket, source: Peer | None) -> None:
        """Hand the socket over: from here on the loop closes it."""
        if self._context is None:
            await self._loop.connect_accepted_socket(lambda: self._make(source), peer)
            return
        await self._loop.connect_accepted_socket(
            lambda: self._make(source),
            peer,
            ssl=self._context(),
            ssl_handshake_timeout=self._limits.connect_s,
            ssl_shutdown_timeout=self._limits.linger_s,
        )


def bind(host: str, port: int, receive_buffer_bytes: int) -> list[socket.socket]:
    """Bind every address of a host.

    Raises:
        OSError: One cannot be bound; then none is.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    bound: list[socket.socket] = []
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            bound.append(_bound(family, address, receive_buffer_bytes))
    except OSError:
        for each in bound:
            each.close()
        raise
    return bound


def _bound(family: int, address: object, receive_buffer_bytes: int) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # inherited by what it accepts, like the next two
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(address)  # type: ignore[arg-type]  # as getaddrinfo gave it
        bound.setblocking(False)
    except OSError:
        bound.close()
        raise
    return bound


def host_port(host: str, port: int) -> str:
    """An address as text; IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
