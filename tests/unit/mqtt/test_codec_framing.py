"""The stream: bounds, partial packets, what happens behind an error, and hostile bytes."""

import sys
import tracemalloc

import mqtt_strategies as ms
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.mqtt.codec import (
    MAX_CONNECT_BYTES,
    CodecError,
    Connect,
    Decoder,
    Packet,
    Pingreq,
    Properties,
    Publish,
    Rule,
    Side,
    Version,
    encode,
)

PING = b"\xc0\x00"


def connect_of(size: int) -> bytes:
    """A CONNECT of exactly `size` bytes, from 16 KiB - 1 on; the password fills it up."""
    empty = encode(Connect(version=Version.V311, client_id="c", user_name="u", password=b""), Version.V311)
    spare = size - len(empty) - (1 if size < 16 * 1024 + 3 else 2)  # the remaining length grows
    wire = encode(Connect(version=Version.V311, client_id="c", user_name="u", password=bytes(spare)), Version.V311)
    assert len(wire) == size
    return wire


def publish_of(size: int) -> bytes:
    """A PUBLISH of exactly `size` bytes, from 131 to 16386 of them."""
    wire = encode(Publish(topic="a", payload=bytes(size - 6)), Version.V311)
    assert len(wire) == size
    return wire


@pytest.mark.parametrize("size", [MAX_CONNECT_BYTES - 1, MAX_CONNECT_BYTES])
def test_a_connect_up_to_its_bound_is_read(size: int) -> None:
    """CONNECT may be 16 KiB long."""
    [packet] = Decoder().feed(connect_of(size))
    assert packet.client_id == "c"


def test_a_connect_over_its_bound_is_refused_by_its_length() -> None:
    """One byte more is refused as soon as the length is there, whatever packets may be later."""
    wire = connect_of(MAX_CONNECT_BYTES + 1)
    decoder = Decoder(max_packet_bytes=1_000_000)
    with pytest.raises(CodecError, match="packet over the largest accepted: 16385 bytes, limit 16384") as refused:
        list(decoder.feed(wire[:4]))
    assert refused.value.code == 0x95
    assert decoder.buffered_bytes == 0


@pytest.mark.parametrize("size", [999, 1000])
def test_a_packet_up_to_the_bound_is_read(size: int) -> None:
    """The bound counts the whole packet, fixed header included (3.2.2.3.6)."""
    [packet] = Decoder(version=Version.V311, max_packet_bytes=1000).feed(publish_of(size))
    assert len(packet.payload) == size - 6


def test_a_packet_over_the_bound_is_refused_before_its_body_arrives() -> None:
    """Three bytes are enough to refuse a packet of 1001."""
    decoder = Decoder(version=Version.V5, max_packet_bytes=1000)
    with pytest.raises(CodecError, match="1001 bytes, limit 1000"):
        list(decoder.feed(publish_of(1001)[:3]))


def test_the_largest_length_there_is_reserves_no_memory() -> None:
    """A peer that announces 256 MiB within the bound costs what it sends."""
    tracemalloc.start()
    try:
        decoder = Decoder(version=Version.V5, max_packet_bytes=2**30)
        assert list(decoder.feed(b"\x30\xff\xff\xff\x7f" + bytes(1000))) == []
        assert decoder.buffered_bytes == 1005
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("role", ["server", "client"])
def test_a_wrong_first_byte_is_refused_at_once(role: Side) -> None:
    """A byte that no packet begins with is refused before its length."""
    with pytest.raises(CodecError, match="reserved packet type: 0"):
        list(Decoder(role=role, version=Version.V5).feed(b"\x00"))


def test_what_came_before_an_error_comes_out_and_nothing_after() -> None:
    """Good packets in front of a bad one are handed out; behind it the stream stays broken with the same reason."""
    decoder = Decoder(version=Version.V5)
    packets = decoder.feed(PING + PING + b"\xc1\x00" + PING)
    assert [next(packets), next(packets)] == [Pingreq(), Pingreq()]
    with pytest.raises(CodecError) as first:
        next(packets)
    with pytest.raises(CodecError) as again:
        list(decoder.feed(PING))
    assert str(first.value) == str(again.value)
    assert decoder.buffered_bytes == 0


def test_whoever_stops_in_between_finds_the_rest_later() -> None:
    """Packets that were not asked for stay buffered, and come with the next call, also when that feeds nothing."""
    decoder = Decoder(version=Version.V5)
    next(decoder.feed(PING * 3))
    assert decoder.buffered_bytes == 4
    assert next(decoder.feed(PING)) == Pingreq()
    assert list(decoder.feed(b"")) == [Pingreq()] * 2


def test_what_is_pipelined_behind_connect_waits_for_the_reader() -> None:
    """The packet behind CONNECT is not looked at before CONNECT has been dealt with."""
    decoder = Decoder()
    packets = decoder.feed(encode(Connect(version=Version.V5, client_id="c"), Version.V5) + b"\x00")
    assert next(packets).client_id == "c"
    with pytest.raises(CodecError, match="reserved packet type"):
        next(packets)


def test_nothing_is_kept_of_what_has_been_read() -> None:
    """A large chunk with a short rest keeps the rest only."""
    decoder = Decoder(version=Version.V311, max_packet_bytes=2**20)
    assert len(list(decoder.feed(publish_of(10_000) * 20 + b"\xc0"))) == 20
    assert sys.getsizeof(decoder._buffer) < 1000
    assert list(decoder.feed(b"\x00")) == [Pingreq()]
    assert decoder._buffer == b""


@pytest.mark.timeout(30)
def test_a_packet_in_single_bytes_costs_in_proportion() -> None:
    """1 MiB in single bytes takes about a second; copying it again for each byte would take minutes."""
    wire = encode(Publish(topic="a", payload=bytes(1024 * 1024)), Version.V311)
    decoder = Decoder(version=Version.V311)
    [packet] = [packet for index in range(len(wire)) for packet in decoder.feed(wire[index : index + 1])]
    assert len(packet.payload) == 1024 * 1024


@pytest.mark.timeout(30)
def test_packets_that_are_left_buffered_cost_in_proportion() -> None:
    """A reader that takes one packet at each call, far behind the network, does not copy what waits each time."""
    decoder = Decoder(version=Version.V5)
    list(decoder.feed(b""))
    assert next(decoder.feed(PING * 500_000)) == Pingreq()
    assert all(next(decoder.feed(PING)) == Pingreq() for _ in range(100_000))
    assert decoder.buffered_bytes == 999_998


@pytest.mark.timeout(30)
def test_many_properties_cost_in_proportion() -> None:
    """A packet full of user properties is read in one pass."""
    pairs = (("", ""),) * 200_000
    wire = encode(Publish(topic="a", payload=b"", properties=Properties(user_properties=pairs)), Version.V5)
    [packet] = Decoder(version=Version.V5).feed(wire)
    assert packet.properties.user_properties == pairs


def test_a_client_names_its_version() -> None:
    """A decoder for a client cannot guess the version that the client chose."""
    with pytest.raises(ValueError, match="a client knows its version: expected V311 or V5, found None"):
        Decoder(role="client")


def drain(decoder: Decoder, data: bytes | bytearray) -> list[Packet] | None:
    """What comes out; None for a refusal, and anything but CodecError fails the test."""
    try:
        return list(decoder.feed(data))
    except CodecError:
        return None


@pytest.mark.parametrize("version", [None, *Version])
@pytest.mark.parametrize("role", ["server", "client"])
@given(data=st.data())
def test_any_bytes_are_packets_or_a_codec_error(version: Version | None, role: Side, data: st.DataObject) -> None:
    """Nothing but CodecError escapes, whatever comes, and no more is kept than was fed."""
    if role == "client" and version is None:
        version = Version.V5
    decoder = Decoder(role=role, version=version, max_packet_bytes=10_000)
    for chunk in data.draw(st.lists(st.binary(max_size=200), max_size=5)):
        drain(decoder, chunk)
        assert decoder.buffered_bytes <= 1000


@pytest.mark.parametrize("version", list(Version))
@pytest.mark.parametrize("sender", ["client", "server"])
@given(data=st.data())
def test_a_damaged_packet_is_a_packet_or_a_codec_error(version: Version, sender: Side, data: st.DataObject) -> None:
    """Bytes changed, left out or put in anywhere give packets or CodecError, and what is read can be written again."""
    wire = bytearray(encode(data.draw(ms.packets(version, sender)), version))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(wire) - 1))
        wire[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
        wire = wire or bytearray(b"\0")
    role = {"client": "server", "server": "client"}[sender]
    for packet in drain(Decoder(role=role, version=version), wire) or ():
        assert drain(Decoder(role=role, version=version), encode(packet, version)) == [packet]


@given(data=st.data(), version=st.sampled_from(list(Version)))
def test_a_damaged_connect_is_a_connect_or_a_codec_error(data: st.DataObject, version: Version) -> None:
    """The first packet of an unknown peer is where hostile bytes arrive."""
    wire = bytearray(encode(data.draw(ms.connects(version)), version))
    at = data.draw(st.integers(0, len(wire) - 1))
    wire[at : at + 1] = data.draw(st.binary(max_size=3))
    for packet in drain(Decoder(), wire) or ():
        if isinstance(packet, Connect):
            assert drain(Decoder(), encode(packet, packet.version)) == [packet]


def test_an_error_says_its_rule_and_clause() -> None:
    """The message names the rule in words, what was found, and the clauses of both versions."""
    error = CodecError(Rule.RESERVED_FLAGS, "0x1 in PINGREQ")
    assert (
        str(error) == "reserved bits of the fixed header are wrong: 0x1 in PINGREQ [MQTT-2.1.3-1; 3.1.1: MQTT-2.2.2-2]"
    )
    assert str(CodecError(Rule.FIRST_PACKET)) == "first packet is not CONNECT [MQTT-3.1.0-1]"
