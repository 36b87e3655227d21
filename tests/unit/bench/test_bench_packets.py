"""What the generator writes before the clock starts is what a device would send, and what it expects back is exact."""

import time

import pytest

from edge_protocol.envelope import AgeLimits, open_envelope
from edge_protocol.envelope_keys import Suite, new_open_key
from edge_protocol.events import decode_event
from edge_protocol.keys import new_signing_key
from edge_protocol.payload import Limits
from gateway.bench.fleet import BenchDevice
from gateway.bench.load import Load
from gateway.bench.packets import Stream, prepare, stream_of
from gateway.mqtt.codec import Decoder, Version, puback_ok

KEY = new_signing_key()
DEVICE = BenchDevice(id="bench-1", pem=KEY.pem().decode(), audience="a", signing_key={})


def publishes(data, version=Version.V5):
    return list(Decoder(version=version).feed(data))


def test_identifiers_run_from_one_to_the_window_and_around():
    """Publish n has identifier n modulo window, plus one; pieces that wrap are whole."""
    packets = prepare(DEVICE, Load(window=3, size=20), None, None, Stream("s", 0))
    taken = [publish.packet_id for _ in range(4) for publish in publishes(packets.take(2))]
    assert taken == [1, 2, 3, 1, 2, 3, 1, 2]
    assert packets.taken == 8


def test_only_the_acknowledgements_due_next_are_taken_for_them():
    """Another order, another identifier or a reason code is not what is expected."""
    packets = prepare(DEVICE, Load(window=3), None, None, Stream("s", 0))
    packets.acknowledged = 2
    assert packets.are_next(puback_ok(3) + puback_ok(1))
    assert packets.next_id == 3
    assert not packets.are_next(puback_ok(1))
    assert not packets.are_next(b"\x40\x03\x00\x03"), "a PUBACK with a reason code"


def test_a_bounded_load_ends():
    """What is left never falls below zero, and is endless without a bound."""
    packets = prepare(DEVICE, Load(window=4), 5, None, Stream("s", 0))
    packets.take(4)
    assert packets.left == 1
    assert prepare(DEVICE, Load(), None, None, Stream("s", 0)).left > 1 << 60


def test_plain_events_have_the_size_asked_for_and_no_identifier_at_qos_0():
    """The data has so many bytes, on the topic of the device, or on the one that is named."""
    (publish,) = publishes(prepare(DEVICE, Load(size=100, qos=0), 1, None, Stream("s", 0)).take(1))
    assert (publish.topic, publish.qos, publish.packet_id) == ("devices/bench-1/events/bench", 0, 0)
    assert len(publish.payload) == 100
    (publish,) = publishes(prepare(DEVICE, Load(topic="x/y"), 1, None, Stream("s", 0)).take(1))
    assert publish.topic == "x/y"


def test_cloud_events_have_ids_of_their_own():
    """Each publish is a CloudEvent of the device on its untyped topic, with data of the size asked for."""
    load = Load(structured=True, window=2, size=50)
    sent = publishes(prepare(DEVICE, load, 2, None, Stream("s", 0)).take(2))
    assert [publish.topic for publish in sent] == ["devices/bench-1/events"] * 2
    events = [decode_event(each.payload, limits=Limits(), source="/devices/bench-1") for each in sent]
    assert len({event.id for event in events}) == 2
    assert [len(event.payload) for event in events] == [50, 50]


@pytest.mark.parametrize("suite", list(Suite))
def test_envelopes_open_and_continue_the_stream(suite):
    """Each envelope holds the next events of the device's stream, sealed in the suite asked for."""
    open_key = new_open_key(suite)
    stream = Stream(stream_of(DEVICE), 7)
    load = Load(events=3, suite=suite, window=2)
    sent = publishes(prepare(DEVICE, load, 2, open_key.public, stream).take(2))
    assert [publish.topic for publish in sent] == ["devices/bench-1/events"] * 2
    opened = [
        open_envelope(
            publish.payload,
            audience="a",
            device="bench-1",
            open_key={open_key.kid: open_key}.get,
            signing_key={KEY.public.kid: KEY.public}.get,
            limits=Limits(),
            ages=AgeLimits(),
            now_s=time.time(),
        )
        for publish in sent
    ]
    assert [(each.place.first, each.place.settled, len(each.events)) for each in opened] == [(8, 7, 3), (11, 7, 3)]
    assert opened[0].events[0].source == "/devices/bench-1"
