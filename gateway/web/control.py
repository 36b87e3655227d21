"""The Unix socket on which a running gateway serves the operations to the command line: `POST /v1/{operation}`.

Who may open the socket may do everything: it has mode 0600 from the moment it exists, and stands in the state folder.
A JSON object of keyword arguments goes in; out comes 200 and the JSON value, or `{"error": CLASSNAME, "message": TEXT}`.

Strategy: the mode is set on the unbound socket (Linux creates the file with it, so there is no moment with another);
the file gets a name of its own and is renamed into place when it listens, so a stale one is replaced at once and nobody
ever meets a file that does not answer. A Unix address has 108 bytes; a longer path goes through /proc/self/fd.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog
from aiohttp import web

from edge_protocol.errors import ProtocolError
from gateway.errors import Conflict, GatewayError
from gateway.ports.operations import Operation, Operations
from gateway.web.problems import json_response, read_body, status_of
from gateway.web.server import HttpServer

log = structlog.get_logger()

SOCKET_NAME: Final = "gateway.sock"
MAX_BODY_BYTES: Final = 8 << 20
_MODE: Final = 0o600
_ADDRESS_BYTES: Final = 107  # sun_path has 108, the last one NUL (unix(7))
_PROBE_TIMEOUT_S: Final = 2.0


class ControlServer:
    """The operations, served on a Unix socket."""

    def __init__(self, server: HttpServer, path: Path) -> None:
        self._server = server
        self._path = path

    @classmethod
    async def start(cls, operations: Operations, path: Path) -> ControlServer:
        """Serve on a path; a socket file that nobody answers on is replaced.

        Raises:
            Conflict: A gateway answers there.
            OSError: The folder does not exist or cannot be written.
        """
        if is_answering(path):
            raise Conflict(f"{path}: a gateway is running already and answers there")
        fresh = path.with_name(f"{path.name}.{os.getpid()}")
        fresh.unlink(missing_ok=True)
        listener = _listen(fresh)
        server = await HttpServer.start_on(control_app(operations), listener)
        fresh.replace(path)
        return cls(server, path)

    async def aclose(self) -> None:
        """Remove the file, finish running calls, close; a second close does nothing."""
        self._path.unlink(missing_ok=True)
        await self._server.aclose()


@contextlib.contextmanager
def address_of(path: Path) -> Iterator[str]:
    """Give an address for a socket's path that fits, however long the path is; valid inside the `with`."""
    if len(os.fsencode(path)) <= _ADDRESS_BYTES:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def is_answering(path: Path) -> bool:
    """Tell whether a process listens on a Unix socket; a missing or stale file is none."""
    try:
        with socket.socket(socket.AF_UNIX) as probe, address_of(path) as address:
            probe.settimeout(_PROBE_TIMEOUT_S)
            probe.connect(address)
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        return False
    except OSError as exc:
        raise GatewayError(f"{path}: expected a socket that may be opened ({exc.strerror or exc})") from exc
    return True


def control_app(operations: Operations) -> web.Application:
    """Build the application of the Unix socket."""

    async def call(request: web.Request) -> web.Response:
        name = request.match_info["operation"]
        try:
            arguments = _arguments(await read_body(request))
            return json_response(await _bound(operations, name, arguments))
        except (GatewayError, ProtocolError) as exc:
            return json_response({"error": type(exc).__name__, "message": str(exc)}, status_of(exc))
        except web.HTTPException as exc:
            return json_response({"error": type(exc).__name__, "message": exc.text}, exc.status)
        except Exception:  # the top of a call: the log gets the traceback, the operator is told where to look
            log.exception("operation_failed", operation=name)
            message = f"{name} failed in a way nobody foresaw; the gateway's log says more"
            return json_response({"error": "InternalError", "message": message}, 500)

    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app.router.add_post("/v1/{operation}", call)
    return app


async def _bound(operations: Operations, name: str, arguments: dict[str, Any]) -> Any:
    operation: Operation | None = operations.get(name)
    if operation is None:
        raise GatewayError(f"operation {name!r}: expected one of {', '.join(sorted(operations))}")
    try:
        inspect.signature(operation).bind(**arguments)
    except TypeError as exc:
        raise GatewayError(f"operation {name}: {exc}") from exc
    return await operation(**arguments)


def _arguments(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        raise GatewayError(f"expected a JSON object of keyword arguments ({str(exc)[:200]})") from exc


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(listener.fileno(), _MODE)
        with address_of(path) as address:
            listener.bind(address)
        listener.listen()
    except BaseException:
        listener.close()
        raise
    listener.setblocking(False)
    return listener
