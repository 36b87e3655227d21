"""Runs: what is cut at once is what would have been read one by one, and whatever is unusual ends a run."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import mqtt_strategies as ms
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.mqtt.codec import (
    EMPTY,
    CodecError,
    Decoder,
    Packet,
    Pingreq,
    Properties,
    Puback,
    Publish,
    PublishRun,
    Rule,
    Version,
    encode,
    puback_ok,
    pubacks_ok,
)
from gateway.mqtt.codec.runs import MAX_PUBLISHES

BOTH = pytest.mark.parametrize("version", list(Version))
LARGE = (126, 127, 128, 129, 16_383, 16_384, 16_385)  # where the remaining length grows by a byte, and around it


def alike(count: int, *sizes: int, qos: int = 1, topic: str = "a/b", properties: Properties = EMPTY) -> list[Publish]:
    """Neighbours that differ in identifier and payload, their sizes taken in turn."""
    return [
        Publish(
            topic=topic,
            payload=bytes([n % 256]) * sizes[n % len(sizes)],
            qos=qos,
            packet_id=n + 1 if qos else 0,
            properties=properties,
        )
        for n in range(count)
    ]


def wire_of(packets: Iterable[Packet], version: Version) -> bytes:
    return b"".join(encode(packet, version) for packet in packets)


def read(decoder: Decoder, wire: bytes, *, most: int = MAX_PUBLISHES) -> tuple[list[Packet], list[PublishRun]]:
    """Everything in `wire`, each PUBLISH followed by the run behind it; and the runs."""
    found: list[Packet] = []
    runs: list[PublishRun] = []
    for packet in decoder.feed(wire):
        run = decoder.run(packet, most=most) if isinstance(packet, Publish) else None
        runs += [run] if run else []
        found += run.packets() if run else [packet]
    return found, runs


def story(decoder: Decoder, pieces: Sequence[bytes], *, in_runs: bool) -> list[object]:
    """What came out after each piece, what is left over, and how it ended."""
    told: list[object] = []
    try:
        for piece in pieces:
            for packet in decoder.feed(piece):
                run = decoder.run(packet) if in_runs and isinstance(packet, Publish) else None
                told += run.packets() if run else [packet]
            told.append(decoder.buffered_bytes)
    except CodecError as error:
        told += [str(error), decoder.buffered_bytes]
    return told


@st.composite
def bursts(draw: st.DrawFn, version: Version) -> list[Packet]:
    """PUBLISH packets, most of them like their neighbour, now and then another packet."""
    packets: list[Packet] = []
    for _ in range(draw(st.integers(1, 4))):
        base = draw(ms.publishes(version, "client"))
        sizes = draw(
            st.lists(st.integers(0, 5) | st.integers(95, 135) | st.sampled_from(LARGE), min_size=1, max_size=3)
        )
        for n in range(draw(st.integers(1, 12) | st.integers(30, 40))):
            payload = bytes([n]) * sizes[n % len(sizes)]
            packets.append(replace(base, packet_id=draw(ms.packet_ids) if base.qos else 0, payload=payload))
        if draw(st.booleans()):
            packets.append(draw(ms.packets(version, "client")))
    return packets


@st.composite
def pieces_of(draw: st.DrawFn, wire: bytes) -> list[bytes]:
    """The same bytes as the network may cut them: whole, or in a few places, which are often next to each other."""
    cuts = draw(st.lists(st.integers(0, len(wire)), max_size=8))
    cuts += [at + 1 for at in cuts if draw(st.booleans())]
    places = [0, *sorted(cuts), len(wire)]
    return [wire[begin:end] for begin, end in pairwise(places)]


@BOTH
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_runs_are_what_reading_one_by_one_gives(version: Version, data: st.DataObject) -> None:
    """However packets are alike or not, and however they arrive, runs taken apart are the packets, at the same time."""
    packets = data.draw(bursts(version))
    wire = wire_of(packets, version)
    pieces = data.draw(pieces_of(wire))
    alone = story(Decoder(version=version), pieces, in_runs=False)
    assert [each for each in alone if not isinstance(each, int)] == packets
    assert story(Decoder(version=version), pieces, in_runs=True) == alone


@BOTH
@settings(max_examples=200, deadline=None)
@given(data=st.data(), limit=st.sampled_from([100, 128, 140, 16_400]))
def test_damage_is_refused_as_it_is_one_by_one(version: Version, data: st.DataObject, limit: int) -> None:
    """Bytes changed, left out or put in, or packets over the limit: the same packets come out, then the same error."""
    wire = bytearray(wire_of(data.draw(bursts(version)), version))
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(wire) - 1))
        wire[at : at + data.draw(st.integers(0, 2))] = data.draw(
            st.binary(max_size=2) | st.sampled_from([b"\0", b"\0\0"])
        )
        wire = wire or bytearray(b"\0")
    pieces = data.draw(pieces_of(bytes(wire)))
    alone, runs = (
        story(Decoder(version=version, max_packet_bytes=limit), pieces, in_runs=in_runs) for in_runs in (False, True)
    )
    assert runs == alone


@BOTH
@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("sizes", [(5,), (0,), (5, 6, 0), (200,), (200, 300), (200, 5)])
def test_neighbours_that_are_alike_are_one_run(version: Version, qos: int, sizes: tuple[int, ...]) -> None:
    """Equal but for identifier and payload: one run, of one size or of many; identifiers as on the wire."""
    packets = alike(20, *sizes, qos=qos)
    found, (run,) = read(Decoder(version=version), wire_of(packets, version))
    assert found == packets
    assert (run.first, run.payloads) == (packets[0], [packet.payload for packet in packets])
    assert run.packet_ids == [packet.packet_id.to_bytes(2) for packet in packets if qos]


@pytest.mark.parametrize(
    "other",
    [{"topic": "a/c"}, {"topic": "a/bc"}, {"qos": 0, "packet_id": 0}, {"qos": 2}, {"retain": True}, {"dup": True}]
    + [{"properties": Properties(content_type=name)} for name in ("text/plaim", "text/plain;x", None)],
)
def test_another_neighbour_ends_the_run(other: dict[str, object]) -> None:
    """A neighbour of another topic, QoS, flag or properties is not of the run, and begins its own."""
    packets = alike(9, 5, properties=Properties(content_type="text/plain"))
    packets[4:] = [replace(packet, **({"payload": b"other"} | other)) for packet in packets[4:]]
    found, runs = read(Decoder(version=Version.V5), wire_of(packets, Version.V5))
    assert found == packets
    assert [len(run.payloads) for run in runs] == [4, 5]


def test_what_belongs_to_all_is_kept_by_all() -> None:
    """Properties and flags of the first packet are those of each: a topic alias without a topic too."""
    said = Properties(topic_alias=3, content_type="a/b", user_properties=(("a", "1"),), correlation_data=b"\0")
    packets = [replace(each, topic="", dup=True) for each in alike(5, 3, 4, properties=said)]
    found, (run,) = read(Decoder(version=Version.V5), wire_of(packets, Version.V5))
    assert found == run.packets() == packets


@pytest.mark.parametrize("sizes", [(3,), (3, 4)])
@pytest.mark.parametrize(("there", "most", "lengths"), [(4, 5, [4]), (5, 5, [5]), (6, 5, [5]), (7, 5, [5, 2])])
def test_a_run_is_no_longer_than_wanted(sizes: tuple[int, ...], there: int, most: int, lengths: list[int]) -> None:
    """At most as many as asked for, the first included; the rest waits, and one alone is no run."""
    packets = alike(there, *sizes)
    found, runs = read(Decoder(version=Version.V5), wire_of(packets, Version.V5), most=most)
    assert found == packets
    assert [len(run.payloads) for run in runs] == lengths


@pytest.mark.parametrize("sizes", [(3,), (3, 4)])
@pytest.mark.parametrize("excess", [-1, 0, 1])
def test_a_run_has_a_bound(sizes: tuple[int, ...], excess: int) -> None:
    """No run is longer than the largest there is, however many are wanted."""
    packets = alike(MAX_PUBLISHES + excess, *sizes)
    found, (run,) = read(Decoder(version=Version.V5), wire_of(packets, Version.V5), most=10_000)
    assert found == packets
    assert len(run.payloads) == min(MAX_PUBLISHES + excess, MAX_PUBLISHES)


@pytest.mark.parametrize("equal", [2, 3, 4, 5, 6, 31, 32, 33, 34, 126, 127])
@pytest.mark.parametrize(
    "other", [{"payload": b"longer"}, {"payload": b""}, {"topic": "a/c"}, {"qos": 2}, {"packet_id": 9}]
)
@pytest.mark.parametrize("missing", [0, 1, 4])
def test_any_number_of_one_size_may_come_first(equal: int, other: dict[str, object], missing: int) -> None:
    """However many are of one size before another comes, and however much of the last is here, none is lost or taken."""
    packets = alike(equal + 5, 3)
    packets[equal] = replace(packets[equal], **other)
    wire = wire_of(packets, Version.V311)
    decoder = Decoder(version=Version.V311)
    found, runs = read(decoder, wire[: len(wire) - missing])
    assert found == packets[: len(packets) - bool(missing)]
    is_alike = not {"topic", "qos"} & other.keys()
    assert len(runs[0].payloads if runs else [0]) == (min(len(found), MAX_PUBLISHES) if is_alike else equal)
    assert read(decoder, wire[len(wire) - missing :])[0] == packets[len(found) :]


@pytest.mark.parametrize("most", [-1, 0, 1])
def test_nothing_is_taken_where_nothing_may_follow(most: int) -> None:
    """With room for the packet itself at most, or with nothing behind it, there is no run, and nothing is lost."""
    packets = alike(3, 3)
    decoder = Decoder(version=Version.V311)
    first = next(decoder.feed(wire_of(packets, Version.V311)))
    assert decoder.run(first, most=most) is None
    assert list(decoder.feed(b"")) == packets[1:]
    assert decoder.run(packets[-1]) is None


@BOTH
@pytest.mark.parametrize("sizes", [(3,), (3, 4)])
@pytest.mark.parametrize("at", [0, 1, 2, 5, 9])
def test_identifier_0_is_refused_inside_a_run(version: Version, sizes: tuple[int, ...], at: int) -> None:
    """Packets before one with identifier 0 come out, then the refusal as ever [MQTT-2.2.1-3]."""
    packets = alike(10, *sizes)
    head = 2 + len("\0\x03a/b")
    wires = [bytearray(encode(packet, version)) for packet in packets]
    wires[at][head : head + 2] = b"\0\0"
    told = story(Decoder(version=version), [b"".join(wires)], in_runs=True)
    assert told[:-2] == packets[:at]
    assert told[-2] == str(CodecError(Rule.PACKET_ID_ZERO))


@pytest.mark.parametrize("at", [1, 2, 5])
@pytest.mark.parametrize("length", [b"\x8b\x00", b"\x8b\x80\x00"])
def test_a_length_that_is_not_minimal_is_refused_inside_a_run(at: int, length: bytes) -> None:
    """A remaining length with a zero byte at its end is refused as ever [MQTT-1.5.5-1]."""
    packets = alike(8, 4)
    wires = [encode(packet, Version.V311) for packet in packets]
    assert wires[at][1] == 0x0B
    wires[at] = wires[at][:1] + length + wires[at][2:]
    alone, runs = (story(Decoder(version=Version.V311), [b"".join(wires)], in_runs=each) for each in (False, True))
    assert runs == alone
    assert runs[:-2] == packets[:at]
    assert "remaining length" in runs[-2]


@pytest.mark.parametrize("limit", [99, 100, 1000])
@pytest.mark.parametrize("excess", [-1, 0, 1])
def test_a_packet_over_the_limit_is_refused_inside_a_run(limit: int, excess: int) -> None:
    """The limit of a packet holds inside a run exactly, fixed header included (3.2.2.3.6)."""
    packets = alike(6, 3)
    bare = len(encode(replace(packets[3], payload=bytes(200 if limit > 200 else 50)), Version.V5))
    packets[3] = replace(packets[3], payload=bytes((200 if limit > 200 else 50) + limit + excess - bare))
    wire = wire_of(packets, Version.V5)
    assert len(encode(packets[3], Version.V5)) == limit + excess
    told = story(Decoder(version=Version.V5, max_packet_bytes=limit), [wire], in_runs=True)
    if excess > 0:
        assert told[:-2] == packets[:3]
        assert f"{limit + 1} bytes, limit {limit}" in told[-2]
    else:
        assert told == [*packets, 0]


@pytest.mark.parametrize("length", LARGE)
@pytest.mark.parametrize("first", LARGE)
def test_lengths_of_one_two_and_three_bytes(first: int, length: int) -> None:
    """Whatever bytes the remaining lengths of neighbours have, what is read is what was written."""
    head = len(encode(alike(1, 0)[0], Version.V311)) - 2
    packets = alike(5, length - head, length - head, first - head, 1)
    packets[0] = replace(packets[0], payload=bytes(first - head))
    found, runs = read(Decoder(version=Version.V311), wire_of(packets, Version.V311))
    assert found == packets
    if length < 16_384:
        assert len(runs[0].payloads) > 1


@pytest.mark.parametrize("length", range(2, 9))
@pytest.mark.parametrize("properties", [EMPTY, Properties(content_type="a")])
def test_a_packet_too_short_for_its_fields_ends_a_run(length: int, properties: Properties) -> None:
    """A neighbour whose length ends inside what all have in common is read, and refused, as alone."""
    wires = [encode(packet, Version.V5) for packet in alike(6, 7, 9, properties=properties)]
    wires[3] = wires[3][:1] + bytes([length]) + wires[3][2:]
    alone, runs = (story(Decoder(version=Version.V5), [b"".join(wires)], in_runs=each) for each in (False, True))
    assert runs == alone
    assert isinstance(alone[-2], str)


@BOTH
def test_a_third_byte_of_length_is_not_the_first_of_a_topic(version: Version) -> None:
    """A topic name of 256 bytes begins as the end of a length of three bytes may: the packet is another, and stays it."""
    packets = [*alike(2, 1, topic="a" * 256), *alike(1, 16_300, topic="a" * 97), *alike(2, 1, topic="a" * 256)]
    packets[2] = replace(packets[2], packet_id=0x6161, payload=b"a" * 16_300)
    wire = wire_of(packets, version)
    assert b"\x01\x00" + b"a" * 97 in encode(packets[2], version)
    assert story(Decoder(version=version), [wire], in_runs=True) == [*packets, 0]


@pytest.mark.parametrize("kept", [1, 2, 3, 10, -1])
def test_half_a_packet_behind_a_run_waits_for_its_rest(kept: int) -> None:
    """A run ends before a packet that is not all here; with the rest of it the run goes on."""
    packets = alike(6, 20)
    wire = wire_of(packets, Version.V311)
    size = len(wire) // 6
    cut = 3 * size + kept % size
    decoder = Decoder(version=Version.V311)
    found, _ = read(decoder, wire[:cut])
    assert found == packets[:3]
    assert decoder.buffered_bytes == kept % size
    more, (run,) = read(decoder, wire[cut:])
    assert more == packets[3:]
    assert len(run.payloads) == 3


def test_what_stands_behind_a_run_comes_next() -> None:
    """Other packets between runs keep their places."""
    packets = [*alike(3, 4), Pingreq(), Puback(packet_id=1), *alike(2, 9), *alike(2, 1, topic="b"), Pingreq()]
    found, runs = read(Decoder(version=Version.V5), wire_of(packets, Version.V5))
    assert found == packets
    assert [len(run.payloads) for run in runs] == [3, 2, 2]


@given(ids=st.lists(st.integers(1, 0xFFFF), min_size=1, max_size=MAX_PUBLISHES))
def test_acknowledgements_of_a_run_are_those_of_each(ids: list[int]) -> None:
    """One write for all of a run has the bytes of a PUBACK for each, in order."""
    assert pubacks_ok([packet_id.to_bytes(2) for packet_id in ids]) == b"".join(map(puback_ok, ids))
