"""Hostile requests to `/event_bus` and `/enroll` of a real gateway: refused by rule, nothing stored, memory bounded."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import re
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from besieged import Site, besieged
from fleet import event

from edge_protocol import jose
from edge_protocol.jwk import b64url
from edge_protocol.keys import new_signing_key

EVENT, BATCH = "application/cloudevents+json", "application/cloudevents-batch+json"
MAX_BODY_BYTES = 8 << 20
BOMB_BYTES = 256 << 20
PEAK_BYTES = 48 << 20  # a body of 8 MiB is held, decoded and encoded; a bomb of 256 MiB never


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with besieged(tmp_path_factory.mktemp("http"), {"plain1": "simple-device"}) as served:
        yield served


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(auto_decompress=False) as client:
        yield client


def bus_url(site: Site) -> str:
    return f"http://127.0.0.1:{site.system.http_port}/event_bus"


def enrol_url(site: Site) -> str:
    return f"https://localhost:{site.system.device_port}/enroll"


async def service_token(site: Site) -> str:
    return (await site.call("token_create", role="service", name="cart"))["token"]


async def post(session: aiohttp.ClientSession, url: str, body: bytes, **options: Any) -> tuple[int, str, str]:
    """Status, rule and detail of an answer."""
    async with session.post(url, data=io.BytesIO(body), **options) as answer:
        said = json.loads(await answer.read())
        return answer.status, said.get("rule", ""), said.get("detail", "")


async def is_served(site: Site, session: aiohttp.ClientSession) -> None:
    """A service raises an event within a second."""
    async with asyncio.timeout(1.0):
        headers = {"Authorization": f"Bearer {await service_token(site)}", "Content-Type": EVENT}
        status, _, detail = await post(session, bus_url(site), event(f"fine-{time.monotonic_ns()}"), headers=headers)
        assert status == 200, detail


async def test_a_hostile_token_raises_nothing(site: Site, session: aiohttp.ClientSession) -> None:
    """401 with the rule for every token that proves no service; a proper one that may not raise the type gets 403."""
    device = site.devices["plain1"]
    operator = (await site.call("token_create", role="operator"))["token"]
    good = await service_token(site)
    cases = {
        "none": (None, 401, "no-token"),
        "another scheme": ("Basic YTpi", 401, "no-token"),
        "empty": ("Bearer ", 401, "no-token"),
        "garbage": ("Bearer a.b", 401, "token-malformed"),
        "not ASCII": ("Bearer \u00e9.b.c", 401, "token-malformed"),
        "8 KiB and one": (f"Bearer {'a' * 8193}", 400, ""),  # the server's own bound on a header line
        "7 KiB": (f"Bearer {'a' * 7168}", 401, "token-malformed"),
        "altered": (f"Bearer {good[:-4]}AAAA", 401, "not-proven"),
        "a device's": (f"Bearer {device.token().decode()}", 401, "wrong-subject"),
        "two": (f"Bearer {good} {good}", 401, "token-malformed"),
        "an operator's": (f"Bearer {operator}", 403, "not-authorized"),
    }
    before = await site.events()
    found = {}
    for name, (header, _, rule) in cases.items():
        headers = {"Content-Type": EVENT} | ({} if header is None else {"Authorization": header})
        async with session.post(bus_url(site), data=event("x"), headers=headers) as answer:
            body = await answer.read()
            found[name] = (header, answer.status, json.loads(body)["rule"] if rule else "")
    assert found == cases
    assert await site.events() == before
    await is_served(site, session)


async def test_a_hostile_event_is_refused_by_its_rule(site: Site, session: aiohttp.ClientSession) -> None:
    """400, 413 or 415 with the rule of wire protocol section 4; nothing is stored, the next request is served."""
    deep = b"[" * 100_000 + b"]" * 100_000
    binary = {"ce-specversion": "1.0", "ce-id": "x", "ce-type": "a"}
    cases = {
        "no type": ({}, event("x"), 415, "unsupported-content-type"),
        "XML": ({"Content-Type": "application/cloudevents+xml"}, b"<a/>", 415, "unsupported-content-type"),
        "empty": ({"Content-Type": EVENT}, b"", 400, "bad-json"),
        "no JSON": ({"Content-Type": EVENT}, b"{", 400, "bad-json"),
        "nested": ({"Content-Type": BATCH}, deep, 400, "bad-json"),
        "nested data": (
            {"Content-Type": EVENT},
            event("x", 0).replace(b'"data": 0', b'"data": ' + deep),
            400,
            "json-too-deep",
        ),
        "no UTF-8": ({"Content-Type": EVENT}, event("U").replace(b"U", b"\xff"), 400, "bad-utf8"),
        "wrong type": ({"Content-Type": EVENT}, event("x", type=7), 400, "bad-type"),
        "no events": ({"Content-Type": BATCH}, b"[]", 400, "empty-batch"),
        "1,001 events": (
            {"Content-Type": BATCH},
            b"[" + b",".join(event(f"e{n}") for n in range(1001)) + b"]",
            400,
            "too-many-events",
        ),
        "256 KiB": ({"Content-Type": EVENT}, event("x", "x" * (256 << 10)), 400, "event-too-large"),
        "8 MiB and one": (
            {"Content-Type": EVENT},
            b" " * (MAX_BODY_BYTES + 1),
            413,
            "request-entity-too-large",
        ),
        "binary without id": ({"ce-specversion": "1.0", "ce-type": "a"}, b"1", 400, "bad-id"),
        "binary, bad percent": (binary | {"ce-subject": "%FF"}, b"1", 400, "bad-utf8"),
        "binary, bad attribute": (binary | {"ce-a_b": "1"}, b"1", 400, "bad-attribute"),
        "binary, data as header": (binary | {"ce-data": "1"}, b"1", 400, "bad-attribute"),
        "binary, no JSON": (binary | {"Content-Type": "application/json"}, b"{", 400, "bad-json"),
        "binary, nested": (binary | {"Content-Type": "application/json"}, deep, 400, "json-too-deep"),
    }
    before = await site.events()
    token = {"Authorization": f"Bearer {await service_token(site)}"}
    found = {}
    for name, (headers, body, _, _) in cases.items():
        given = token | {"Content-Type": "application/octet-stream"} | headers
        status, rule, detail = await post(session, bus_url(site), body, headers=given)
        assert detail, name
        found[name] = (headers, body, status, rule)
    wrong = {name: found[name][2:] for name in cases if found[name] != cases[name]}
    assert not wrong
    assert await site.events() == before
    await is_served(site, session)


def raw_requests() -> dict[str, bytes]:
    """What is no HTTP, or is two things at once."""
    head = b"POST /event_bus HTTP/1.1\r\nHost: a\r\n"
    return {
        "MQTT": b"\x10\x10\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x00",
        "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
        "no method": b"\r\n\r\n\x00\xff\xff\r\n\r\n",
        "a long line": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        "a long header": head + b"X: " + b"a" * 100_000 + b"\r\n\r\n",
        "many headers": head + b"".join(b"X%d: a\r\n" % n for n in range(20_000)) + b"\r\n",
        "a bad header name": head + b"X\x00Y: a\r\n\r\n",
        "a negative length": head + b"Content-Length: -1\r\n\r\n",
        "two lengths": head + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "length and chunks": head + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "a bad chunk": head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n0\r\n\r\n",
        "a huge chunk": head + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nab",
        "another version": b"GET /healthz HTTP/9.9\r\n\r\n",
    }


async def test_what_is_no_http_is_refused_or_cut_off(site: Site, session: aiohttp.ClientSession) -> None:
    """400 and a closed connection, or at least no success; the next request is served, nothing alarms the log."""
    for name, wire in raw_requests().items():
        reader, writer = await asyncio.open_connection("127.0.0.1", site.system.http_port)
        writer.write(wire)
        with suppress(ConnectionError):
            writer.write_eof()
            async with asyncio.timeout(5):
                answer = await reader.read(1 << 16)
            assert not answer or re.match(rb"HTTP/1\.[01] 4\d\d ", answer), f"{name}: {answer[:200]!r}"
        writer.close()
        await is_served(site, session)


def peak_bytes(pid: int) -> int:
    """The most memory that a process ever had (VmHWM, proc(5))."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
async def test_a_compressed_bomb_is_not_inflated(site: Site, session: aiohttp.ClientSession, encoding: str) -> None:
    """A body that would inflate to 256 MiB is refused while it is read, on either listener; memory stays bounded."""
    blanks = b" " * BOMB_BYTES
    bomb = gzip.compress(blanks, 6) if encoding == "gzip" else zlib.compress(blanks, 6)
    before = peak_bytes(site.process.pid)
    headers = {"Content-Encoding": encoding, "Content-Type": EVENT}
    token = {"Authorization": f"Bearer {await service_token(site)}"}
    for url, given in ((bus_url(site), headers | token), (enrol_url(site), headers)):
        with suppress(aiohttp.ClientError):
            async with session.post(url, data=io.BytesIO(bomb), headers=given, ssl=site.tls) as answer:
                assert answer.status == 415
                assert (await answer.json(content_type=None))[
                    "detail"
                ] == f"Content-Encoding {encoding!r}: expected none"
    assert peak_bytes(site.process.pid) - before < PEAK_BYTES
    await is_served(site, session)


async def test_bodies_that_do_not_come_hold_nobody_up(site: Site, session: aiohttp.ClientSession) -> None:
    """Fifty requests that stop in the middle of their body, and as many in their head, cost the others nothing."""
    waiting = []
    for wire in (b"POST /event_bus HTTP/1.1\r\nHost: a\r\n", b"POST /event_bus HTTP/1.1\r\nContent-Length: 9\r\n\r\n1"):
        for _ in range(50):
            _, writer = await asyncio.open_connection("127.0.0.1", site.system.http_port)
            writer.write(wire)
            waiting.append(writer)
    for _ in range(10):
        await is_served(site, session)
    for writer in waiting:
        writer.close()


async def test_a_hostile_enrolment_registers_nobody(site: Site, session: aiohttp.ClientSession) -> None:
    """Every member that is not what it should be is named; a code survives it all; guessing is slowed down with 429."""
    code = (await site.call("device_add", id="enrolled1"))["code"]
    key, other = new_signing_key(), new_signing_key()

    def proof(signer: Any = key, **changes: Any) -> str:
        claims = {
            "id": "enrolled1",
            "code_hash": b64url(hashlib.sha256(code.encode()).digest()),
            "aud": site.settings.audience,
            "iat": int(time.time()),
        }
        return jose.sign(json.dumps(claims | changes).encode(), signer)

    fine = {"code": code, "id": "enrolled1", "jwk": key.public.jwk, "proof": proof()}
    cases = {
        "no code": ({"code": None}, 400, "malformed"),
        "a code of 10,000": ({"code": "a" * 10_000}, 400, "malformed"),
        "a list for the id": ({"id": ["enrolled1"]}, 400, "malformed"),
        "a text for the key": ({"jwk": "a"}, 400, "malformed"),
        "a wildcard": ({"id": "#"}, 400, "bad-id"),
        "a path": ({"id": "../keys"}, 400, "bad-id"),
        "a private key": ({"jwk": {**key.public.jwk, "d": "AAAA"}}, 400, "key-private"),
        "a symmetric key": ({"jwk": {"kty": "oct", "k": "AAAA"}}, 400, "key-invalid"),
        "another id than the code's": ({"id": "enrolled2", "proof": proof(id="enrolled2")}, 403, "id-not-allowed"),
        "an unknown code": ({"code": f"a{code}"}, 403, "code-unknown"),
        "no proof": ({"proof": ""}, 400, "proof-malformed"),
        "a proof of 9 KiB": ({"proof": "a" * 9000}, 400, "proof-malformed"),
        "another key's proof": ({"proof": proof(other)}, 400, "proof-not-proven"),
        "a proof for another": ({"proof": proof(id="good1")}, 400, "proof-mismatch"),
        "another audience": ({"proof": proof(aud="other")}, 400, "wrong-audience"),
        "an old proof": ({"proof": proof(iat=1)}, 400, "proof-time"),
    }
    found = {}
    for name, (changes, _, _) in cases.items():
        status, rule, _ = await post(session, enrol_url(site), json.dumps(fine | changes).encode(), ssl=site.tls)
        found[name] = (changes, status, rule)
    assert found == cases
    assert (await post(session, enrol_url(site), json.dumps(fine).encode(), ssl=site.tls))[0] == 200
    answers = [await post(session, enrol_url(site), json.dumps(fine).encode(), ssl=site.tls) for _ in range(10)]
    assert answers[-1][:2] == (429, "too-many-attempts")
    assert {device["id"] for device in (await site.call("device_list"))["devices"]} == {"enrolled1", "good1", "plain1"}
    await site.is_served()
