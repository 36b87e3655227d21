"""Runs one web application on one listener: start, addresses, graceful close.

There is no access log: a URL or a header may carry what must not be logged, and metrics count requests. For the same
reason aiohttp does not log requests it cannot read: its message quotes them.
"""

from __future__ import annotations

import logging
import socket
from ssl import SSLContext
from typing import Any, Final

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

log = structlog.get_logger()

KEEP_ALIVE_S: Final = 30  # an idle connection, or one whose request head does not come, is closed after it
SHUTDOWN_TIMEOUT_S: Final = 5.0


class HttpServer:
    """A web application that listens."""

    def __init__(self, runner: web.AppRunner, addresses: list[Any]) -> None:
        self._runner = runner
        self.addresses = addresses
        """What it is bound to: (host, port, ...) of each TCP socket; empty for a Unix socket."""

    @classmethod
    async def start(cls, app: web.Application, host: str, port: int, *, tls: SSLContext | None = None) -> HttpServer:
        """Listen on TCP.

        Args:
            app: What answers.
            host: Name or address; all addresses of a name are bound.
            port: 0 for any free one; see `addresses`.
            tls: Server context, for HTTPS.

        Raises:
            OSError: The address is taken or cannot be bound.
        """
        runner = await _runner(app)
        try:
            await web.TCPSite(runner, host, port, ssl_context=tls).start()
        except BaseException:
            await runner.cleanup()
            raise
        return cls(runner, list(runner.addresses))

    @classmethod
    async def start_on(cls, app: web.Application, listener: socket.socket) -> HttpServer:
        """Listen on a socket that is bound already."""
        runner = await _runner(app)
        await web.SockSite(runner, listener).start()
        return cls(runner, [])

    @property
    def port(self) -> int:
        """Port of the first TCP socket."""
        return int(self.addresses[0][1])

    async def aclose(self) -> None:
        """Accept nothing more, give running requests `SHUTDOWN_TIMEOUT_S`, close; a second close does nothing."""
        await self._runner.cleanup()


class _Unreadable(logging.Filter):
    """Names a peer's breach of HTTP in our words; what else goes wrong in aiohttp is logged as it comes."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, HttpProcessingError):
            return True
        log.info("http_request_unreadable", error=type(error).__name__)
        return False


_aiohttp_log: Final = logging.getLogger("gateway.http")
_aiohttp_log.addFilter(_Unreadable())


async def _runner(app: web.Application) -> web.AppRunner:
    app.on_response_prepare.append(_name_server)
    runner = web.AppRunner(
        app,
        access_log=None,
        logger=_aiohttp_log,
        handle_signals=False,
        keepalive_timeout=KEEP_ALIVE_S,
        shutdown_timeout=SHUTDOWN_TIMEOUT_S,
        auto_decompress=False,  # a bomb would be inflated before any bound is looked at; see `read_body`
    )
    await runner.setup()
    return runner


async def _name_server(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = "lockgate"  # without versions of Python and libraries
