"""The device listener: enrolment, the CA's certificate, the key set, the time (wire protocol, section 8); never admin.

`[http] device_listen`, TLS with the gateway's server certificate, reachable by anybody: bodies are small, and no path of
the admin listener but the key set stands here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec
from aiohttp import web

from edge_protocol.errors import Rejected
from edge_protocol.times import rfc3339
from gateway.web.admin import add_key_set
from gateway.web.problems import answer_problems, json_response, read_body

MAX_BODY_BYTES: Final = 16 * 1024  # an RSA key as JWK and its proof take 3 KiB


class Enrol(Protocol):
    """Exchanges a one-time code for a registration."""

    async def __call__(self, request: Mapping[str, Any], *, peer: str) -> Mapping[str, Any]:
        """Register the key that the request proves.

        Args:
            request: `{code, id, jwk, proof}`, nothing of it checked.
            peer: Address of the peer, which attempts are counted by.

        Returns:
            `{id, aud, ca, signing_key, key_set, mqtt}`.

        Raises:
            Rejected: The code, the id, the key or the proof; status by the rule (`problems`).
        """
        ...


@dataclass(frozen=True, kw_only=True)
class DeviceApi:
    """What the device listener calls.

    Attributes:
        enrol: Exchanges a one-time code for a registration.
        ca: The CA's certificate, PEM.
        key_set: The gateway's current key set, a compact JWS.
        clock: Unix time in seconds.
    """

    enrol: Enrol
    ca: Callable[[], bytes]
    key_set: Callable[[], str]
    clock: Callable[[], float]


def device_app(api: DeviceApi) -> web.Application:
    """Build the application of `[http] device_listen`."""
    app = web.Application(middlewares=[answer_problems], client_max_size=MAX_BODY_BYTES)

    async def enrol(request: web.Request) -> web.Response:
        wanted = _object(await read_body(request))
        return json_response(await api.enrol(wanted, peer=request.remote or ""))

    async def ca(_request: web.Request) -> web.Response:
        return web.Response(body=api.ca(), content_type="application/x-pem-file")

    async def time(_request: web.Request) -> web.Response:
        return json_response({"time": rfc3339(api.clock())})

    app.router.add_post("/enroll", enrol)
    app.router.add_get("/enroll/ca", ca)
    app.router.add_get("/time", time)
    add_key_set(app, api.key_set)
    return app


def _object(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        raise Rejected("malformed", f"expected a JSON object {{code, id, jwk, proof}} ({str(exc)[:200]})") from exc
