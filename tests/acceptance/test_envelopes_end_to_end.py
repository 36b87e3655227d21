"""Envelopes altered, replayed, redirected: whatever is done to one on its way, it never yields a new event."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from besieged import Site, besieged
from fleet import event
from soak import SOAK

from edge_protocol.envelope import Place
from edge_protocol.envelope_keys import Suite
from gateway.mqtt.codec import Puback, Publish, Version

STRIDE = max(1, 5 // SOAK)  # every so manieth byte is flipped
FLIPPED = {
    0x99: {"bad-cbor", "bad-shape", "not-deterministic", "unknown-suite", "cannot-decrypt", "unknown-payload"},
    0x83: {"unknown-envelope-key"},
    0x87: {"envelope-required"},  # the first byte became a brace or a bracket
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    roles = {"plain1": "simple-device", "sealed1": "device", "sealed2": "device", "narrow1": "narrow"}
    with besieged(tmp_path_factory.mktemp("envelopes"), roles) as served:
        yield served


async def publish(site: Site, device: str, payload: bytes, *, topic: str = "", **packet: Any) -> tuple[int, str]:
    """Publish on a connection of its own; the code and the reason of the PUBACK."""
    topic = topic or site.devices[device].events_topic
    async with site.client(device, tls=True) as client:
        client.send(Publish(topic=topic, payload=payload, qos=1, **({"packet_id": 1} | packet)))
        answer = await client.read()
        assert isinstance(answer, Puback), answer
        return int(answer.reason_code), answer.properties.reason_string or ""


async def count(site: Site) -> int:
    """Events on the bus."""
    return len(await site.events())


@pytest.mark.soak
@pytest.mark.timeout(120 * SOAK)
@pytest.mark.parametrize("suite", list(Suite), ids=lambda suite: suite.name)
async def test_a_flipped_byte_never_yields_an_event(site: Site, suite: Suite) -> None:
    """Wherever a byte differs the envelope is refused by a rule, and the bus stays as it was; untouched it is stored."""
    device = site.devices["sealed1"]
    good = device.seal(event(f"flip-{suite.name}", 1), place=Place(f"flip-{suite.name}", 1, 0), suite=suite)
    before = await count(site)
    rules: Counter[str] = Counter()
    for position in sorted({0, 1, 2, 3, *range(random.randrange(STRIDE), len(good), STRIDE), len(good) - 1}):
        flipped = bytearray(good)
        flipped[position] ^= random.randrange(1, 256)
        code, reason = await publish(site, "sealed1", bytes(flipped))
        rule = reason.partition(":")[0]
        assert rule in FLIPPED[code], f"byte {position} as 0x{flipped[position]:02x}: 0x{code:02x} {reason}"
        rules[rule] += 1
    assert rules["cannot-decrypt"] > len(good) // STRIDE // 4, rules
    assert await count(site) == before
    assert await publish(site, "sealed1", good) == (0, "")
    assert await count(site) == before + 1


async def test_a_replayed_envelope_is_acknowledged_and_stored_once(site: Site) -> None:
    """Again on the same connection, on another, as DUP, in 3.1.1, overlapping: success each time, one event each."""
    device = site.devices["sealed1"]
    events = [event(f"replay-{n}", n) for n in range(1, 5)]
    streamed = device.seal(*events[:2], place=Place("replay", 1, 0))
    overlapping = device.seal(*events[1:4], place=Place("replay", 2, 0))
    without_stream = device.seal(event("replay-id", 9))
    before, duplicates = await count(site), site.metrics()["lockgate_events_duplicate_total"]
    async with site.client("sealed1") as client:
        for n, payload in enumerate((streamed, streamed, without_stream, without_stream), 1):
            client.send(Publish(topic=device.events_topic, payload=payload, qos=1, packet_id=n, dup=n > 2))
            assert await client.read() == Puback(packet_id=n)
    assert await count(site) == before + 3
    assert await publish(site, "sealed1", streamed) == (0, "")
    assert await publish(site, "sealed1", overlapping, dup=True) == (0, "")
    async with site.client("sealed1", version=Version.V311) as client:
        client.send(Publish(topic=device.events_topic, payload=overlapping, qos=1, packet_id=7))
        assert await client.read() == Puback(packet_id=7)
    stored = [each["id"] for each in await site.events() if each["id"].startswith("replay")]
    assert sorted(stored) == ["replay-1", "replay-2", "replay-3", "replay-4", "replay-id"]
    assert site.metrics()["lockgate_events_duplicate_total"] == duplicates + 2 + 1 + 2 + 1 + 3


async def test_a_stream_that_forked_is_refused(site: Site) -> None:
    """Other events under numbers that are stored (a cloned or restored disk): 0x99 `stream-forked`, none stored."""
    device = site.devices["sealed1"]
    assert await publish(site, "sealed1", device.seal(event("fork-1"), place=Place("fork", 1, 0))) == (0, "")
    before = await count(site)
    clone = device.seal(event("clone-1"), event("clone-2"), place=Place("fork", 1, 0))
    code, reason = await publish(site, "sealed1", clone)
    assert (code, reason.partition(":")[0]) == (0x99, "stream-forked")
    assert await count(site) == before


def redirected(site: Site) -> dict[str, tuple[str, str, bytes, int, str]]:
    """By what is done: publisher, topic, payload, code, reason."""
    first, second, narrow = (site.devices[name] for name in ("sealed1", "sealed2", "narrow1"))
    mine, theirs = first.events_topic, second.events_topic
    good = first.seal(event("redirected"), place=Place("redirected", 1, 0))
    undecryptable = "cannot-decrypt: not sealed to this key for this audience and device, or altered"
    return {
        "by another device as its own": ("sealed2", theirs, good, 0x99, undecryptable),
        "by another device for the first": (
            "sealed2",
            mine,
            good,
            0x87,
            "not-authorized: publishing to 'devices/sealed1/events' is not allowed",
        ),
        "for another audience": ("sealed1", mine, first.seal(event("x"), audience="other"), 0x99, undecryptable),
        "sealed as another device": ("sealed1", mine, first.seal(event("x"), device="sealed2"), 0x99, undecryptable),
        "signed by another device": (
            "sealed1",
            mine,
            first.seal(event("x"), key=second.key),
            0x83,
            "unknown-signing-key: no valid key of this device has this kid and algorithm",
        ),
        "on a typed topic": (
            "sealed1",
            f"{mine}/measured",
            good,
            0x87,
            "envelope-required: plain events are not accepted from this role",
        ),
        "on a typed topic of one who need not seal": (
            "plain1",
            "devices/plain1/events/measured",
            good,
            0x99,
            "envelope-on-typed-topic: expected event data; envelopes go to devices/ID/events",
        ),
        "plain where envelopes are required": (
            "sealed1",
            mine,
            event("x"),
            0x87,
            "envelope-required: the role of this device sends events in envelopes only",
        ),
        "a plain batch where envelopes are required": (
            "sealed1",
            mine,
            b"[" + event("x") + b"]",
            0x87,
            "envelope-required: the role of this device sends events in envelopes only",
        ),
        "another's source inside": (
            "sealed1",
            mine,
            first.seal(event("x", source="/devices/sealed2")),
            0x99,
            "wrong-source: event 0: source '/devices/sealed2': expected '/devices/sealed1', or none",
        ),
        "a service's source inside": (
            "sealed1",
            mine,
            first.seal(event("x", source="/services/operator")),
            0x99,
            "wrong-source: event 0: source '/services/operator': expected '/devices/sealed1', or none",
        ),
        "a type that policy does not allow": (
            "narrow1",
            narrow.events_topic,
            narrow.seal(event("x", type_="cart.updated"), event("y", type_="order.placed")),
            0x87,
            "not-authorized: no role of this client may emit type 'order.placed'",
        ),
    }


async def test_an_envelope_in_the_wrong_place_never_yields_an_event(site: Site) -> None:
    """Another device, audience, key, source, topic or type: refused with the reason, and the bus stays as it was."""
    before = await count(site)
    cases = redirected(site)
    found = {}
    for name, (publisher, topic, payload, _, _) in cases.items():
        found[name] = await publish(site, publisher, payload, topic=topic)
    assert found == {name: (code, reason) for name, (_, _, _, code, reason) in cases.items()}
    assert await count(site) == before
    allowed = site.devices["narrow1"].seal(event("narrow", type_="cart.updated"))
    assert await publish(site, "narrow1", allowed) == (0, "")
    assert await count(site) == before + 1
    await site.is_served(tls=True)
