"""Targets `http://` and `https://`: CloudEvents HTTP protocol binding 1.0.2.

Binary mode, one request an event; a handler with `batch` above 1 gets batched mode always, a JSON array even of one
event, so that a service needs to read one form only. Every request carries `Idempotency-Key`, W3C `traceparent`, and, where a secret is set, a Standard Webhooks signature.
Answers: 2xx is delivered; 429 and 503 mean down; 408 and 5xx failed; anything else refused. Redirects are not followed:
a service that moved is a matter for its operator.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
import secrets
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import quote

import aiohttp
from yarl import URL

from edge_protocol.events import BATCH_TYPE, JSON_TYPE, Event, encode_batch, encode_event
from gateway.errors import ConfigError
from gateway.ports.target import Delivered, Deliverer, Down, Failed, Refused, Target, TargetConfig, Verdict

_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
# Section 3.1.3.2: what is not printable ASCII, space, double quote and percent are percent-encoded; all else stands.
_SAFE: Final = "".join(chr(c) for c in range(0x21, 0x7F) if chr(c) not in '"%')
_UNSAFE: Final = re.compile(r"[^!#$&-~]")
_EXCERPT_CHARS: Final = 256
_MAX_BODY_BYTES: Final = 64 * 1024  # read to reuse the connection; a longer answer costs the connection instead
_CONNECT_ERRORS: Final = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError)


class HttpDeliverer:
    """Posts events to one URL, over connections that are reused."""

    def __init__(self, config: TargetConfig) -> None:
        self._url = URL(config.url.geturl())
        self._timeout_s = config.timeout_s
        self._key = _signing_key(config)
        self._headers = dict(config.headers)
        self._batches = config.batch > 1
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=config.concurrency),
            # Connecting ends well before the whole: a host that is silent is down, it did not fail this event.
            timeout=aiohttp.ClientTimeout(total=config.timeout_s, sock_connect=config.timeout_s / 2),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,  # an answer is only quoted: never inflate what a service sends
        )

    async def deliver(self, event: Event, *, key: str, attempt: int) -> Verdict:  # noqa: ARG002  # the binding has no place for it
        """Post one event; see the module for what answers mean."""
        if self._batches:
            return await self._send(encode_batch((encode_event(event),)), batch_headers(event), key)
        return await self._send(event.payload, event_headers(event), key)

    async def deliver_batch(self, events: Sequence[bytes], *, key: str) -> Verdict:
        """Post several events (section 3.3 of the binding); they keep their own `traceparent` attributes."""
        return await self._send(encode_batch(events), batch_headers(), key)

    async def _send(self, body: bytes, headers: dict[str, str], key: str) -> Verdict:
        headers |= {"Idempotency-Key": key} | self._headers
        if self._key is not None:
            headers |= signature_headers(self._key, key, int(time.time()), body)
        try:
            return await self._post(body, headers)
        except (aiohttp.ServerDisconnectedError, ConnectionResetError):
            return await self._again(body, headers)

    async def _again(self, body: bytes, headers: dict[str, str]) -> Verdict:
        """Post once more: a service may close an idle connection just when it is used again (RFC 9112, section 9.5)."""
        try:
            return await self._post(body, headers)
        except (aiohttp.ServerDisconnectedError, ConnectionResetError) as exc:
            return Down(f"connection lost: {_reason(exc)}")

    async def _post(self, body: bytes, headers: dict[str, str]) -> Verdict:
        try:
            async with self._session.post(self._url, data=body, headers=headers, allow_redirects=False) as response:
                answer = await _bounded_body(response)
                return verdict_of(response.status, response.headers, answer, now_s=time.time())
        except (aiohttp.ServerDisconnectedError, ConnectionResetError):
            raise
        except aiohttp.ConnectionTimeoutError:
            return Down("cannot connect: timed out")
        except TimeoutError:
            return Failed(f"timed out after {self._timeout_s:g} s")
        except _CONNECT_ERRORS as exc:
            return Down(f"cannot connect: {_reason(exc)}")
        except aiohttp.ClientError as exc:
            return Failed(f"answered what is not HTTP: {type(exc).__name__}")
        except ValueError as exc:  # a header or URL that aiohttp will not send
            return Refused(f"cannot be sent over HTTP: {exc}")

    async def aclose(self) -> None:
        """Close all connections."""
        await self._session.close()


def event_headers(event: Event) -> dict[str, str]:
    """Write an event's attributes as headers (CloudEvents HTTP binding 1.0.2, section 3.1.3); data is the body."""
    headers = {
        "ce-specversion": "1.0",
        "ce-id": encode_value(event.id),
        "ce-source": encode_value(event.source),
        "ce-type": encode_value(event.type),
        "Content-Type": event.datacontenttype or JSON_TYPE,
    }
    for name in ("time", "subject", "dataschema"):
        if (value := getattr(event, name)) is not None:
            headers[f"ce-{name}"] = encode_value(value)
    for name, value in event.extensions.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        headers[f"ce-{name}"] = encode_value(text)
    headers["traceparent"] = _traceparent(event)
    return headers


def batch_headers(event: Event | None = None) -> dict[str, str]:
    """Write the headers of a JSON batch (CloudEvents HTTP binding 1.0.2, section 3.3).

    Args:
        event: The only one in it; None if there are several.
    """
    return {"Content-Type": BATCH_TYPE, "traceparent": _traceparent(event)}


def _traceparent(event: Event | None) -> str:
    """The one that the producer gave, else a new one: the service's trace begins at the gateway (W3C, section 3.2)."""
    parent = str(event.extensions.get("traceparent", "")) if event else ""
    valid = _TRACEPARENT.fullmatch(parent) is not None
    return parent if valid else f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


def encode_value(text: str) -> str:
    """Percent-encode a header value (CloudEvents HTTP binding 1.0.2, section 3.1.3.2)."""
    return text if _UNSAFE.search(text) is None else quote(text, safe=_SAFE)


def signature_headers(key: bytes, id_: str, timestamp_s: int, body: bytes) -> dict[str, str]:
    """Sign a request (Standard Webhooks 1.0.0): HMAC-SHA256 over `id.timestamp.body`.

    Args:
        key: Secret bytes.
        id_: The message's id: the idempotency key, since it must stay the same when the message is sent again.
        timestamp_s: Unix time of this attempt.
        body: As sent.
    """
    signed = f"{id_}.{timestamp_s}.".encode() + body
    signature = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    return {"webhook-id": id_, "webhook-timestamp": str(timestamp_s), "webhook-signature": f"v1,{signature}"}


def verdict_of(status: int, headers: Mapping[str, str], body: bytes, *, now_s: float) -> Verdict:
    """Tell what an answer means for the event.

    Args:
        status: Of the answer.
        headers: Of the answer; Retry-After is read.
        body: What was read of it; a refusal quotes its beginning.
        now_s: Unix time, for a Retry-After that is a date.
    """
    if 200 <= status < 300:
        return Delivered()
    retry_after_s = parse_retry_after(headers.get("Retry-After"), now_s=now_s)
    if status in {429, 503}:
        return Down(f"HTTP {status}", retry_after_s)
    if status == 408 or status >= 500:
        return Failed(_quoted(status, body), retry_after_s)
    return Refused(_quoted(status, body))


def parse_retry_after(value: str | None, *, now_s: float) -> float | None:
    """Read Retry-After (RFC 9110, section 10.2.3): seconds or an HTTP date; None if absent or malformed."""
    if value is None:
        return None
    if value.isascii() and value.isdecimal():
        return float(value[:10])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now_s)
    except (ValueError, OverflowError):
        return None


def _quoted(status: int, body: bytes) -> str:
    text = body[: 4 * _EXCERPT_CHARS].decode(errors="replace")
    printable = "".join(c if c.isprintable() else " " for c in text).strip()[:_EXCERPT_CHARS]
    return f"HTTP {status}: {printable}" if printable else f"HTTP {status}"


async def _bounded_body(response: aiohttp.ClientResponse) -> bytes:
    body = b""
    while len(body) < _MAX_BODY_BYTES and (part := await response.content.read(_MAX_BODY_BYTES - len(body))):
        body += part
    if len(body) >= _MAX_BODY_BYTES:
        response.close()
    return body


def _reason(exc: BaseException) -> str:
    """What an operator can act on; aiohttp repeats the address and shows addresses and objects of its own."""
    cause = getattr(exc, "certificate_error", None) or getattr(exc, "os_error", exc)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"the certificate is not trusted: {cause.verify_message}"
    if isinstance(cause, OSError) and not isinstance(cause, (socket.gaierror, ssl.SSLError)) and cause.errno:
        return os.strerror(cause.errno)
    text = (cause.strerror if isinstance(cause, OSError) else None) or str(cause)
    return text[:_EXCERPT_CHARS] or type(exc).__name__


def _signing_key(config: TargetConfig) -> bytes | None:
    if not config.secret:
        return None
    if not config.secret.startswith("whsec_"):
        return config.secret.encode()
    try:
        return base64.b64decode(config.secret.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError) as exc:
        raise ConfigError(f"handlers.{config.handler}.secret", "whsec_***", "whsec_ and standard base64") from exc


async def _open(config: TargetConfig) -> Deliverer:
    if not config.url.hostname:
        raise ConfigError(f"handlers.{config.handler}.url", config.url.geturl(), "http://HOST[:PORT]/PATH")
    return HttpDeliverer(config)


target = Target(schemes=("http", "https"), open=_open)
