"""Bytes that break MQTT, over real sockets, plain and TLS: refused with the rule's name, and the next client is served."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from besieged import CONNECT_TIMEOUT_S, Site, besieged
from mqtt_kit import Client
from unit.mqtt import test_codec_refusals as broken

from gateway.mqtt.codec import Connack, Disconnect, Packet, Properties, Publish, ReasonCode, Rule, Version, Will, encode

V311, V5 = Version.V311, Version.V5
PASSED_ON_311 = {ReasonCode.UNSUPPORTED_PROTOCOL_VERSION, ReasonCode.CLIENT_IDENTIFIER_NOT_VALID}  # 3.1.1 has words


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    roles = {"plain1": "simple-device", "sealed1": "device"}
    with besieged(tmp_path_factory.mktemp("packets"), roles) as served:
        yield served


def rule_of(message: str) -> Rule:
    found = [rule for rule in Rule if message.startswith(rule.text)]
    return max(found, key=lambda rule: len(rule.text))


async def answers(site: Site, wire: bytes, *, version: Version, tls: bool, let_in: bool) -> list[Packet]:
    """What the gateway says to some bytes until it closes."""
    client = await site.open(version=version, tls=tls)
    try:
        if let_in:
            client.send(site.connect("plain1", version))
            assert (await client.read()).reason_code == 0
        client.writer.write(wire)
        return [packet for packet in await client.ended() if packet is not None]
    finally:
        await client.aclose()


def expected_opening(answer_in: Version | None, message: str) -> list[tuple[int, str | None]]:
    rule = rule_of(message)
    if answer_in is V5:
        return [(rule.code, message)]
    return [(rule.code, None)] if answer_in is V311 and rule.code in PASSED_ON_311 else []


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_garbage_instead_of_connect_is_refused_by_its_rule(site: Site, tls: bool) -> None:
    """CONNACK names the rule where there is a version to say it in; else the connection is closed without a word."""
    wrong = {}
    for wire, answer_in, message in broken.OPENINGS:
        found = await answers(site, wire, version=answer_in or V5, tls=tls, let_in=False)
        said = [(packet.reason_code, packet.properties.reason_string) for packet in found]
        if said != expected_opening(answer_in, message) or not all(isinstance(packet, Connack) for packet in found):
            wrong[message] = found
        await site.is_served(tls=tls)
    assert not wrong


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("version", [V311, V5])
async def test_a_malformed_packet_ends_the_connection_by_its_rule(site: Site, version: Version, tls: bool) -> None:
    """DISCONNECT with the rule's code and sentence in 5.0; in 3.1.1 the connection is closed, nothing acknowledged."""
    cases = [(wire, message) for where, wire, message in broken.cases(broken.FROM_CLIENTS) if where is version]
    unary = broken.subscribe_5 if version is V5 else broken.subscribe_311
    cases += [(unary(topic_filter), message) for topic_filter, message in broken.FILTERS]
    assert len(cases) > 30
    wrong = {}
    for wire, message in cases:
        found = await answers(site, wire, version=version, tls=tls, let_in=True)
        expected = [Disconnect(reason_code=rule_of(message).code, properties=Properties(reason_string=message))]
        if found != (expected if version is V5 else []):
            wrong[message] = found
        await site.is_served(tls=tls)
    assert not wrong


def publish(**changes: object) -> bytes:
    return encode(
        Publish(**({"topic": "devices/plain1/events/a", "payload": b"1", "qos": 1, "packet_id": 1} | changes)), V5
    )


SESSION_RULES = {
    "alias over the maximum": (
        publish(properties=Properties(topic_alias=17)),
        0x94,
        "topic alias 17 over the announced maximum [MQTT-3.3.2-9]",
    ),
    "alias never set": (
        publish(topic="", properties=Properties(topic_alias=16)),
        0x82,
        "topic alias 16 was never set (section 3.3.2.3.4)",
    ),
    "an answer instead of a question": (
        b"\xd0\x00",
        0x82,
        "packet that the peer never sends: PINGRESP from a client [section 2.1.2]",
    ),
    "AUTH without a method in CONNECT": (
        b"\xf0\x07\x19\x05\x15\x00\x02jw",
        0x82,
        "AUTH without an authentication method in CONNECT [MQTT-4.12.0-7]",
    ),
    "a packet over the announced maximum": (
        b"\x32\xff\xff\xff\x7f",
        0x95,
        "packet over the largest accepted: 268435460 bytes, limit 1179648 [section 3.2.2.3.6]",
    ),
}


async def test_what_a_session_does_not_allow_ends_it_by_its_rule(site: Site) -> None:
    """What is well-formed, but not what CONNACK announced or the state allows, is answered with code and sentence."""
    found = {}
    for name, (wire, _, _) in SESSION_RULES.items():
        said = await answers(site, wire, version=V5, tls=False, let_in=True)
        found[name] = [(packet.reason_code, packet.properties.reason_string) for packet in said]
        await site.is_served()
    assert found == {name: [(code, reason)] for name, (_, code, reason) in SESSION_RULES.items()}


def forged(header: str, claims: str = "e30") -> bytes:
    return base64.urlsafe_b64encode(header.encode()).rstrip(b"=") + f".{claims}.AAAA".encode()


async def test_a_hostile_connect_is_refused_with_a_reason(site: Site) -> None:
    """Tokens, client ids and wills that cannot be: CONNACK says which rule, and nothing more than that rule."""
    device = site.devices["plain1"]
    will = Will(topic="devices/good1/events/a", payload=b"1")
    cases = {
        "no token": ({"password": None}, 0x87, "no-token: expected a JWT as the password"),
        "empty token": ({"password": b""}, 0x87, "token-malformed: expected three parts joined by dots"),
        "not ASCII": ({"password": b"\xff" * 50}, 0x87, "token-malformed: expected ASCII"),
        "8 KiB and one": ({"password": b"a" * 8193}, 0x87, "token-malformed: 8193 bytes, at most 8192 are allowed"),
        "8 KiB": ({"password": b"a" * 8192}, 0x87, "token-malformed: expected three parts joined by dots"),
        "nested": (
            {"password": forged("[" * 3000)},
            0x87,
            "token-malformed: header: expected a UTF-8 JSON object with unique members",
        ),
        "jwk": (
            {"password": forged('{"alg":"EdDSA","jwk":{}}')},
            0x87,
            "token-malformed: header member 'jwk': expected only alg, kid, typ",
        ),
        "wrong claims": ({"password": forged('{"alg":"EdDSA"}')}, 0x87, "token-malformed: aud: expected this claim"),
        "another's token": (
            {"password": site.devices["good1"].token()},
            0x87,
            "wrong-subject: sub: expected the client id, found 'good1'",
        ),
        "a wildcard as id": (
            {"client_id": "#", "password": device.token(subject="#")},
            0x87,
            "not-proven: no valid key of this client proves the token",
        ),
        "another audience": ({"password": device.token(audience="b")}, 0x87, "wrong-audience: "),
        "a will for another device": (
            {"will": will},
            0x87,
            "will: not-authorized: publishing to 'devices/good1/events/a' is",
        ),
        "an unknown method": (
            {"properties": Properties(authentication_method="SCRAM")},
            0x8C,
            "authentication method: expected jwt, or none",
        ),
    }
    found = {}
    for name, (changes, code, reason) in cases.items():
        client = await site.open()
        client.send(site.connect(**changes))
        connack, *rest = await client.ended()
        said = connack.properties.reason_string or ""
        if (connack.reason_code, rest) != (code, []) or not said.startswith(reason):
            found[name] = connack
        await client.aclose()
        await site.is_served()
    assert not found


async def closes_within(client: Client, seconds: float) -> float:
    started = time.monotonic()
    async with asyncio.timeout(seconds + 1):
        assert await client.ended(seconds + 1) == []
    await client.aclose()
    return time.monotonic() - started


async def drip(client: Client, wire: bytes) -> None:
    """One byte at a time, as long as somebody takes them."""
    for byte in wire:
        client.writer.write(bytes([byte]))
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_a_connect_that_does_not_come_is_not_waited_for(site: Site, tls: bool) -> None:
    """Silence, half a CONNECT and one that drips in (slowloris) are cut off in time, while others are served."""
    silent, half, slow = [await site.open(tls=tls) for _ in range(3)]
    wire = encode(site.connect(), V5)
    half.writer.write(wire[: len(wire) // 2])
    dripping = asyncio.create_task(drip(slow, wire))
    closing = asyncio.gather(*(closes_within(each, CONNECT_TIMEOUT_S + 1.5) for each in (silent, half, slow)))
    while not closing.done():
        await site.is_served(tls=tls)
    assert min(await closing) > CONNECT_TIMEOUT_S * 0.5
    dripping.cancel()


async def test_half_a_packet_holds_nobody_up(site: Site) -> None:
    """A hundred clients that stop in the middle of a large PUBLISH cost the others nothing, and are served when they go on."""
    payload = b'"' + b"x" * 100_000 + b'"'
    wire = publish(payload=payload)
    client = await site.open()
    client.send(site.connect("plain1"))
    assert (await client.read()).reason_code == 0
    client.writer.write(wire[: len(wire) // 2])
    others = [await site.open() for _ in range(100)]
    for other in others:
        other.writer.write(encode(site.connect(), V5)[:40])
    for _ in range(10):
        await site.is_served()
    client.writer.write(wire[len(wire) // 2 :])
    assert (await client.read()).reason_code == 0
    for other in (client, *others):
        await other.aclose()
    await site.is_served()


async def test_a_handshake_that_never_ends_is_not_waited_for(site: Site) -> None:
    """Plain garbage, or nothing, on the TLS port is cut off in time; the next TLS client is served."""
    for said in (b"", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\n\r\n", b"\x10\x00" * 100):
        reader, writer = await asyncio.open_connection("127.0.0.1", site.system.mqtt_port)
        writer.write(said)
        async with asyncio.timeout(CONNECT_TIMEOUT_S + 2):
            with suppress(ConnectionError):
                while await reader.read(4096):
                    pass
        writer.close()
        await site.is_served(tls=True)
