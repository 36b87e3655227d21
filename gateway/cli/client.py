"""How a command reaches the gateway: through the Unix socket if one runs, else on its files.

`connect` decides once; whoever calls sees the same operations either way (`gateway/ports/operations.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import aiohttp
import msgspec

from gateway.config import Settings
from gateway.errors import GatewayError
from gateway.ports.operations import Operations
from gateway.web.control import SOCKET_NAME, address_of, is_answering

_CONNECT_TIMEOUT_S: Final = 5.0


class OperationFailed(GatewayError):
    """A running gateway refused or failed; the message is its own.

    Attributes:
        error: Name of the error's class there.
    """

    def __init__(self, error: str, message: str) -> None:
        super().__init__(message)
        self.error = error


@dataclass(frozen=True, slots=True)
class Connection:
    """A way to call operations.

    Attributes:
        is_live: Whether a running gateway answers; else its files are open.
    """

    is_live: bool
    _call: Callable[[str, dict[str, Any]], Awaitable[Any]]

    async def call(self, operation: str, /, **arguments: Any) -> Any:
        """Call an operation.

        Raises:
            GatewayError: What the operation raised, or the gateway went away.
            ProtocolError: What the operation raised, on the files of a stopped gateway.
        """
        return await self._call(operation, arguments)


@contextlib.asynccontextmanager
async def connect(settings: Settings) -> AsyncIterator[Connection]:
    """Reach the gateway of a configuration.

    Raises:
        GatewayError: Its files cannot be opened.
    """
    path = settings.state / SOCKET_NAME
    if is_answering(path):
        with address_of(path) as address:
            async with _session(address) as session:
                yield Connection(True, lambda name, arguments: _remote(session, name, arguments))
    else:
        from gateway.core import open_offline  # noqa: PLC0415  # the whole gateway: only where it is needed

        async with open_offline(settings) as operations:
            yield Connection(False, lambda name, arguments: _local(operations, name, arguments))


async def call(settings: Settings, operation: str, /, **arguments: Any) -> Any:
    """Call one operation.

    Raises:
        GatewayError, ProtocolError: As `Connection.call`.
    """
    async with connect(settings) as connection:
        return await connection.call(operation, **arguments)


def run(settings: Settings, operation: str, /, **arguments: Any) -> Any:
    """Call one operation, from a command."""
    return asyncio.run(call(settings, operation, **arguments))


def _session(address: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.UnixConnector(address),
        timeout=aiohttp.ClientTimeout(total=None, connect=_CONNECT_TIMEOUT_S),  # an operation may wait for events
        trust_env=False,
    )


async def _remote(session: aiohttp.ClientSession, name: str, arguments: dict[str, Any]) -> Any:
    try:
        async with session.post(f"http://gateway/v1/{name}", data=msgspec.json.encode(arguments)) as response:
            status, body = response.status, await response.read()
    except (aiohttp.ClientError, TimeoutError, OSError) as exc:
        raise GatewayError(f"the running gateway went away during {name} ({str(exc) or type(exc).__name__})") from exc
    value = msgspec.json.decode(body)
    if status == HTTPStatus.OK:
        return value
    raise OperationFailed(value["error"], value["message"])


async def _local(operations: Operations, name: str, arguments: dict[str, Any]) -> Any:
    return await operations[name](**arguments)
