"""Limits that one side names and the other keeps: Receive Maximum, Maximum Packet Size, topic aliases (5.0; 3.3.4, 4.9)."""

import pytest
from mqtt_wire import varint

from gateway.mqtt.codec import (
    EMPTY,
    Properties,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    ReasonCode,
    Version,
    encode,
)


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("maximum", [1, 2, 5])
def test_receive_maximum_of_the_client(gateway, name, qos, maximum):
    """No more than so many are on their way; each acknowledgement, for QoS 2 PUBCOMP, lets the next one go, in order."""
    wire, other = gateway.client(name, properties=Properties(receive_maximum=maximum)), gateway.client(f"{name}o")
    wire.subscribe(name, qos=2)
    for n in range(12):
        other.publish(name, b"%d" % n, qos=qos)
    on_their_way = [wire.take(Publish) for _ in range(maximum)]
    wire.ping()
    assert not wire.packets
    found = []
    while on_their_way:
        message = on_their_way.pop(0)
        found.append(message.payload)
        if qos == 2:
            wire.send(Pubrec(packet_id=message.packet_id))
            wire.take(Pubrel)
            wire.ping()
            assert not wire.packets  # PUBREC frees nothing
            wire.send(Pubcomp(packet_id=message.packet_id))
        else:
            wire.send(Puback(packet_id=message.packet_id))
        wire.ping()
        on_their_way += wire.packets
        wire.packets.clear()
        assert len(on_their_way) <= maximum
    assert found == [b"%d" % n for n in range(12)]


def test_receive_maximum_and_qos_0(gateway, name):
    """QoS 0 does not count: it may go on while the window is full."""
    wire, other = gateway.client(name, properties=Properties(receive_maximum=1)), gateway.client(f"{name}o")
    wire.subscribe(f"{name}/1", qos=1)
    wire.subscribe(f"{name}/0", qos=0)
    for n in range(3):
        other.publish(f"{name}/1", b"%d" % n)
    other.publish(f"{name}/0", b"zero")
    found = wire.payloads()
    assert [payload for payload in found if payload != b"zero"] == [b"0", b"1", b"2"]
    assert b"zero" in found


@pytest.mark.parametrize("version", list(Version))
def test_large_queue_is_sent_whole(gateway, name, version):
    """Far more than is written at once goes to a client that reads and says nothing: nothing has to wake the server."""
    lasting = {
        "clean_start": False,
        "properties": Properties(session_expiry_interval=60) if version is Version.V5 else EMPTY,
    }
    wire, other = gateway.client(name, version, **lasting), gateway.client(f"{name}o")
    wire.subscribe(name, qos=1)
    wire.disconnect()
    payloads = [b"%30000d" % n for n in range(100)]
    for payload in payloads:
        other.publish(name, payload, qos=1)
    wire = gateway.client(name, version, **lasting)
    assert [wire.take(Publish).payload for _ in payloads] == payloads


def test_receive_maximum_holds_after_reconnect(gateway, name):
    """The maximum of the new connection holds for what comes again, too."""
    lasting = Properties(session_expiry_interval=600)
    wire, other = gateway.client(name, properties=lasting), gateway.client(f"{name}o")
    wire.subscribe(name, qos=1)
    for n in range(4):
        other.publish(name, b"%d" % n)
    for _ in range(4):
        wire.take(Publish)
    wire.drop()
    both = Properties(session_expiry_interval=600, receive_maximum=2)
    wire = gateway.client(name, clean_start=False, properties=both)
    assert [wire.take(Publish).payload for _ in range(2)] == [b"0", b"1"]
    wire.ping()
    assert not wire.packets


def test_receive_maximum_of_the_server(gateway, name):
    """As many QoS 2 publishes as announced may be unreleased; one more is 0x93."""
    wire = gateway.client(name)
    maximum = wire.connack.properties.receive_maximum or 65535
    wire.send(*(Publish(topic=name, payload=b"", qos=2, packet_id=n + 1) for n in range(maximum)))
    for n in range(maximum):
        assert wire.take(Pubrec).packet_id == n + 1
    wire.ping()
    wire.send(Publish(topic=name, payload=b"", qos=2, packet_id=maximum + 1))
    assert wire.verdict() == [ReasonCode.RECEIVE_MAXIMUM_EXCEEDED]


def test_released_identifiers_make_room(gateway, name):
    """PUBCOMP, and a PUBREC that refuses, give the place back."""
    wire = gateway.client(name)
    maximum = wire.connack.properties.receive_maximum or 65535
    for _ in range(2):
        wire.send(*(Publish(topic=name, payload=b"", qos=2, packet_id=n + 1) for n in range(maximum)))
        for _ in range(maximum):
            wire.take(Pubrec)
        wire.send(*(Pubrel(packet_id=n + 1) for n in range(maximum)))
        for _ in range(maximum):
            wire.take(Pubcomp)
    for _ in range(maximum + 1):
        assert wire.publish("test/nopublish", b"", qos=2).reason_code == ReasonCode.NOT_AUTHORIZED


def test_the_same_qos_2_message_counts_once(gateway, name):
    """A PUBLISH again, before its PUBREL, takes no second place."""
    wire = gateway.client(name)
    maximum = wire.connack.properties.receive_maximum or 65535
    for n in range(maximum + 2):
        wire.send(Publish(topic=name, payload=b"", qos=2, packet_id=1, dup=n > 0))
        assert wire.take(Pubrec).packet_id == 1
    wire.ping()


def test_maximum_packet_size_of_the_client(gateway, name):
    """A message larger than the client accepts is not sent, as if it had been: the next one comes, and at QoS 1 and 2 too."""
    wire, other = gateway.client(name, properties=Properties(maximum_packet_size=100)), gateway.client(f"{name}o")
    wire.subscribe(name, qos=2)
    room = 100 - len(encode(Publish(topic=name, payload=b"", qos=2, packet_id=1), Version.V5))
    for qos in (0, 1, 2):
        for size in (room - 1, room, room + 3):
            other.publish(name, b"x" * size, qos=qos)
    sizes = [(message.qos, len(message.payload)) for message in wire.received()]
    assert sizes == [(qos, size) for qos in (0, 1, 2) for size in (room - 1, room)]


def test_maximum_packet_size_of_the_server(gateway, name):
    """A packet over the announced size is refused by its length, before it has arrived, with 0x95."""
    wire = gateway.client(name)
    maximum = wire.connack.properties.maximum_packet_size
    assert maximum is not None
    wire.send(b"\x30" + varint(maximum - 3))  # one byte more, with four of header
    assert wire.verdict() == [ReasonCode.PACKET_TOO_LARGE]


def test_topic_alias_of_the_client(gateway, name):
    """An alias from 1 to the maximum stands for the topic it was set with, and may be set anew."""
    wire, watcher = gateway.client(name), gateway.client(f"{name}w")
    watcher.subscribe(f"{name}/#", qos=1)
    maximum = wire.connack.properties.topic_alias_maximum
    assert maximum
    for alias in (1, maximum):
        for topic in ("a", "", "b", ""):
            wire.publish(topic and f"{name}/{topic}", properties=Properties(topic_alias=alias))
    topics = [message.topic[-1] for message in watcher.received()]
    assert topics == ["a", "a", "b", "b"] * 2


def test_topic_alias_of_the_client_is_its_own(gateway, name):
    """Aliases of two connections, and those of both directions, have nothing to do with each other."""
    first, second = gateway.client(name), gateway.client(f"{name}2")
    first.subscribe(f"{name}/#")
    first.publish(f"{name}/1", properties=Properties(topic_alias=1))
    second.publish(f"{name}/2", properties=Properties(topic_alias=1))
    first.publish("", properties=Properties(topic_alias=1))
    assert [message.topic[-1] for message in first.received()] == ["1", "2", "1"]


def test_alias_is_not_passed_on(gateway, name):
    """A subscriber that takes no aliases gets the topic's name."""
    wire, watcher = gateway.client(name), gateway.client(f"{name}w")
    watcher.subscribe(name)
    for _ in range(2):
        wire.publish(name, properties=Properties(topic_alias=3))
    assert [(m.topic, m.properties.topic_alias) for m in watcher.received()] == [(name, None)] * 2


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_topic_alias_of_the_server(gateway, name, qos):
    """To a client that takes aliases: the first message sets one, the next ones use it, never more than it takes."""
    wire, other = gateway.client(name, properties=Properties(topic_alias_maximum=1)), gateway.client(f"{name}o")
    wire.subscribe(f"{name}/#", qos=2)
    for topic in ("a", "a", "b", "a"):
        other.publish(f"{name}/{topic}", topic.encode(), qos=qos)
    other.ping()
    aliases, topics = {}, []
    for message in wire.received():
        alias = message.properties.topic_alias
        assert alias in {None, 1}
        if alias and message.topic:
            aliases[alias] = message.topic
        topics.append(message.topic or aliases[alias])
        assert topics[-1] == f"{name}/{message.payload.decode()}"
    assert [topic[-1] for topic in topics] == ["a", "a", "b", "a"]
    assert aliases


def test_topic_alias_saves_the_name(gateway, name):
    """The second message of a topic goes without its name."""
    wire, other = gateway.client(name, properties=Properties(topic_alias_maximum=5)), gateway.client(f"{name}o")
    wire.subscribe(name, qos=2)
    for qos in (0, 1, 2):
        other.publish(name, qos=qos)
    assert [(m.topic, m.properties.topic_alias) for m in wire.received()] == [(name, 1), ("", 1), ("", 1)]


def test_aliases_of_the_server_end_with_the_connection(gateway, name):
    """What comes after a reconnect, again or new, has its topic's name."""
    said = Properties(topic_alias_maximum=5, session_expiry_interval=600)
    wire, other = gateway.client(name, properties=said), gateway.client(f"{name}o")
    wire.subscribe(name, qos=1)
    for _ in range(2):
        other.publish(name)
        wire.take(Publish)
    wire.drop()
    other.publish(name)
    wire = gateway.client(name, clean_start=False, properties=Properties(session_expiry_interval=600))
    assert [(m.topic, m.properties.topic_alias) for m in wire.received()] == [(name, None)] * 3


def test_message_expiry(gateway, name):
    """A message that waits for its subscriber beyond its expiry is not delivered."""
    wire, other = gateway.client(name, properties=Properties(receive_maximum=1)), gateway.client(f"{name}o")
    wire.subscribe(name, qos=1)
    other.publish(name, b"first")
    blocking = wire.take(Publish)
    other.publish(name, b"short", properties=Properties(message_expiry_interval=1))
    other.publish(name, b"long", properties=Properties(message_expiry_interval=100))
    with pytest.raises(TimeoutError):
        wire.read(1.5)  # the interval itself
    wire.acknowledge(blocking)
    (message,) = wire.received()
    assert message.payload == b"long"
    assert message.properties.message_expiry_interval in range(95, 100)


def test_disconnect_fits(gateway, name):
    """The Reason String of a DISCONNECT is left out where it would exceed the client's Maximum Packet Size."""
    wire = gateway.client(name, properties=Properties(maximum_packet_size=60))
    wire.send(b"\x30" + varint(10 << 20))
    (last,) = wire.ended()
    assert (last.reason_code, len(encode(last, Version.V5)) <= 60) == (ReasonCode.PACKET_TOO_LARGE, True)
    talkative = gateway.client(name)
    talkative.send(b"\x30" + varint(10 << 20))
    (last,) = talkative.ended()
    assert last.properties.reason_string
    assert len(encode(last, Version.V5)) > 60
