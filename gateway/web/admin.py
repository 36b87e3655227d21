"""The admin listener: health, readiness, metrics, and the event bus for cloud services (`POST /event_bus`).

`[http] listen`, loopback by default. Whoever raises events proves itself with a bearer token of the gateway; the rest
only reads. The callables of `AdminApi` do the work.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from aiohttp import hdrs, web

from edge_protocol.errors import TokenRejected
from gateway.web.ingress import event_headers
from gateway.web.problems import answer_problems, json_response, read_body

KEY_SET_PATH: Final = "/.well-known/gateway-keys"
KEY_SET_TYPE: Final = "application/jose"  # a compact JWS (RFC 7515, section 9.2.1)
MAX_BODY_BYTES: Final = 8 << 20  # as much as one envelope may hold, inflated (wire protocol, section 4)


class RaiseEvents(Protocol):
    """Stores what a cloud service raises."""

    async def __call__(
        self, *, token: bytes, body: bytes, content_type: str | None, headers: Mapping[str, str]
    ) -> list[str]:
        """Prove the token, read the events (`gateway.web.ingress.read_events`), store them.

        Args:
            token: The bearer token, not proven.
            body: The request's body.
            content_type: Its Content-Type header, or None.
            headers: Its `ce-` headers, by lower-case name.

        Returns:
            The events' ids, in order; they are durable.

        Raises:
            TokenRejected: Answered 401.
            Rejected: Answered 400, or 403 for the rule `not-authorized`.
            BusUnavailable, BusFull: Answered 503 with Retry-After.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class AdminApi:
    """What the admin listener calls.

    Attributes:
        ready: Check by check, "" for fine or what is wrong; any wrong one means not ready.
        metrics: Prometheus text and its content type.
        raise_events: Stores what a service raises.
        key_set: The gateway's current key set, a compact JWS.
        max_body_bytes: Longest body of `POST /event_bus`.
    """

    ready: Callable[[], Awaitable[Mapping[str, str]]]
    metrics: Callable[[], tuple[bytes, str]]
    raise_events: RaiseEvents
    key_set: Callable[[], str]
    max_body_bytes: int = MAX_BODY_BYTES


def admin_app(api: AdminApi) -> web.Application:
    """Build the application of `[http] listen`."""
    app = web.Application(middlewares=[answer_problems], client_max_size=api.max_body_bytes)

    async def healthz(_request: web.Request) -> web.Response:
        return json_response({"alive": True})

    async def readyz(_request: web.Request) -> web.Response:
        checks = await api.ready()
        is_ready = not any(checks.values())
        shown = {name: wrong or "ok" for name, wrong in checks.items()}
        return json_response({"ready": is_ready, "checks": shown}, 200 if is_ready else 503)

    async def metrics(_request: web.Request) -> web.Response:
        text, content_type = api.metrics()
        return web.Response(body=text, headers={hdrs.CONTENT_TYPE: content_type})

    async def event_bus(request: web.Request) -> web.Response:
        token = bearer_token(request.headers.get(hdrs.AUTHORIZATION))
        body = await read_body(request)
        ids = await api.raise_events(
            token=token,
            body=body,
            content_type=request.headers.get(hdrs.CONTENT_TYPE),
            headers=event_headers(request.headers.items()),
        )
        return json_response({"ids": ids})

    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    app.router.add_post("/event_bus", event_bus)
    add_key_set(app, api.key_set)
    return app


def add_key_set(app: web.Application, key_set: Callable[[], str]) -> None:
    """Serve the gateway's key set, on either listener."""

    async def gateway_keys(_request: web.Request) -> web.Response:
        return web.Response(body=key_set().encode(), content_type=KEY_SET_TYPE)

    app.router.add_get(KEY_SET_PATH, gateway_keys)


def bearer_token(header: str | None) -> bytes:
    """Take the token out of an Authorization header (RFC 6750, section 2.1).

    Raises:
        TokenRejected: There is none.
    """
    scheme, _, token = (header or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise TokenRejected("no-token", "expected the header Authorization: Bearer TOKEN (`gateway token create`)")
    return token.strip().encode(errors="replace")
