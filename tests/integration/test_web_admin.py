"""The admin listener over a real socket."""

import json

import aiohttp
import pytest

from edge_protocol.errors import EventRejected, Rejected, TokenRejected
from edge_protocol.events import Limits
from gateway.errors import BusFull
from gateway.web.admin import AdminApi, admin_app
from gateway.web.ingress import read_events
from gateway.web.metrics import Metrics
from gateway.web.server import HttpServer

EVENT = {"specversion": "1.0", "id": "a1", "type": "order_placed", "source": "/x", "data": {"n": 1}}
STRUCTURED = {"Content-Type": "application/cloudevents+json"}


class Bus:
    """A small honest bus: knows one token, keeps events in a list."""

    def __init__(self):
        self.events = []
        self.trouble = None
        self.checks = {"bus": "", "disk": ""}

    async def raise_events(self, *, token, body, content_type, headers):
        if token != b"good":
            raise TokenRejected("not-proven", "no valid key of this client proves the token")
        if self.trouble:
            raise self.trouble
        events = read_events(body, content_type=content_type, headers=headers, limits=Limits(), source="/services/s")
        self.events += events
        return [event.id for event in events]

    async def ready(self):
        return self.checks


@pytest.fixture
def bus():
    return Bus()


@pytest.fixture
async def client(bus):
    api = AdminApi(
        ready=bus.ready,
        metrics=Metrics(lambda: {"events_stored": len(bus.events)}).render,
        raise_events=bus.raise_events,
        key_set=lambda: "a.b.c",
        max_body_bytes=10_000,
    )
    server = await HttpServer.start(admin_app(api), "127.0.0.1", 0)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:
        yield session
    await server.aclose()
    await server.aclose()


async def post(client, body=EVENT, headers=None, token="good"):
    authorization = {"Authorization": f"Bearer {token}"} if token else {}
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with client.post(
        "/event_bus", data=data, headers={**STRUCTURED, **authorization, **(headers or {})}
    ) as answer:
        return answer.status, dict(answer.headers), await answer.json(content_type=None)


async def test_health_and_readiness(client, bus):
    """Alive while it answers; ready only while every check is fine, and it says which is not."""
    async with client.get("/healthz") as answer:
        assert answer.status == 200
    async with client.get("/readyz") as answer:
        assert (answer.status, await answer.json()) == (200, {"ready": True, "checks": {"bus": "ok", "disk": "ok"}})
    bus.checks["disk"] = "5 bytes free, 10 are the floor"
    async with client.get("/readyz") as answer:
        assert answer.status == 503
        assert (await answer.json())["checks"] == {"bus": "ok", "disk": "5 bytes free, 10 are the floor"}


async def test_metrics_are_prometheus_text(client):
    """They count what was stored."""
    await post(client)
    async with client.get("/metrics") as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        assert "lockgate_events_stored_total 1.0" in await answer.text()


async def test_the_key_set_is_public(client):
    """As on the device listener."""
    async with client.get("/.well-known/gateway-keys") as answer:
        assert (answer.content_type, await answer.text()) == ("application/jose", "a.b.c")


async def test_events_are_raised_in_every_mode(client, bus):
    """Structured, batched and binary mode answer with the ids."""
    assert (await post(client))[2] == {"ids": ["a1"]}
    batch = [{**EVENT, "id": "b1"}, {**EVENT, "id": "b2"}]
    assert (await post(client, batch, {"Content-Type": "application/cloudevents-batch+json"}))[2] == {
        "ids": ["b1", "b2"]
    }
    binary = {"Content-Type": "application/json", "ce-specversion": "1.0", "ce-id": "c1", "ce-type": "t"}
    status, _, answer = await post(client, b"[1]", binary)
    assert (status, answer) == (200, {"ids": ["c1"]})
    assert [(event.id, event.source) for event in bus.events] == [(n, "/services/s") for n in ("a1", "b1", "b2", "c1")]


@pytest.mark.parametrize(("token", "rule"), [(None, "no-token"), ("bad", "not-proven")])
async def test_who_does_not_prove_itself_gets_401(client, bus, token, rule):
    """The reason is told; nothing is stored."""
    status, headers, answer = await post(client, token=token)
    assert (status, answer["rule"], headers["Content-Type"]) == (401, rule, "application/problem+json")
    assert headers["WWW-Authenticate"].startswith("Bearer")
    assert not bus.events


async def test_a_malformed_event_gets_400_with_the_rule(client):
    """The rule and the detail name what is wrong."""
    status, _, answer = await post(client, {**EVENT, "type": "a b"})
    assert (status, answer["rule"], answer["title"]) == (400, "bad-type", "Bad Request")
    assert "expected dotted levels" in answer["detail"]


@pytest.mark.parametrize(
    ("trouble", "status"),
    [
        (Rejected("not-authorized", "type order_placed: no rule of role service allows it"), 403),
        (EventRejected("bad-time", "x"), 400),
        (BusFull("full", retry_after_s=30), 503),
    ],
)
async def test_refusals_of_the_bus_keep_their_meaning(client, bus, trouble, status):
    """403 for policy, 400 for the event, 503 with Retry-After for no room."""
    bus.trouble = trouble
    found, headers, _ = await post(client)
    assert found == status
    assert headers.get("Retry-After") == ("30" if status == 503 else None)


async def test_an_unforeseen_error_leaks_nothing(client, bus, capsys):
    """The peer learns that it happened, the log why; the next request is served; the token is in neither."""
    bus.trouble = RuntimeError("secret detail")
    status, headers, answer = await post(client)
    assert (status, answer["rule"], answer["detail"]) == (500, "internal-error", "the gateway's log says more")
    assert headers["Server"] == "lockgate"
    bus.trouble = None
    assert (await post(client))[0] == 200
    written = "".join(capsys.readouterr())
    assert "secret detail" in written
    assert "Bearer" not in written


@pytest.mark.parametrize(("size", "status"), [(9_999, 400), (10_000, 400), (10_001, 413)])
async def test_bodies_are_bounded(client, size, status):
    """Up to the limit a body is read (and refused as no event), beyond it is not."""
    assert (await post(client, b" " * size))[0] == status


async def test_unknown_paths_and_methods_are_problems_too(client):
    """404 and 405 in the same form."""
    async with client.get("/nothing") as answer:
        assert (answer.status, (await answer.json(content_type=None))["detail"]) == (404, "there is no /nothing")
    async with client.get("/event_bus") as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "POST")
        assert (await answer.json(content_type=None))["detail"] == "/event_bus takes POST, not GET"
    async with client.post("/enroll") as answer:
        assert answer.status == 404
