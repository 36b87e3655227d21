"""What `encode` writes, `Decoder` of the other side reads as the same value, cut anywhere, in both versions."""

import mqtt_strategies as ms
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.mqtt.codec import (
    EMPTY,
    Connect,
    Decoder,
    Disconnect,
    Puback,
    Publish,
    Secret,
    Side,
    Version,
    encode,
    puback_ok,
)

VERSIONS = list(Version)
OTHER_SIDE = {"client": "server", "server": "client"}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("sender", ["client", "server"])
@given(data=st.data())
def test_every_packet_survives_the_wire(version: Version, sender: Side, data: st.DataObject) -> None:
    """Every packet that a side may send reads back equal, alone and behind others."""
    packets = data.draw(st.lists(ms.packets(version, sender), min_size=1, max_size=4))
    decoder = Decoder(role=OTHER_SIDE[sender], version=version)
    assert list(decoder.feed(b"".join(encode(packet, version) for packet in packets))) == packets


@pytest.mark.parametrize("version", VERSIONS)
@given(data=st.data())
def test_connect_survives_the_wire_and_chooses_the_version(version: Version, data: st.DataObject) -> None:
    """A CONNECT reads back equal, and what follows it is read in its version."""
    connect = data.draw(ms.connects(version))
    following = data.draw(ms.packets(version, "client"))
    decoder = Decoder()
    assert decoder.version is None
    assert list(decoder.feed(encode(connect, version) + encode(following, version))) == [connect, following]
    assert decoder.version is version


@pytest.mark.parametrize("version", VERSIONS)
@given(data=st.data())
def test_the_network_may_cut_anywhere(version: Version, data: st.DataObject) -> None:
    """Packets come out the same however their bytes are cut, from bytes, bytearray or memoryview."""
    packets = [data.draw(ms.connects(version)), *data.draw(st.lists(ms.packets(version, "client"), max_size=4))]
    stream = b"".join(encode(packet, version) for packet in packets)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    kind = data.draw(st.sampled_from([bytes, bytearray, memoryview]))
    decoder, found = Decoder(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += decoder.feed(kind(stream[start:end]))
    assert found == packets
    assert decoder.buffered_bytes == 0


@given(packet_id=ms.packet_ids, version=st.sampled_from(VERSIONS))
def test_the_fast_puback_is_the_slow_one(packet_id: int, version: Version) -> None:
    """`puback_ok` writes what `encode` writes for a success without properties."""
    assert puback_ok(packet_id) == encode(Puback(packet_id=packet_id), version)


def test_no_properties_are_one_shared_object() -> None:
    """An empty property block makes no object."""
    wire = encode(Publish(topic="a", payload=b"", qos=1, packet_id=1), Version.V5)
    [packet] = Decoder(version=Version.V5).feed(wire)
    assert packet.properties is EMPTY


def test_a_password_is_never_shown() -> None:
    """The repr of a CONNECT that was read shows neither password nor authentication data."""
    properties = msgspec.structs.replace(EMPTY, authentication_method="jwt", authentication_data=b"hunter2")
    connect = Connect(version=Version.V5, client_id="c", password=b"hunter2", properties=properties)
    [read] = Decoder().feed(encode(connect, Version.V5))
    assert read.password == b"hunter2"
    assert "hunter2" not in f"{read!r} {read} {read.password} {read.password!s}"
    assert repr(read.password) == str(Secret(b"x")) == "***"


def test_what_311_cannot_say_is_left_out_where_that_is_harmless() -> None:
    """Routing from 5.0 to 3.1.1 drops the properties of a message and nothing else."""
    properties = msgspec.structs.replace(EMPTY, content_type="text/plain", user_properties=(("a", "b"),))
    message = Publish(topic="a/b", payload=b"x", qos=1, packet_id=7, properties=properties)
    [read] = Decoder(version=Version.V311).feed(encode(message, Version.V311))
    assert read == msgspec.structs.replace(message, properties=EMPTY)


def test_a_311_client_disconnects_without_a_code() -> None:
    """DISCONNECT in 3.1.1 is two bytes."""
    assert encode(Disconnect(), Version.V311) == b"\xe0\x00"
