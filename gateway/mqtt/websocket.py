"""MQTT over WebSocket (MQTT 5.0, chapter 6; RFC 6455): frames below, a stream of bytes above.

Owns the upgrade, the framing and the close handshake; `wsproto` parses and writes. It knows no MQTT but its sub-protocol.
To the socket it is a protocol, to the connection it carries a transport, so that holds and write limits work as on TCP.

Strategy: payloads are passed on as they arrive, never gathered into frames or messages, so a peer that is not let in yet
can make us keep no more than it could over TCP. No extension is agreed on: a compressed frame could inflate without bound.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final, cast
from urllib.parse import urlsplit

import structlog
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import RemoteProtocolError

log = structlog.get_logger()

PATH: Final = "/mqtt"
SUBPROTOCOL: Final = "mqtt"
_METHOD: Final = b"GET /"
_END: Final = b"\r\n\r\n"
_REQUEST_BYTES: Final = 8 << 10
_NO_BODY: Final = [(b"Content-Length", b"0"), (b"Connection", b"close")]


def answer(request: Request, origins: Iterable[str]) -> AcceptConnection | RejectConnection:
    """Decide on an upgrade: its path, its sub-protocol [MQTT-6.0.0-3, -4], and the page it comes from.

    Args:
        request: What the client asks for.
        origins: Pages that may connect (`https://HOST[:PORT]`, or `*`), besides those of the server's own host.
    """
    if request.target.partition("?")[0] != PATH:
        return _refused(404, request)
    if SUBPROTOCOL not in request.subprotocols:
        return _refused(400, request)
    if not _is_origin_allowed(request, origins):
        return _refused(403, request)
    return AcceptConnection(subprotocol=SUBPROTOCOL)


def _refused(status: int, request: Request) -> RejectConnection:
    log.info("websocket_refused", status=status, target=request.target[:80], subprotocols=request.subprotocols[:4])
    return RejectConnection(status_code=status, headers=_NO_BODY)


def _is_origin_allowed(request: Request, origins: Iterable[str]) -> bool:
    """Programs send no Origin, browsers always do (RFC 6455, section 10.2)."""
    found = [value for name, value in request.extra_headers if name == b"origin"]
    if not found:
        return True
    origin = found[0].decode("latin-1").lower()
    if len(found) > 1:
        return False
    return bool({origin, "*"} & {each.lower() for each in origins}) or _host(origin) == _host(f"//{request.host}")


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or url
    except ValueError:
        return url


class WebSocket(asyncio.Protocol, asyncio.Transport):
    """Between a socket's transport and a connection."""

    __slots__ = (
        "_frame_bytes",
        "_inner",
        "_is_ending",
        "_limit_bytes",
        "_linger_s",
        "_origins",
        "_request",
        "_transport",
        "_ws",
    )

    _transport: asyncio.Transport

    def __init__(
        self, inner: asyncio.Protocol, *, origins: Iterable[str], max_frame_bytes: int, linger_s: float
    ) -> None:
        """Wait for a socket.

        Args:
            inner: Gets the bytes of binary frames, and this object as its transport.
            origins: As in `answer`.
            max_frame_bytes: A longer frame ends the connection (close code 1009).
            linger_s: How long the peer may take to answer our Close.
        """
        super().__init__()
        self._inner = inner
        self._origins = origins
        self._limit_bytes = max_frame_bytes
        self._linger_s = linger_s
        self._frame_bytes = 0
        self._is_ending = False
        self._request = bytearray()
        self._ws = WSConnection(ConnectionType.SERVER)

    # What the socket's transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport; the connection's deadline for CONNECT runs from here."""
        self._transport = cast("asyncio.Transport", transport)
        self._inner.connection_made(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone."""
        self._is_ending = True
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        """The peer does not read."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """The peer reads again."""
        self._inner.resume_writing()

    def eof_received(self) -> bool:
        """The peer will send no more, not even a Close."""
        return False

    def data_received(self, data: bytes) -> None:
        """Read the request, then frames."""
        if self._ws.state is ConnectionState.CONNECTING and not self._is_ending:
            self._read_request(data)
        elif self._ws.state in (ConnectionState.OPEN, ConnectionState.LOCAL_CLOSING):
            self._read_frames(data)

    def _read_request(self, data: bytes) -> None:
        """`wsproto` forgets what comes behind the request in one segment, so it is given the request alone."""
        self._request += data
        head, end, behind = self._request.partition(_END)
        if not _METHOD.startswith(head[: len(_METHOD)]) or len(head) > _REQUEST_BYTES:
            self._reject(None)
        elif end:
            self._request.clear()
            try:
                self._ws.receive_data(bytes(head + end))
                for event in self._ws.events():
                    self._take(event)
            except RemoteProtocolError as error:
                self._reject(error.event_hint)
            except UnicodeError:  # a Host or a target that is no text
                self._reject(None)
            self.data_received(bytes(behind))

    def _read_frames(self, data: bytes) -> None:
        carried: list[bytes | bytearray] = []
        self._ws.receive_data(data)
        for event in self._ws.events():
            if isinstance(event, BytesMessage) and not self._is_ending and self._is_within(event):
                carried.append(event.data)
            else:
                self._pass_on(carried)
                self._take(event)
        self._pass_on(carried)

    def _pass_on(self, carried: list[bytes | bytearray]) -> None:
        if carried and not self._is_ending:
            data = b"".join(carried)
            carried.clear()
            self._inner.data_received(data)

    def _is_within(self, event: BytesMessage) -> bool:
        self._frame_bytes += len(event.data)
        is_within = self._frame_bytes <= self._limit_bytes
        if event.frame_finished:
            self._frame_bytes = 0
        return is_within

    def _take(self, event: Event) -> None:
        match event:
            case Request():
                decided = answer(event, self._origins)
                self._transport.write(self._ws.send(decided))
                if isinstance(decided, RejectConnection):
                    self._is_ending = True
                    self._transport.close()
            case Ping() if not self._is_ending:
                self._transport.write(self._ws.send(event.response()))
            case CloseConnection():
                self._on_close(event)
            case BytesMessage() if not self._is_ending:
                self._end(CloseReason.MESSAGE_TOO_BIG, f"expected frames of at most {self._limit_bytes} bytes")
            case TextMessage() if not self._is_ending:
                self._end(CloseReason.UNSUPPORTED_DATA, "expected binary frames [MQTT-6.0.0-1]")

    def _on_close(self, event: CloseConnection) -> None:
        """The peer closes, answers our Close, or (`wsproto` reports it likewise) breaks RFC 6455."""
        if self._ws.state is ConnectionState.REMOTE_CLOSING:
            self._is_ending = True
            self._transport.write(self._ws.send(event.response()))
            self._transport.close()
            self._abort_soon()
        elif self._ws.state is ConnectionState.OPEN:
            self._end(CloseReason(event.code), event.reason or "")
        else:
            self._transport.close()

    def _reject(self, hint: Event | None) -> None:
        self._is_ending = True
        status = hint.status_code if isinstance(hint, RejectConnection) else 400
        headers = [*hint.headers, *_NO_BODY] if isinstance(hint, RejectConnection) else _NO_BODY
        said = b"".join(b"%s: %s\r\n" % pair for pair in headers)
        log.info("websocket_refused", status=status, reason="no WebSocket handshake")
        self._transport.write(b"HTTP/1.1 %d \r\n%s\r\n" % (status, said))
        self._transport.close()

    def _end(self, code: CloseReason, reason: str) -> None:
        """Send a Close, and wait a moment for the peer's (RFC 6455, section 7.1.1)."""
        self._is_ending = True
        self._transport.write(self._ws.send(CloseConnection(code=code, reason=reason[:120])))
        self._transport.resume_reading()
        self._abort_soon()

    def _abort_soon(self) -> None:
        """Wait for the peer no longer than this, whether for its Close or until it takes what was written."""
        asyncio.get_running_loop().call_later(self._linger_s, self._transport.abort)

    # What the connection calls.

    def get_extra_info(self, name: str, default: object = None) -> object:
        """Of the socket."""
        return self._transport.get_extra_info(name, default)

    def is_closing(self) -> bool:
        """Whether nothing more can be written."""
        return self._is_ending or self._transport.is_closing()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write one binary frame."""
        if not self.is_closing() and self._ws.state is ConnectionState.OPEN:
            self._transport.write(self._ws.send(BytesMessage(data=bytes(data))))

    def can_write_eof(self) -> bool:
        """No: a WebSocket ends both ways at once."""
        return False

    def close(self) -> None:
        """End with the close handshake."""
        if self.is_closing():
            return
        if self._ws.state is ConnectionState.OPEN:
            self._end(CloseReason.NORMAL_CLOSURE, "")
        else:
            self._transport.close()

    def abort(self) -> None:
        """End at once."""
        self._transport.abort()

    def pause_reading(self) -> None:
        """Read nothing for now, unless it is the peer's Close that is waited for."""
        if not self._is_ending:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        self._transport.resume_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Of the socket's buffer, frames included."""
        self._transport.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        """Bytes that the peer has not taken."""
        return self._transport.get_write_buffer_size()
