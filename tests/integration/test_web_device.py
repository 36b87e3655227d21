"""The device listener over real TLS."""

import ssl
from datetime import UTC, datetime

import aiohttp
import pytest

from edge_protocol.errors import Rejected
from gateway.cli.certificates import write_certificates
from gateway.web.device import DeviceApi, device_app
from gateway.web.server import HttpServer

FINE = {"code": "c", "id": "cart-7", "jwk": {"kty": "OKP"}, "proof": "a.b.c"}


async def enrol(request, *, peer):
    if request.get("code") != "c":
        raise Rejected("code-unknown", "no such code; ask for a new one")
    return {"id": request["id"], "aud": "lockgate-test", "peer": peer}


@pytest.fixture
async def client(tmp_path):
    write_certificates(tmp_path, [], now=datetime.now(UTC))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(tmp_path / "server.pem", tmp_path / "server-key.pem")
    ca = tmp_path / "ca.pem"
    api = DeviceApi(enrol=enrol, ca=ca.read_bytes, key_set=lambda: "a.b.c", clock=lambda: 1_700_000_000.25)
    server = await HttpServer.start(device_app(api), "127.0.0.1", 0, tls=tls)
    trust = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=ca))
    async with aiohttp.ClientSession(f"https://127.0.0.1:{server.port}", connector=trust) as session:
        yield session
    await server.aclose()


async def test_enrolment_hands_over_what_the_body_says(client):
    """The answer is what the registry made of it."""
    async with client.post("/enroll", json=FINE) as answer:
        assert answer.status == 200
        assert await answer.json() == {"id": "cart-7", "aud": "lockgate-test", "peer": "127.0.0.1"}


async def test_a_refused_code_is_a_problem(client):
    """403 with the rule."""
    async with client.post("/enroll", json={**FINE, "code": "x"}) as answer:
        body = await answer.json(content_type=None)
        assert (answer.status, answer.content_type) == (403, "application/problem+json")
        assert (body["rule"], body["detail"]) == ("code-unknown", "no such code; ask for a new one")


@pytest.mark.parametrize("body", [b"", b"[", b"[]", b"1", b"\xff", b"[" * 10_000], ids=repr)
async def test_a_malformed_body_is_refused_before_anything_is_asked(client, body):
    """400 says what was expected."""
    async with client.post("/enroll", data=body) as answer:
        found = await answer.json(content_type=None)
        assert (answer.status, found["rule"]) == (400, "malformed")
        assert found["detail"].startswith("expected a JSON object {code, id, jwk, proof}")


@pytest.mark.parametrize(("size", "status"), [(16_383, 400), (16_384, 400), (16_385, 413)])
async def test_bodies_are_small(client, size, status):
    """16 KiB, not a byte more."""
    async with client.post("/enroll", data=b" " * size) as answer:
        assert answer.status == status


async def test_ca_keys_and_time_are_public(client):
    """What a device asks before it can trust anything."""
    async with client.get("/enroll/ca") as answer:
        assert (await answer.text()).startswith("-----BEGIN CERTIFICATE-----")
    async with client.get("/.well-known/gateway-keys") as answer:
        assert (answer.content_type, await answer.text()) == ("application/jose", "a.b.c")
    async with client.get("/time") as answer:
        assert await answer.json() == {"time": "2023-11-14T22:13:20.250Z"}


@pytest.mark.parametrize("path", ["/event_bus", "/metrics", "/readyz", "/v1/device_list"])
async def test_it_is_never_admin(client, path):
    """Nothing of the admin listener stands here."""
    async with client.get(path) as answer:
        assert answer.status == 404
