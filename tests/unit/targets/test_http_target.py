"""gateway.targets.http against a real server: binding, signature, verdicts."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import re
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from aiohttp import web

from edge_protocol.events import Event, Limits, decode_event, encode_event
from gateway.errors import ConfigError
from gateway.ports.target import Delivered, Deliverer, Down, Failed, Refused, TargetConfig
from gateway.targets import open_target, schemes
from gateway.targets.http import encode_value, parse_retry_after, signature_headers, verdict_of

EVENT = Event(
    id="e-1",
    source="/devices/cart-7",
    type="order_placed",
    time="2026-11-23T09:30:00Z",
    subject="Euro € 😀",
    payload=b'{"cart": 7}',
    extensions={"stream": "s", "sequence": "12", "backlog": True, "priority": 3},
)


class Service:
    """A server that keeps requests and answers as told."""

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.peers: set[Any] = set()
        self.answer: Callable[[web.Request], Awaitable[web.StreamResponse]] = self.accept
        self.url = ""

    @staticmethod
    async def accept(_: web.Request) -> web.StreamResponse:
        return web.Response(status=204)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((dict(request.headers), await request.read()))
        assert request.transport is not None
        self.peers.add(request.transport.get_extra_info("peername"))
        return await self.answer(request)


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    service = Service()
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", service.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    service.url = f"http://127.0.0.1:{runner.addresses[0][1]}/event_handler/order_placed"
    yield service
    await runner.cleanup()


@pytest.fixture
async def opened() -> AsyncIterator[Callable[..., Awaitable[Deliverer]]]:
    targets: list[Deliverer] = []

    async def open_one(url: str, **how: Any) -> Deliverer:
        targets.append(await open_target(TargetConfig(handler="orders", url=urlsplit(url), **how)))
        return targets[-1]

    yield open_one
    for target in targets:
        await target.aclose()


async def test_binary_mode(service: Service, opened: Any) -> None:
    """Attributes are ce- headers, percent-encoded as the binding says; data is the body, verbatim."""
    target = await opened(service.url, headers={"X-Shop": "north"})
    assert await target.deliver(EVENT, key="/devices/cart-7#e-1", attempt=1) == Delivered()
    headers, body = service.requests[0]
    told = {name.lower(): value for name, value in headers.items()}
    assert body == b'{"cart": 7}'
    assert {name: value for name, value in told.items() if name.startswith("ce-")} == {
        "ce-specversion": "1.0",
        "ce-id": "e-1",
        "ce-source": "/devices/cart-7",
        "ce-type": "order_placed",
        "ce-time": "2026-11-23T09:30:00Z",
        "ce-subject": "Euro%20%E2%82%AC%20%F0%9F%98%80",
        "ce-stream": "s",
        "ce-sequence": "12",
        "ce-backlog": "true",
        "ce-priority": "3",
    }
    assert told["content-type"] == "application/json"
    assert told["idempotency-key"] == "/devices/cart-7#e-1"
    assert told["x-shop"] == "north"
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", told["traceparent"])
    assert not [name for name in told if name.startswith("webhook-")]


async def test_content_type_and_trace_of_the_event(service: Service, opened: Any) -> None:
    """A content type and a trace that the producer gave are passed on; other bytes than JSON go as they are."""
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    event = Event(
        id="1",
        source="/s",
        type="t",
        datacontenttype="image/png",
        payload=b"\x89PNG",
        extensions={"traceparent": parent},
    )
    target = await opened(service.url)
    await target.deliver(event, key="k", attempt=1)
    headers, body = service.requests[0]
    assert (headers["Content-Type"], body, headers["traceparent"]) == ("image/png", b"\x89PNG", parent)


TRACED = Event(
    id="e-2",
    source="/devices/cart-7",
    type="photo_taken",
    datacontenttype="image/png",
    payload=b"\x89PNG",
    extensions={"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
)


async def test_batched_mode(service: Service, opened: Any) -> None:
    """Several events are a JSON array in order, each whole with its own trace; the request has key, trace, headers."""
    target = await opened(service.url, batch=2, secret="s3cret", headers={"X-Shop": "north"})
    texts = [encode_event(EVENT), encode_event(TRACED)]
    assert await target.deliver_batch(texts, key="batch:k") == Delivered()
    headers, body = service.requests[0]
    first, second = json.loads(body)
    assert decode_event(json.dumps(second).encode(), limits=Limits(), source=TRACED.source) == TRACED
    assert first == {
        "specversion": "1.0",
        "id": "e-1",
        "source": "/devices/cart-7",
        "type": "order_placed",
        "time": "2026-11-23T09:30:00Z",
        "subject": "Euro € 😀",
        "stream": "s",
        "sequence": "12",
        "backlog": True,
        "priority": 3,
        "data": {"cart": 7},
    }
    assert headers["Content-Type"] == "application/cloudevents-batch+json"
    assert (headers["Idempotency-Key"], headers["X-Shop"], headers["webhook-id"]) == ("batch:k", "north", "batch:k")
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", headers["traceparent"])
    assert headers["traceparent"] != TRACED.extensions["traceparent"]
    assert not [name for name in headers if name.lower().startswith("ce-")]
    signed = signature_headers(b"s3cret", "batch:k", int(headers["webhook-timestamp"]), body)
    assert headers["webhook-signature"] == signed["webhook-signature"]


async def test_single_event_in_batched_mode(service: Service, opened: Any) -> None:
    """A handler with batches gets an array of one too, under the event's own key and trace: one form to read."""
    target = await opened(service.url, batch=2)
    assert await target.deliver(TRACED, key="/devices/cart-7#e-2", attempt=1) == Delivered()
    headers, body = service.requests[0]
    assert body == b"[" + encode_event(TRACED) + b"]"
    assert headers["Content-Type"] == "application/cloudevents-batch+json"
    assert headers["Idempotency-Key"] == "/devices/cart-7#e-2"
    assert headers["traceparent"] == TRACED.extensions["traceparent"]


@pytest.mark.parametrize(
    ("secret", "key"), [("s3cret", b"s3cret"), ("whsec_" + base64.b64encode(b"raw").decode(), b"raw")]
)
async def test_signature(service: Service, opened: Any, secret: str, key: bytes) -> None:
    """With a secret each request is signed as Standard Webhooks says, under the idempotency key as its id."""
    target = await opened(service.url, secret=secret)
    await target.deliver(EVENT, key="k-1", attempt=1)
    headers, body = service.requests[0]
    stamp = headers["webhook-timestamp"]
    assert headers["webhook-id"] == "k-1"
    assert abs(int(stamp) - time.time()) < 60
    digest = hmac.new(key, b"k-1." + stamp.encode() + b"." + body, hashlib.sha256).digest()
    assert headers["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"


def test_signature_vector() -> None:
    """The example of the Standard Webhooks libraries verifies."""
    headers = signature_headers(
        base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (200, Delivered()),
        (299, Delivered()),
        (301, Refused("HTTP 301: why ?")),
        (400, Refused("HTTP 400: why ?")),
        (404, Refused("HTTP 404: why ?")),
        (408, Failed("HTTP 408: why ?", 7.0)),
        (429, Down("HTTP 429", 7.0)),
        (500, Failed("HTTP 500: why ?", 7.0)),
        (503, Down("HTTP 503", 7.0)),
        (599, Failed("HTTP 599: why ?", 7.0)),
    ],
)
async def test_verdicts(service: Service, opened: Any, status: int, verdict: object) -> None:
    """Each status means what interfaces.md says, with what the service said; redirects are not followed."""

    async def answer(_: web.Request) -> web.StreamResponse:
        headers = {"Retry-After": "7", "Location": "/elsewhere"}
        return web.Response(status=status, body=b"why\n?", headers=headers)

    service.answer = answer
    target = await opened(service.url)
    assert await target.deliver(EVENT, key="k", attempt=1) == verdict
    assert len(service.requests) == 1


def test_excerpt_is_bounded_and_printable() -> None:
    """What a refusal quotes has at most 256 printable characters."""
    verdict = verdict_of(422, {}, b"\x1b[31m" + b"x" * 9999 + b"\xff", now_s=0)
    assert isinstance(verdict, Refused)
    assert verdict.cause == "HTTP 422: [31m" + "x" * 252
    assert verdict_of(422, {}, b"", now_s=0) == Refused("HTTP 422")


@pytest.mark.parametrize(
    ("value", "delay_s"),
    [
        (None, None),
        ("120", 120.0),
        ("0", 0.0),
        ("-1", None),
        ("soon", None),
        ("²", None),
        ("9" * 400, 9999999999.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 60.0),
        ("Wed, 21 Oct 2015 07:00:00 GMT", 0.0),
    ],
)
def test_retry_after(value: str | None, delay_s: float | None) -> None:
    """Seconds or a date; what is neither counts as absent."""
    assert parse_retry_after(value, now_s=1445412420.0) == delay_s


async def test_nobody_listens(opened: Any) -> None:
    """A refused connection means the target is down."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        target = await opened(f"http://127.0.0.1:{taken.getsockname()[1]}/")
        verdict = await target.deliver(EVENT, key="k", attempt=1)
    assert verdict == Down("cannot connect: Connection refused")


async def test_a_name_that_is_none(opened: Any) -> None:
    """A host that cannot be found means the target is down; the cause is the resolver's."""
    verdict = await (await opened("http://nobody.invalid/")).deliver(EVENT, key="k", attempt=1)
    assert isinstance(verdict, Down)
    assert "nown" in verdict.cause or "resolution" in verdict.cause  # unknown, not known, or no resolver here
    assert "[Errno" not in verdict.cause


async def test_silent_host_means_down(opened: Any) -> None:
    """A host that does not even take the connection is down; the event did not fail."""
    with socket.socket() as full, socket.socket() as one, socket.socket() as two:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for client in (one, two):  # they fill the queue: the kernel ignores who comes next
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        target = await opened(f"http://127.0.0.1:{full.getsockname()[1]}/", timeout_s=0.4)
        assert await target.deliver(EVENT, key="k", attempt=1) == Down("cannot connect: timed out")


async def test_idle_connection_closed_by_the_service(service: Service, opened: Any) -> None:
    """A connection that the service closed meanwhile is no outage: the request goes again at once, under its key."""
    target = await opened(service.url, concurrency=1)

    async def answer(request: web.Request) -> web.StreamResponse:
        if len(service.requests) == 2:
            assert request.transport is not None
            request.transport.abort()
        return web.Response()

    service.answer = answer
    assert await target.deliver(EVENT, key="k", attempt=1) == Delivered()
    assert await target.deliver(EVENT, key="k", attempt=1) == Delivered()
    assert len(service.requests) == 3


async def test_slow_answer_is_a_failure(service: Service, opened: Any) -> None:
    """A request that was taken but not answered in time failed."""
    gone = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"a")
        await gone.wait()
        return response

    service.answer = answer
    target = await opened(service.url, timeout_s=0.1)
    assert await target.deliver(EVENT, key="k", attempt=1) == Failed("timed out after 0.1 s")
    gone.set()


async def test_dropped_connection_means_down(service: Service, opened: Any) -> None:
    """A server that dies under a request is down."""

    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    service.answer = answer
    target = await opened(service.url)
    assert isinstance(await target.deliver(EVENT, key="k", attempt=1), Down)


async def test_connections_are_reused_and_answers_bounded(service: Service, opened: Any) -> None:
    """Deliveries share a connection; an endless answer is not read to its end."""
    target = await opened(service.url, concurrency=1)
    for _ in range(5):
        assert await target.deliver(EVENT, key="k", attempt=1) == Delivered()
    assert len(service.peers) == 1

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=400)
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 65536)
        except (ConnectionError, RuntimeError):
            return response

    service.answer = answer
    verdict = await target.deliver(EVENT, key="k", attempt=1)
    assert verdict == Refused("HTTP 400: " + "x" * 256)


def test_encoding_of_header_values() -> None:
    """Printable ASCII stands, but for space, quote and percent; decoding gives the text back."""
    assert encode_value("/devices/a-b_c.d~!#$&'()*+,;=:@[]{}|^`<>?\\") == "/devices/a-b_c.d~!#$&'()*+,;=:@[]{}|^`<>?\\"
    for text in ("a b", 'say "x"', "100%", "Ünïcode €😀"):
        assert unquote(encode_value(text)) == text
        assert re.fullmatch(r"[!#-~]+", encode_value(text))


async def test_unknown_scheme_names_those_there_are(opened: Any) -> None:
    """A URL nobody serves is a configuration error that lists the schemes."""
    with pytest.raises(
        ConfigError, match="expected a URL with one of the schemes http, https, python, found 'gopher://x'"
    ):
        await opened("gopher://x")
    assert schemes() == ("http", "https", "python")


async def test_bad_urls_and_secrets_are_told(opened: Any) -> None:
    """A URL without a host and a secret that is not base64 are configuration errors; the secret is not shown."""
    with pytest.raises(
        ConfigError, match=r"handlers.orders.url: expected http://HOST\[:PORT\]/PATH, found 'http:///x'"
    ):
        await opened("http:///x")
    with pytest.raises(
        ConfigError, match=r"handlers.orders.secret: expected whsec_ and standard base64, found 'whsec_\*\*\*'"
    ):
        await opened("http://h/", secret="whsec_?")
