"""Bursts of publishes that are alike, which are taken as runs: nothing a client or a reader sees tells them from others.

The MQTT server with the real pipeline on a store in memory; the same server taking each publish for itself is what
runs are compared with.
"""

from __future__ import annotations

import asyncio
import time
from itertools import chain, pairwise, repeat

import ingest_parts as parts
import pytest
from bursts import ROOM, TOPIC, acknowledged, answers, burst, numbers, serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mqtt_kit import eventually, properties, publish
from structlog.testing import capture_logs

from gateway.mqtt.codec import (
    Disconnect,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Pubrec,
    Pubrel,
    ReasonCode,
    Version,
    encode,
)
from gateway.rules.policy import Policy, PolicyRule

BOTH = pytest.mark.parametrize("version", list(Version))
N = 300


@BOTH
@pytest.mark.parametrize("qos", [0, 1])
async def test_a_burst_is_acknowledged_once_and_stored_in_order(version, qos):
    """300 publishes in one write: a PUBACK for each in order and no more, an event for each in order."""
    async with serving() as run:
        client = await run.client(version=version)
        client.send(*burst(N, qos))
        assert await acknowledged(client, N if qos else 0) == [Puback(packet_id=n) for n in range(1, N + 1) if qos]
        await eventually(lambda: run.server.stats.publishes[0] == N)
        assert await numbers(run) == list(range(1, N + 1))
        assert run.pipeline.stats.publishes == run.pipeline.stats.events == N
        assert run.ingest.runs >= 2
        assert await run.server.drain(5)


@pytest.mark.parametrize("size", [1, 7, 100, 1000])
async def test_a_burst_in_pieces(size):
    """However the network cuts a burst, answers and events are the same."""
    async with serving() as run:
        client = await run.client()
        wire = b"".join(encode(each, Version.V5) for each in burst(100))
        for at in range(0, len(wire), size):
            client.writer.write(wire[at : at + size])
            await asyncio.sleep(0)
        assert await acknowledged(client, 100) == [Puback(packet_id=n) for n in range(1, 101)]
        assert await numbers(run) == list(range(1, 101))


async def test_identifiers_used_again_count_again():
    """A client that uses one identifier for all publishes of a burst gets as many answers."""
    async with serving() as run:
        client = await run.client()
        client.send(*(publish(TOPIC, b"1", packet_id=7) for _ in range(50)))
        assert await acknowledged(client, 50) == [Puback(packet_id=7)] * 50
        assert await numbers(run) == [1] * 50
        assert run.ingest.runs


BAD = {
    "an envelope": (b"\xd0\x83", "envelope-on-typed-topic"),
    "too large": (b'"' + b"x" * (256 * 1024) + b'"', "event-too-large"),
    "too deep": (b"[" * 40 + b"]" * 40, "json-too-deep"),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("at", [1, 2, 150, 300])
async def test_one_bad_payload_is_refused_alone(bad, at):
    """In 5.0 the bad one has its code and reason in its place, its neighbours are stored in their order."""
    async with serving() as run:
        client = await run.client()
        packets = burst(N)
        packets[at - 1] = publish(TOPIC, BAD[bad][0], packet_id=at)
        client.send(*packets)
        found = await acknowledged(client, N)
        assert [packet.packet_id for packet in found] == list(range(1, N + 1))
        assert [packet.packet_id for packet in found if packet.reason_code] == [at]
        assert found[at - 1].reason_code == ReasonCode.PAYLOAD_FORMAT_INVALID
        assert found[at - 1].properties.reason_string.startswith(f"{BAD[bad][1]}: ")
        assert await numbers(run) == [n for n in range(1, N + 1) if n != at]
        assert run.server.stats.publishes == {0: N - 1, 0x99: 1}


@pytest.mark.parametrize("qos", [0, 1])
async def test_one_bad_payload_in_311(qos):
    """In 3.1.1 those before the bad one are acknowledged, then the connection is closed; at QoS 0 it is dropped."""
    async with serving() as run:
        client = await run.client(version=Version.V311)
        packets = burst(100, qos)
        packets[49] = publish(TOPIC, BAD["an envelope"][0], qos=qos, packet_id=50 if qos else 0)
        client.send(*packets)
        if qos:
            assert await client.ended() == [Puback(packet_id=n) for n in range(1, 50)]
        else:
            assert await answers(client) == []
        assert await numbers(run) == [n for n in range(1, 101) if n != 50]


@pytest.mark.parametrize("room", [1, 2, 3, 127, 128, 129, 200])
@pytest.mark.parametrize("excess", [-1, 0, 1, 50])
async def test_receive_maximum_holds_inside_a_burst(room, excess):
    """Exactly as many as announced are taken, whatever comes in one write; one more ends the connection with 0x93."""
    async with serving(limits={"receive_maximum": room}) as run:
        client = await run.client()
        run.bus.is_open.clear()
        client.send(*burst(room + excess))
        if excess > 0:
            assert [packet.reason_code for packet in await client.ended()] == [0x93]
        else:
            assert await answers(client) == []
        run.bus.is_open.set()
        assert await numbers(run) == list(range(1, room + min(excess, 0) + 1))


async def test_what_is_acknowledged_makes_room_again():
    """After the answers to a burst as large as announced the same comes again, as often as wanted."""
    async with serving(limits={"receive_maximum": 130}) as run:
        client = await run.client()
        for turn in range(4):
            client.send(*burst(130, first=130 * turn + 1))
            assert len(await acknowledged(client, 130)) == 130
        run.bus.is_open.clear()
        client.send(*burst(131))
        assert [packet.reason_code for packet in await client.ended()] == [0x93]


@pytest.mark.parametrize("refused", [3, 50])
async def test_refused_publishes_make_room_again(refused):
    """A run that is refused as one gives back as many places as it took."""
    rule = PolicyRule(role="r", publish=("devices/{device}/events/#",), require_envelope=False)
    async with serving(limits={"receive_maximum": 50}, policy=Policy([rule])) as run:
        client = await run.client(role="r")
        for _ in range(3):
            client.send(*(publish(TOPIC, b"\xd0\x83", packet_id=n + 1) for n in range(refused)))
            found = await acknowledged(client, refused)
            assert [packet.reason_code for packet in found] == [0x99] * refused
        client.send(*burst(50))
        assert len(await acknowledged(client, 50)) == 50


async def test_receive_maximum_counts_what_311_and_qos_0_have_not():
    """Receive Maximum bounds 5.0 above QoS 0 only."""
    async with serving(limits={"receive_maximum": 10}) as run:
        run.bus.is_open.clear()
        for version, qos in ((Version.V311, 1), (Version.V5, 0)):
            client = await run.client(version=version)
            client.send(*burst(100, qos))
            assert await answers(client) == []
        run.bus.is_open.set()
        assert len(await numbers(run)) == 200


@pytest.mark.parametrize("block", [1, 2, 20])
async def test_topics_that_alternate(block):
    """Blocks of two topics keep one order, in answers and on the bus."""
    async with serving() as run:
        client = await run.client()
        topics = chain.from_iterable(repeat(f"devices/dev1/events/{name}", block) for name in "abababababab")
        sent = [publish(topic, b"%d" % n, packet_id=n) for n, topic in enumerate(topics, 1)]
        client.send(*sent)
        assert [packet.packet_id for packet in await acknowledged(client, len(sent))] == list(range(1, len(sent) + 1))
        assert await numbers(run) == list(range(1, len(sent) + 1))
        events = await run.events()
        assert [event.type for event in events] == [packet.topic[-1] for packet in sent]
        assert run.ingest.runs == (12 if block > 1 else 0)


@pytest.mark.parametrize(
    ("said", "kinds", "is_run"),
    [
        ({"content_type": "application/json"}, "application/json", True),
        ({"content_type": "text/plain"}, "text/plain", True),
        ({"message_expiry_interval": 60, "response_topic": "r"}, "application/json", True),
        ({"user_properties": (("x", "1"),)}, "application/json", False),
        ({"payload_format_indicator": 1}, "application/json", False),
    ],
)
async def test_properties_that_are_the_same(said, kinds, is_run):
    """Equal properties make no publish special but those that must be looked at with each payload."""
    async with serving() as run:
        client = await run.client()
        client.send(*burst(50, properties=properties(**said)))
        assert len(await acknowledged(client, 50)) == 50
        await numbers(run)
        events = await run.events()
        assert {event.datacontenttype for event in events} == {kinds}
        assert [event.payload for event in events] == [b"%d" % n for n in range(1, 51)]
        assert bool(run.ingest.runs) is is_run


async def test_an_id_that_is_said_again_is_the_same_event():
    """Publishes in binary mode with one id are one event, each acknowledged."""
    async with serving() as run:
        client = await run.client()
        client.send(*burst(20, properties=properties(user_properties=(("id", "same"),))))
        assert await acknowledged(client, 20) == [Puback(packet_id=n) for n in range(1, 21)]
        assert await numbers(run) == [1]


@pytest.mark.parametrize("said", ["", "bad\x7f", "no slash\x01"])
async def test_a_content_type_that_no_event_may_have(said):
    """A Content Type that is refused alone is refused for each publish of a burst."""
    async with serving() as run:
        client = await run.client()
        one = await client.publish(TOPIC, b"1", properties=properties(content_type=said))
        client.send(*burst(5, properties=properties(content_type=said)))
        found = await acknowledged(client, 5)
        assert [(packet.reason_code, packet.properties) for packet in found] == [(one.reason_code, one.properties)] * 5


async def test_payload_format_is_checked_of_each():
    """One payload that is said to be UTF-8 and is not is refused alone [MQTT-3.3.1-1]."""
    async with serving() as run:
        client = await run.client()
        said = properties(payload_format_indicator=1, content_type="text/plain")
        client.send(*(publish(TOPIC, b"\xff" if n == 5 else b"x", packet_id=n, properties=said) for n in range(1, 10)))
        codes = [packet.reason_code for packet in await acknowledged(client, 9)]
        assert codes == [0x99 if n == 5 else 0 for n in range(1, 10)]


async def test_a_topic_alias_that_is_repeated():
    """A burst that sets an alias each time, and one that uses it without a topic, both go to its topic."""
    async with serving() as run:
        client = await run.client()
        alias = properties(topic_alias=3)
        client.send(*burst(50, properties=alias), *burst(50, topic="", first=51, properties=alias))
        assert await acknowledged(client, 100) == [Puback(packet_id=n) for n in range(1, 101)]
        assert await numbers(run) == list(range(1, 101))
        assert {event.type for event in await run.events()} == {"t"}
        assert run.ingest.runs == 2
        client.send(*burst(5, topic="", properties=properties(topic_alias=4)))
        assert [packet.reason_code for packet in await client.ended()] == [ReasonCode.PROTOCOL_ERROR]


async def test_a_rate_is_kept_between_publishes():
    """A role with a rate is slowed after each publish of a burst, as it ever was."""
    rule = PolicyRule(
        role="r", publish=("devices/{device}/events/#",), require_envelope=False, events_per_s=50, burst=0.2
    )
    async with serving(policy=Policy([rule])) as run:
        client = await run.client(role="r")
        started = time.monotonic()
        client.send(*burst(40))
        found = [await client.read() for _ in range(40)]
        assert found == [Puback(packet_id=n) for n in range(1, 41)]
        assert 0.4 < time.monotonic() - started < 2
        assert run.ingest.runs == 0


@pytest.mark.parametrize(
    ("topic", "role", "options", "rule"),
    [
        ("devices/other/events/t", "simple-device", {}, "not-authorized"),
        ("devices/mine/events/t", "device", {}, "envelope-required"),
        ("devices/mine/events/t", "simple-device", {"retain": True}, "retain"),
    ],
)
async def test_what_policy_forbids_is_refused_each(topic, role, options, rule):
    """In 5.0 each publish of a burst has its refusal, in 3.1.1 none is acknowledged and the connection is closed."""
    async with serving() as run:
        client = await run.client("mine", role=role)
        client.send(*burst(50, topic=topic, **options))
        found = await acknowledged(client, 50)
        assert [(packet.packet_id, packet.reason_code) for packet in found] == [(n, 0x87) for n in range(1, 51)]
        assert all(packet.properties.reason_string.startswith(f"{rule}: ") for packet in found)
        old = await run.client("mine", role=role, version=Version.V311)
        old.send(*burst(50, topic=topic, **options))
        assert await old.ended() == []
        assert await numbers(run) == []
        assert run.ingest.runs == 0


@BOTH
async def test_a_bus_that_fails_acknowledges_nothing_of_a_burst(version):
    """The first publish that was not stored is told so in 5.0, then the connection ends; nothing behind it is stored."""
    async with serving() as run:
        client = await run.client(version=version)
        run.bus.failures = [parts.unavailable()]
        with capture_logs():
            client.send(*burst(N))
            found = await client.ended()
        if version is Version.V5:
            puback, last = found
            assert (puback.packet_id, puback.reason_code) == (1, 0x83)
            assert isinstance(last, Disconnect)
            assert last.reason_code == 0x83
            assert dict(last.properties.user_properties).keys() == {"retry-after"}
        else:
            assert found == []
        assert await numbers(run) == []
        assert run.server.stats.publishes == {0x83: 1}
        again = await run.client(version=version)
        again.send(*burst(N))
        assert await acknowledged(again, N) == [Puback(packet_id=n) for n in range(1, N + 1)]
        assert await numbers(run) == list(range(1, N + 1))


async def test_gone_before_its_burst_is_settled():
    """A publisher that goes away changes nothing: what was taken is stored, and its budget is given back."""
    async with serving() as run:
        client = await run.client()
        run.bus.is_open.clear()
        client.send(*burst(100))
        assert await answers(client) == []
        await client.aclose()
        await eventually(lambda: run.server.stats.connections == 0)
        assert run.server._hub.budget.used_bytes > 0
        run.bus.is_open.set()
        assert await numbers(run) == list(range(1, 101))
        assert run.server._hub.budget.used_bytes == 0


async def test_a_budget_that_a_burst_exceeds_stops_reading():
    """Beyond its share a connection is not read on after the run; settling lets it go on, and all comes in order."""
    async with serving(limits=ROOM | {"connection_inflight_bytes": 20_000}) as run:
        client = await run.client()
        run.bus.is_open.clear()
        client.send(*burst(400))
        await eventually(lambda: run.server._hub.budget.used_bytes > 20_000)
        await asyncio.sleep(0.05)
        assert run.server._hub.budget.used_bytes <= 20_000 + 128 * 600
        run.bus.is_open.set()
        assert await acknowledged(client, 400) == [Puback(packet_id=n) for n in range(1, 401)]
        assert await numbers(run) == list(range(1, 401))
        assert run.server._hub.budget.used_bytes == 0


async def test_packets_between_runs_keep_their_place():
    """QoS 2, other topics and pings between runs are answered in their places."""
    async with serving() as run:
        client = await run.client()
        exactly = publish(TOPIC, b"11", qos=2, packet_id=11)
        client.send(
            *burst(10), exactly, *burst(10, first=12), publish("nowhere/x", b"", packet_id=22), *burst(5, 1, TOPIC, 23)
        )
        found = await acknowledged(client, 27)
        assert [packet.packet_id for packet in found] == list(range(1, 28))
        assert [type(packet) for packet in found] == [Pubrec if n == 11 else Puback for n in range(1, 28)]
        assert [packet.packet_id for packet in found if packet.reason_code] == [22]
        client.send(Pubrel(packet_id=11))
        assert await client.read() == Pubcomp(packet_id=11)
        assert await numbers(run) == [n for n in range(1, 28) if n != 22]


@BOTH
async def test_a_burst_at_qos_2_is_taken_once(version):
    """Each publish of a burst at QoS 2 has its own flow; what is repeated before PUBREL is not stored again."""
    async with serving() as run:
        client = await run.client(version=version)
        packets = burst(50, qos=2)
        client.send(*packets, *packets)
        assert [packet.packet_id for packet in await acknowledged(client, 100)] == [*range(1, 51), *range(1, 51)]
        client.send(*(Pubrel(packet_id=n) for n in range(1, 51)))
        assert await acknowledged(client, 50) == [Pubcomp(packet_id=n) for n in range(1, 51)]
        assert await numbers(run) == list(range(1, 51))


async def test_bytes_that_break_the_stream_behind_a_run():
    """What was read before broken bytes is acknowledged or not, but stored; the connection ends with their reason."""
    async with serving() as run:
        client = await run.client()
        wire = b"".join(encode(each, Version.V5) for each in burst(50))
        client.writer.write(wire + b"\x00\x00")
        *acks, last = await client.ended()
        assert last.reason_code == ReasonCode.PROTOCOL_ERROR
        assert acks == [Puback(packet_id=n + 1) for n in range(len(acks))]
        assert await numbers(run) == list(range(1, 51))


PAYLOADS = st.one_of(
    st.integers(0, 10**6).map(lambda n: b"%d" % n),
    st.sampled_from([b"", b"open", b"\xd0\x83", b"\xd0", b"{", b"[[[[1]]]]", b"[" * 40 + b"]" * 40, b'"\xff"', b" 1"]),
    st.sampled_from([b'"' + b"x" * 4100 + b'"', parts.event(1, id_="one", type_="a"), b"\xff\x00"]),
)
TOPICS = st.sampled_from(
    ["devices/dev1/events/a", "devices/dev1/events/a/b", *["devices/dev1/events"] * 2, "devices/dev2/events/a"]
)
SAID = st.sampled_from(
    [
        {},
        {},
        {"content_type": "application/json"},
        {"content_type": "text/plain"},
        {"content_type": "application/cloudevents+json"},
        {"payload_format_indicator": 1},
        {"user_properties": (("id", "x"),)},
        {"topic_alias": 1},
    ]
)


FLAGS = st.sampled_from([{}, {}, {}, {"dup": True}, {"retain": True}])
SAME_ID = 5000


@st.composite
def conversations(draw: st.DrawFn) -> list[tuple[str, dict[str, object], list[bytes], bool]]:
    """Blocks of publishes that are alike but for payloads that are usual for their topic, mostly; some use one identifier for all."""
    numbers = st.integers(0, 99).map(lambda n: b"%d" % n)
    cloud_events = st.builds(
        lambda n, type_: parts.event(n, id_=f"said-{n}", type_=type_), st.integers(0, 9), st.sampled_from(["a", "b.c"])
    )
    kinds = st.tuples(st.sampled_from([0, 1, 1, 1, 2]), SAID, FLAGS)
    options = kinds.map(lambda kind: {"qos": kind[0], "said": kind[1]} | (kind[2] if kind[0] else {}))

    def blocks(topic: str) -> st.SearchStrategy[tuple[str, dict[str, object], list[bytes], bool]]:
        usual = cloud_events if topic.endswith("events") else numbers
        payloads = st.lists(st.one_of(usual, usual, usual, PAYLOADS), min_size=1, max_size=12)
        return st.tuples(st.just(topic), options, payloads, st.booleans())

    return draw(st.lists(TOPICS.flatmap(blocks), min_size=1, max_size=5))


def packets_of(talk, version):
    packets, n = [], 0
    for topic, options, payloads, is_same in talk:
        qos, flags = options["qos"], {name: options[name] for name in ("dup", "retain") if name in options}
        said = {"properties": properties(**options["said"])} if version is Version.V5 else {}
        for payload in payloads:
            n += 1
            packet_id = 0 if not qos else SAME_ID if is_same and qos == 1 else n
            packets.append(publish(topic, payload, qos=qos, packet_id=packet_id, **flags, **said))
    return packets


async def outcome(talk, version, cuts, *, takes_runs):
    """All that is seen of a conversation: answers, counts, whether it was ended, events without what is made anew; runs."""
    async with serving(limits={"receive_maximum": 200}) as run:
        run.ingest.takes_runs = takes_runs
        client = await run.client(version=version)
        packets = packets_of(talk, version)
        wire = b"".join(encode(each, version) for each in (*packets, Pingreq()))
        with capture_logs():
            for begin, end in pairwise((0, *(int(len(wire) * cut) for cut in sorted(cuts)), len(wire))):
                client.writer.write(wire[begin:end])
                await asyncio.sleep(0)
            found, expected = [], sum(packet.qos > 0 for packet in packets) + 1
            while len(found) < expected and (packet := await client.read()) is not None:
                found.append(packet)
            await run.pipeline.drain()
        events = await run.events()
        rows = [
            (event.id if event.id.startswith("said") else "", event.type, event.payload, event.datacontenttype)
            for event in events
        ]
        answered = [packet for packet in found if packet != Pingresp()]
        assert len({event.id for event in events}) == len(events)
        if len(found) == expected:
            await eventually(lambda: sum(run.server.stats.publishes.values()) == len(packets))
        return answered, run.server.stats.publishes, len(found) < expected, rows, run.ingest.runs


@BOTH
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(talk=conversations(), cuts=st.lists(st.floats(0, 1), max_size=3))
async def test_runs_change_nothing_that_can_be_seen(version, talk, cuts):
    """Whatever is sent, however it is cut: answers, events and counts are those of a server that takes one by one."""
    *alone, rows, runs = await outcome(talk, version, cuts, takes_runs=False)
    assert runs == 0
    *in_runs, rows_too, _ = await outcome(talk, version, cuts, takes_runs=True)
    assert in_runs == alone
    _, _, is_ended = alone
    # What comes behind a refusal that ended the connection is read, or it is not
    both = min(len(rows), len(rows_too)) if is_ended else None
    assert rows_too[:both] == rows[:both]
