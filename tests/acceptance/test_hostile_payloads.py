"""Payloads that break the rules of events and envelopes, over real connections: refused by name, nothing stored."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import cbor2
import pytest
from besieged import Site, besieged, properties_of
from fleet import event

from edge_protocol.envelope import Place
from edge_protocol.envelope_keys import Suite
from edge_protocol.keys import new_signing_key
from gateway.mqtt.codec import Disconnect, Packet, Properties, Puback, Publish, Version

V311, V5 = Version.V311, Version.V5
EVENT_BYTES, ENVELOPE_BYTES, INFLATED_BYTES = 256 << 10, 1 << 20, 8 << 20  # wire protocol, section 4
STATE = "devices/plain1/state"
EVENTS = "devices/plain1/events"
TYPED = "devices/plain1/events/a"
SEALED = "devices/sealed1/events"
LATER = 0x83


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    roles = {"plain1": "simple-device", "sealed1": "device", "narrow1": "narrow"}
    with besieged(tmp_path_factory.mktemp("payloads"), roles) as served:
        yield served


def publish(topic: str, payload: bytes, packet_id: int = 1, **properties: Any) -> Publish:
    retain = properties.pop("retain", False)
    return Publish(
        topic=topic, payload=payload, qos=1, packet_id=packet_id, retain=retain, properties=Properties(**properties)
    )


def said(answer: Packet | None) -> tuple[int, str]:
    assert isinstance(answer, Puback), answer
    return int(answer.reason_code), answer.properties.reason_string or ""


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def sized(size: int) -> bytes:
    """An event of exactly so many bytes."""
    bare = len(event("sized", ""))
    return event("sized", "x" * (size - bare))


def batch(count: int) -> bytes:
    return b"[" + b",".join(event(f"b{n}", n) for n in range(count)) + b"]"


DEEP = event("deep", 0).replace(b'"data": 0', b'"data": ' + nested(100_000))
ATTRIBUTE_RULES: dict[str, tuple[bytes, str]] = {
    "no id": (b'{"specversion": "1.0", "type": "a"}', "bad-id: id: expected a string, found nothing"),
    "id a number": (event("x", id=7), "bad-id: id: expected a string, found another type"),
    "id empty": (event(""), "bad-id: id: expected 1 to 1024 characters without control characters"),
    "id of 1025": (event("x" * 1025), "bad-id: id: expected 1 to 1024 characters"),
    "specversion a number": (event("x", specversion=1.0), "bad-specversion: specversion: expected a string"),
    "specversion 0.3": (event("x", specversion="0.3"), 'bad-specversion: specversion: expected "1.0"'),
    "type empty": (event("x", type_=""), "bad-type: type ''"),
    "type of 256": (event("x", type_="a" * 256), "bad-type: type"),
    "type a filter": (event("x", type_="a/#"), "bad-type: type 'a/#'"),
    "type a list": (event("x", type=["a"]), "bad-type: type: expected a string, found another type"),
    "time a date": (event("x", time="2026-11-23"), "bad-time: time: expected RFC 3339"),
    "time of February 30": (event("x", time="2026-02-30T00:00:00Z"), "bad-time: time: expected RFC 3339"),
    "another's source": (event("x", source="/devices/good1"), "wrong-source: source '/devices/good1'"),
    "sequence": (event("x", sequence="1"), "bad-attribute: sequence: set by the gateway"),
    "upper case attribute": (event("x", Abc=1), "bad-attribute: attribute 'Abc'"),
    "attribute an object": (event("x", abc={}), "bad-attribute: abc: expected a string"),
    "attribute of 33 bits": (event("x", abc=1 << 32), "bad-attribute: abc: expected an integer of 32 bits"),
    "control characters": (event("x", subject="a\0b"), "bad-subject: subject: expected 1 to 1024 characters"),
    "a member twice": (b'{"id": "y", ' + event("x")[1:], "bad-json: expected each member once"),
    "data and data_base64": (event("x", 1, data_base64="YQ=="), "bad-data: expected data or data_base64"),
    "data_base64 of blanks": (event("x", data_base64="Y Q="), "bad-data: "),
}
TEXT_RULES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "unknown-payload: nothing: expected 0xD0 (envelope)"),
    "a number": (b"7", "unknown-payload: first byte 0x37"),
    "garbage": (b"\xff\xfe\0\0", "unknown-payload: first byte 0xFF"),
    "half an object": (event("x")[:-3], "bad-json: not JSON"),
    "two objects": (event("x") * 2, "bad-json: not JSON"),
    "no UTF-8": (event("caf\xe9").replace(b"caf\\u00e9", b"caf\xe9"), "bad-utf8: byte"),
    "a surrogate in UTF-8": (event("SUR").replace(b"SUR", b"\xed\xa0\x80"), "bad-utf8: byte"),
    "NaN": (event("x", "NAN").replace(b'"NAN"', b"NaN"), "bad-json: not JSON"),
    "an array of numbers": (b"[1, 2]", "bad-json: "),
    "no events": (b"[]", "empty-batch: 0 events in a batch, expected 1 to 1000"),
    "1,001 events": (batch(1001), "too-many-events: 1001 events in a batch, expected 1 to 1000"),
    "33 levels": (event("x", 0).replace(b'"data": 0', b'"data": ' + nested(32)), "json-too-deep: nests deeper than"),
    "100,000 levels": (DEEP, "json-too-deep: nests deeper than the 32 levels"),
    "100,000 open": (b"[" * 100_000, "bad-json: event 0: not a CloudEvent: expected `object`, got `array`"),
    "256 KiB and a byte": (sized(EVENT_BYTES + 1), "event-too-large: 262145 bytes, at most 262144 are allowed"),
    "1 MiB and a byte": (b"[" + b" " * ENVELOPE_BYTES, "payload-too-large: 1048577 bytes, at most 1048576"),
}


async def refusals(site: Site, device: str, topic: str, cases: Mapping[str, tuple[bytes, str]]) -> dict[str, Any]:
    """Publish every case, in 5.0 on one connection and in 3.1.1 on one each; tell which was not refused as it says."""
    wrong: dict[str, Any] = {}
    async with site.client(device) as client:
        for name, (payload, reason) in cases.items():
            client.send(publish(topic, payload))
            code, text = said(await client.read())
            if code != 0x99 or not text.startswith(reason):
                wrong[name] = (code, text)
    for name, (payload, _) in cases.items():
        async with site.client(device, version=V311) as client:
            client.send(Publish(topic=topic, payload=payload, qos=1, packet_id=1))
            if found := await client.ended():
                wrong[f"{name} (3.1.1)"] = found
    return wrong


@pytest.mark.parametrize("cases", [ATTRIBUTE_RULES, TEXT_RULES], ids=["attributes", "text"])
async def test_a_plain_event_that_breaks_a_rule_is_refused_by_it(site: Site, cases: Any) -> None:
    """0x99 and the rule in 5.0, a closed connection without PUBACK in 3.1.1; nothing is stored; others are served."""
    before = await site.events()
    assert not await refusals(site, "plain1", EVENTS, cases)
    assert await site.events() == before
    await site.is_served()


async def test_what_is_just_within_the_limits_is_stored(site: Site) -> None:
    """The same payloads one smaller are no trouble: limits are what they say."""
    good = {
        "256 KiB": sized(EVENT_BYTES),
        "1,000 events": batch(1000),
        "32 levels": event("deep", 0).replace(b'"data": 0', b'"data": ' + nested(31)),
        "id of 1024": event("x" * 1024),
        "1 MiB": b"[" + event("padded") + b" " * (ENVELOPE_BYTES - 2 - len(event("padded"))) + b"]",
    }
    async with site.client("plain1") as client:
        for payload in good.values():
            client.send(publish(EVENTS, payload))
        assert [said(await client.read()) for _ in good] == [(0, "")] * len(good)


OTHER_RULES: dict[str, tuple[Publish, int, str]] = {
    "an envelope on a typed topic": (publish(TYPED, b"\xd0\x83"), 0x99, "envelope-on-typed-topic: expected event data"),
    "Content Type of a batch": (
        publish(EVENTS, event("x"), content_type="application/cloudevents-batch+json"),
        0x99,
        "content-type: ",
    ),
    "not the JSON it says": (publish(TYPED, b"{", content_type="application/json"), 0x99, "content-type: "),
    "not the UTF-8 it says": (publish(TYPED, b"\xff", payload_format_indicator=1), 0x99, "payload-format: said to be"),
    "type and topic": (
        publish(TYPED, b"1", user_properties=(("id", "x"), ("type", "b"))),
        0x99,
        "wrong-type: type 'b': the topic says 'a'",
    ),
    "an attribute twice": (
        publish(TYPED, b"1", user_properties=(("id", "x"), ("id", "y"))),
        0x99,
        "bad-attribute: an attribute is named twice",
    ),
    "bare data too large": (publish(TYPED, b"x" * EVENT_BYTES), 0x99, "event-too-large: "),
    "bare data too deep": (publish(TYPED, nested(100_000)), 0x99, "json-too-deep: "),
    "no such topic": (publish("devices/plain1/secrets", b"1"), 0x90, "topic: "),
    "no such topic of the gateway": (publish("gateway/config", b"1"), 0x90, "topic: "),
    "the gateway's keys": (publish("gateway/keys", b"1"), 0x87, "not-authorized: publishing to 'gateway/keys'"),
    "a type that cannot be": (publish(f"{EVENTS}/a.b/c d", b"1"), 0x90, "topic: "),
    "an id that cannot be": (publish("devices/../events", b"1"), 0x90, "topic: "),
    "another device": (
        publish("devices/good1/events/a", b"1"),
        0x87,
        "not-authorized: publishing to 'devices/good1/events/a'",
    ),
    "a free topic": (publish("a/b", b"1"), 0x87, "not-authorized: publishing to 'a/b' is not allowed"),
    "retained": (publish(TYPED, b"1", retain=True), 0x87, "retain: expected no RETAIN under devices/"),
    "a state of no object": (publish(STATE, b"[]"), 0x99, "bad-state: expected a JSON object"),
    "a state of no UTF-8": (publish(STATE, b'{"a": "\xff"}'), 0x99, "bad-state: expected a JSON object"),
    "a state too deep": (publish(STATE, b'{"a": ' + nested(40) + b"}"), 0x99, "json-too-deep: "),
    "a state too large": (publish(STATE, b'{"a": "' + b"x" * EVENT_BYTES + b'"}'), 0x99, "state-too-large: "),
}


async def test_a_publish_that_breaks_another_rule_is_refused_by_it(site: Site) -> None:
    """Topics, properties, states: PUBACK names the rule, the connection goes on, nothing is stored."""
    before = await site.events()
    wrong = {}
    async with site.client("plain1") as client:
        for name, (packet, code, reason) in OTHER_RULES.items():
            client.send(packet)
            found = said(await client.read())
            if found[0] != code or not found[1].startswith(reason):
                wrong[name] = found
    assert not wrong
    assert await site.events() == before
    await site.is_served()


def bomb(megabytes: int) -> bytes:
    """Raw DEFLATE of so many blanks."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return b"".join(deflater.compress(b" " * (1 << 20)) for _ in range(megabytes)) + deflater.flush()


def cbor_rules() -> dict[str, tuple[bytes, str]]:
    """What is no envelope: refused before any key is used."""
    kid, empty = bytes(32), b"\xa0"
    outer = cbor2.dumps({1: -70002, 4: kid})

    def encrypt0(*parts: Any, tag: int = 16) -> bytes:
        return cbor2.dumps(cbor2.CBORTag(tag, list(parts)))

    deep = b"\xd0" + b"\x81" * 100_000 + b"\x00"
    return {
        "one byte": (b"\xd0", "bad-cbor: COSE_Encrypt0"),
        "nested arrays": (deep, "bad-cbor: COSE_Encrypt0: not CBOR of at most 4 levels"),
        "nested tags": (b"\xd0" * 100_000, "bad-cbor: "),
        "nested maps": (b"\xd0" + b"\xa1\x00" * 50_000 + b"\x00", "bad-cbor: "),
        "an array of 2^64": (b"\xd0\x9b" + b"\xff" * 8, "bad-cbor: "),
        "a string of 2^63": (b"\xd0\x83\x5b\x7f" + b"\xff" * 7, "bad-cbor: "),
        "indefinite": (b"\xd0\x9f\x40\xa0\x40\xff", "bad-cbor: "),
        "a big number": (b"\xd0\x83\xc2\x59\x40\x00" + b"\xff" * 0x4000 + b"\xa0\x40", "bad-shape: "),
        "a shared reference": (b"\xd0\x83\xd8\x1c\x40\xa0\xd8\x1d\x00", "not-deterministic: "),
        "trailing bytes": (encrypt0(outer, {}, b"") + b"\0", "not-deterministic: COSE_Encrypt0"),
        "another tag": (b"\xd0\x83" + encrypt0(outer, {}, b"")[1:], "bad-cbor: "),
        "two members": (encrypt0(outer, {}), "bad-shape: COSE_Encrypt0: expected 3 members"),
        "unprotected labels": (encrypt0(outer, {1: 1}, b""), "bad-shape: "),
        "a text for bytes": (encrypt0("a", {}, b""), "bad-shape: COSE_Encrypt0: expected byte strings"),
        "an empty header": (encrypt0(empty, {}, b""), "bad-shape: outer header"),
        "a text for the suite": (encrypt0(cbor2.dumps({1: "a", 4: kid}), {}, b""), "unknown-suite: "),
        "an unknown suite": (encrypt0(cbor2.dumps({1: -70009, 4: kid}), {}, b""), "unknown-suite: "),
        "a short kid": (encrypt0(cbor2.dumps({1: -70002, 4: b"k"}), {}, b""), "bad-shape: outer header: expected kid"),
        "too large": (b"\xd0\x83" + bytes(ENVELOPE_BYTES), "envelope-too-large: 1048578 bytes, at most 1048576"),
    }


async def test_what_is_no_envelope_is_refused_by_its_rule(site: Site) -> None:
    """Truncated, nested, oversized CBOR and wrong types: 0x99 and the rule; nothing is stored, the next is served."""
    before = await site.events()
    assert not await refusals(site, "sealed1", SEALED, cbor_rules())
    assert await site.events() == before
    await site.is_served()


async def test_an_envelope_of_a_known_device_is_not_trusted_either(site: Site) -> None:
    """Bombs, wrong events, false sources inside a proper signature: refused by rule, all or nothing."""
    device = site.devices["sealed1"]
    now = device.seal(event("a"), place=Place("bad", 1, 0))
    cases = {
        "a deflate bomb": (device.seal(b" " * (INFLATED_BYTES + 1)), "inflated-too-large: more than the 8388608"),
        "a larger one": (device.seal(b" " * (200 << 20)), "inflated-too-large: more than the 8388608"),
        "nested JSON": (device.seal(DEEP), "json-too-deep: "),
        "no JSON": (device.seal(b"{"), "bad-json: "),
        "1,001 events": (device.seal(batch(1001)[1:-1]), "too-many-events: "),
        "no events": (device.seal(), "empty-batch: "),
        "one bad event": (device.seal(event("good"), event("bad", type_="#")), "bad-type: event 1: "),
        "another's source": (device.seal(event("x", source="/devices/good1")), "wrong-source: event 0: "),
        "too old for its id": (device.seal(event("x"), issued_at=1), "outside-window: iat 1: expected"),
        "from the future": (device.seal(event("x"), issued_at=1 << 40), "outside-window: iat "),
        "cut": (now[:-1], "bad-cbor: "),
        "first byte gone": (now[1:], "unknown-payload: first byte 0x83"),
        "settled not below first": (device.seal(event("a"), place=Place("bad", 1, 1)), "bad-shape: expected settled"),
        "a stream of 65": (device.seal(event("a"), place=Place("s" * 65, 1, 0)), "bad-shape: stream: expected 1 to 64"),
        "first 2^53": (device.seal(event("a"), place=Place("bad", 1 << 53, 0)), "bad-shape: first: expected"),
    }
    before = await site.events()
    assert not await refusals(site, "sealed1", SEALED, cases)
    assert await site.events() == before
    await site.is_served()


async def test_an_envelope_to_another_key_or_by_another_key_asks_to_reseal(site: Site) -> None:
    """0x83 with `action: reseal`, then DISCONNECT with `retry-after`: the agent fetches keys and seals again."""
    device = site.devices["sealed1"]
    other_key = device.seal(event("x"), key=new_signing_key())
    unknown = device.seal(event("x")).replace(device.seal_keys[Suite.X25519_AES128].kid, b"k" * 32)
    reasons = {other_key: "unknown-signing-key: no valid key of", unknown: "unknown-envelope-key: no envelope key of"}
    for payload, reason in reasons.items():
        async with site.client("sealed1") as client:
            client.send(publish(SEALED, payload))
            puback, disconnect = await client.ended()
            code, text = said(puback)
            assert (code, text[: len(reason)]) == (LATER, reason)
            assert properties_of(puback) == {"action": "reseal"}
            assert isinstance(disconnect, Disconnect)
            assert disconnect.reason_code == LATER
            assert properties_of(disconnect).keys() == {"action", "retry-after"}
    assert json.dumps(await site.events()).count('"x"') == 0
