"""Errors over HTTP: every refusal is `application/problem+json` (RFC 9457) with the rule that was broken.

Owns the one table from error to status. Peers get the rule and the detail; what nobody foresaw goes to the log, and the
peer learns only that it happened.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec
import structlog
from aiohttp import hdrs, web

from edge_protocol.errors import ProtocolError, Rejected, TokenRejected
from gateway.errors import Conflict, GatewayError, NotFound, Unavailable

log = structlog.get_logger()

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

PROBLEM_TYPE: Final = "application/problem+json"
BODY_TIMEOUT_S: Final = 30.0
_RETRY_AFTER_S: Final = 5.0  # where the error does not say: about the time a storage takes to be opened again
_BY_CLASS: Final[tuple[tuple[type[Exception], int], ...]] = (
    (TokenRejected, 401),
    (ProtocolError, 400),
    (NotFound, 404),
    (Conflict, 409),
    (Unavailable, 503),
    (GatewayError, 400),
)
_BY_RULE: Final = {
    "not-authorized": 403,
    "code-unknown": 403,
    "code-expired": 403,
    "code-used": 403,
    "id-not-allowed": 403,
    "already-registered": 409,
    "code-busy": 409,
    "unsupported-content-type": 415,
    "too-many-attempts": 429,
}
_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def status_of(exc: Exception) -> int:
    """Tell the HTTP status of an error of ours (500 for any other)."""
    if isinstance(exc, Rejected) and exc.rule in _BY_RULE:
        return _BY_RULE[exc.rule]
    return next((status for kind, status in _BY_CLASS if isinstance(exc, kind)), 500)


def problem(status: int, detail: str, rule: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """Build a refusal.

    Args:
        status: 400 to 599.
        detail: A sentence for the engineer who reads it.
        rule: Short stable name of what was broken.
        headers: Added to the response.
    """
    body = {"title": HTTPStatus(status).phrase, "status": status, "detail": detail, "rule": rule}
    return web.Response(status=status, body=msgspec.json.encode(body), content_type=PROBLEM_TYPE, headers=headers)


def problem_of(exc: Exception) -> web.Response:
    """Build the refusal that an error of ours means."""
    status = status_of(exc)
    rule, detail = (exc.rule, exc.detail) if isinstance(exc, Rejected) else (_kebab(type(exc).__name__), str(exc))
    return problem(status, detail, rule, _headers(status, exc))


def json_response(value: Any, status: int = 200) -> web.Response:
    """Answer with JSON."""
    return web.Response(status=status, body=msgspec.json.encode(value), content_type="application/json")


async def read_body(request: web.Request) -> bytes:
    """Read a request's body, at most the application's `client_max_size`, within `BODY_TIMEOUT_S`.

    Raises:
        HTTPUnsupportedMediaType: It is compressed: limits are on what travels, and nothing is inflated.
        HTTPRequestEntityTooLarge: It is longer.
        HTTPRequestTimeout: It did not come in time.
    """
    encoding = request.headers.get(hdrs.CONTENT_ENCODING, "identity")
    if encoding.lower() != "identity":
        raise web.HTTPUnsupportedMediaType(text=f"Content-Encoding {encoding[:40]!r}: expected none")
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await request.read()
    except TimeoutError as exc:
        raise web.HTTPRequestTimeout(text=f"the body did not come within {BODY_TIMEOUT_S:.0f} s") from exc


@web.middleware
async def answer_problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into a problem; tracebacks go to the log only."""
    try:
        return await handler(request)
    except (GatewayError, ProtocolError) as exc:
        return problem_of(exc)
    except web.HTTPException as exc:
        return _foreign(exc, request)
    except Exception:  # the top of a request: whatever it is, the next request must be served
        log.exception("request_failed", method=request.method, path=request.path)
        return problem(500, "the gateway's log says more", "internal-error")


def _foreign(exc: web.HTTPException, request: web.Request) -> web.StreamResponse:
    if exc.status < 400:
        raise exc
    rule = _kebab(type(exc).__name__.removeprefix("HTTP"))
    detail = exc.text or ""
    if isinstance(exc, web.HTTPNotFound):
        detail = f"there is no {request.path}"
    elif isinstance(exc, web.HTTPMethodNotAllowed):
        detail = f"{request.path} takes {', '.join(sorted(exc.allowed_methods))}, not {exc.method}"
    allow = {"Allow": exc.headers["Allow"]} if "Allow" in exc.headers else None
    return problem(exc.status, detail, rule, allow)


def _headers(status: int, exc: Exception) -> dict[str, str]:
    if status == 401:
        return {"WWW-Authenticate": 'Bearer error="invalid_token"'}  # RFC 6750, section 3
    if status in (429, 503):
        return {"Retry-After": str(math.ceil(getattr(exc, "retry_after_s", _RETRY_AFTER_S)))}
    return {}


def _kebab(name: str) -> str:
    return _WORD_START.sub("-", name).lower()
