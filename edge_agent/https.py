"""Small HTTPS requests to the gateway's device-facing listener: enrolment and the key set."""

from __future__ import annotations

import ssl
from http.client import HTTPException, HTTPSConnection
from typing import Final
from urllib.parse import urlsplit

from edge_agent.errors import AgentError, UsageError, cause_of

TIMEOUT_S: Final = 10.0
MAX_BODY_BYTES: Final = 256 * 1024
DEFAULT_PORT: Final = 8443


def parse_url(url: str) -> tuple[str, int]:
    """Read `https://HOST[:PORT]`.

    Raises:
        UsageError: It is something else.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or DEFAULT_PORT
    except ValueError as exc:
        raise UsageError(f"URL {url!r}: {exc}") from exc
    if parts.scheme != "https" or not parts.hostname or parts.path.strip("/") or parts.query or parts.username:
        raise UsageError(f"URL {url!r}: expected https://HOST:{DEFAULT_PORT}")
    return parts.hostname, port


def fetch(url: str, path: str, context: ssl.SSLContext, *, body: bytes | None = None) -> tuple[int, bytes]:
    """Request a path: POST JSON if there is a body, else GET.

    Args:
        url: `https://HOST:PORT`.
        path: Begins with a slash.
        context: Whom to trust.
        body: JSON text.

    Returns:
        Status and body.

    Raises:
        AgentError: The gateway cannot be reached, is not trusted, or does not speak HTTP.
    """
    host, port = parse_url(url)
    connection = HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context)
    try:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        connection.request("GET" if body is None else "POST", path, body=body, headers=headers)
        response = connection.getresponse()
        data = response.read(MAX_BODY_BYTES + 1)
    except (OSError, HTTPException) as exc:
        raise AgentError(f"{url}{path}: {cause_of(exc)}") from exc
    finally:
        connection.close()
    if len(data) > MAX_BODY_BYTES:
        raise AgentError(f"{url}{path}: more than {MAX_BODY_BYTES} bytes; expected a short JSON answer")
    return response.status, data
