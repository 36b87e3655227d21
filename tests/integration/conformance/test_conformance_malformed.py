"""Packets no client may send: each ends its own connection, in 5.0 with the right DISCONNECT, and no other's.

`CASES` is the table: what is sent after CONNACK, and the code of the DISCONNECT; 3.1.1 closes without a word.
"""

import time

import pytest
from mqtt_wire import block, packet, text, varint

from gateway.mqtt.codec import Disconnect, Publish, ReasonCode, Version

V5, V311 = Version.V5, Version.V311
BOTH = (V311, V5)
MALFORMED, PROTOCOL = ReasonCode.MALFORMED_PACKET, ReasonCode.PROTOCOL_ERROR
ALIAS = ReasonCode.TOPIC_ALIAS_INVALID
ID = b"\0\1"


def publish(topic, *properties, first=0x30, packet_id=b"", payload=b"x", props=None):
    """A PUBLISH by hand; properties only in 5.0."""
    return lambda version: packet(
        first,
        text(topic),
        packet_id,
        (block(*properties) if props is None else props) if version is V5 else b"",
        payload,
    )


def subscribe(*filters, first=0x82, packet_id=ID, properties=(), options=b"\0"):
    """A SUBSCRIBE by hand."""
    return lambda version: packet(
        first, packet_id, block(*properties) if version is V5 else b"", *(text(each) + options for each in filters)
    )


def unsubscribe(*filters, first=0xA2, packet_id=ID):
    """An UNSUBSCRIBE by hand."""
    return lambda version: packet(
        first, packet_id, block() if version is V5 else b"", *(text(each) for each in filters)
    )


def always(data):
    return lambda version: data


CASES = {
    # 2.1: the fixed header
    "packet type 0": (BOTH, always(b"\0\0"), PROTOCOL),
    "flags of PUBACK": (BOTH, always(b"\x41\2\0\1"), MALFORMED),
    "flags of PUBREC": (BOTH, always(b"\x51\2\0\1"), MALFORMED),
    "flags of PUBREL": (BOTH, always(b"\x60\2\0\1"), MALFORMED),
    "flags of PUBCOMP": (BOTH, always(b"\x72\2\0\1"), MALFORMED),
    "flags of SUBSCRIBE": (BOTH, subscribe("a", first=0x80), MALFORMED),
    "flags of UNSUBSCRIBE": (BOTH, unsubscribe("a", first=0xA0), MALFORMED),
    "flags of PINGREQ": (BOTH, always(b"\xc1\0"), MALFORMED),
    "flags of DISCONNECT": (BOTH, always(b"\xe1\0"), MALFORMED),
    "flags of AUTH": ((V5,), always(b"\xf1\0"), MALFORMED),
    "AUTH in 3.1.1": ((V311,), always(b"\xf0\0"), MALFORMED),
    "remaining length of five bytes": (BOTH, always(b"\x30\xff\xff\xff\xff\1"), MALFORMED),
    "remaining length not minimal": (BOTH, always(b"\xc0\x80\0"), MALFORMED),
    "packet over the maximum": (BOTH, always(b"\x30" + varint(64 << 20)), ReasonCode.PACKET_TOO_LARGE),
    # 2.1.2: packets of servers
    "CONNACK from a client": (BOTH, lambda v: packet(0x20, b"\0\0", b"\0" if v is V5 else b""), PROTOCOL),
    "SUBACK from a client": (BOTH, lambda v: packet(0x90, ID, b"\0" if v is V5 else b"", b"\0"), PROTOCOL),
    "UNSUBACK from a client": (BOTH, lambda v: packet(0xB0, ID, b"\0\0" if v is V5 else b""), PROTOCOL),
    "PINGRESP from a client": (BOTH, always(b"\xd0\0"), PROTOCOL),
    # 2.2.1: packet identifiers
    "packet identifier 0 in PUBLISH": (BOTH, publish("a", first=0x32, packet_id=b"\0\0"), PROTOCOL),
    "packet identifier 0 in SUBSCRIBE": (BOTH, subscribe("a", packet_id=b"\0\0"), PROTOCOL),
    "packet identifier 0 in UNSUBSCRIBE": (BOTH, unsubscribe("a", packet_id=b"\0\0"), PROTOCOL),
    "packet identifier 0 in PUBACK": (BOTH, always(b"\x40\2\0\0"), PROTOCOL),
    # 1.5: strings and integers
    "topic name ill-formed": (BOTH, publish(b"a\xc0\xaf"), MALFORMED),
    "topic name with a surrogate": (BOTH, publish(b"a\xed\xa0\x80"), MALFORMED),
    "topic name with NUL": (BOTH, publish(b"a\0b"), MALFORMED),
    "topic name with a control character": (BOTH, publish(b"a\nb"), MALFORMED),
    "topic filter with a control character": (BOTH, subscribe(b"a\x1f"), MALFORMED),
    "topic filter with a control character in UNSUBSCRIBE": (BOTH, unsubscribe(b"a\x7f"), MALFORMED),
    "topic filter ill-formed": (BOTH, subscribe(b"\xff"), MALFORMED),
    "topic filter with NUL": (BOTH, subscribe(b"a\0"), MALFORMED),
    "topic filter ill-formed in UNSUBSCRIBE": (BOTH, unsubscribe(b"\xff"), MALFORMED),
    "property length not minimal": ((V5,), publish("a", props=b"\x80\0"), MALFORMED),
    "string over the end of the packet": (BOTH, always(b"\x30\4\0\7ab"), MALFORMED),
    "bytes behind the last field": (BOTH, always(b"\xc0\1x"), MALFORMED),
    # 2.2.2: properties
    "unknown property": ((V5,), publish("a", b"\x7f\0"), MALFORMED),
    "property of another packet": ((V5,), publish("a", b"\x21\0\1"), MALFORMED),
    "payload format twice": ((V5,), publish("a", b"\1\1\1\1"), PROTOCOL),
    "message expiry twice": ((V5,), publish("a", b"\2\0\0\0\1" * 2), PROTOCOL),
    "content type twice": ((V5,), publish("a", b"\3\0\1a" * 2), PROTOCOL),
    "response topic twice": ((V5,), publish("a", b"\x08\0\1a" * 2), PROTOCOL),
    "correlation data twice": ((V5,), publish("a", b"\x09\0\1a" * 2), PROTOCOL),
    "topic alias twice": ((V5,), publish("a", b"\x23\0\1" * 2), PROTOCOL),
    "payload format 2": ((V5,), publish("a", b"\1\2"), PROTOCOL),
    "content type ill-formed": ((V5,), publish("a", b"\3\0\1\xff"), MALFORMED),
    "response topic ill-formed": ((V5,), publish("a", b"\x08\0\1\xff"), MALFORMED),
    "response topic with a wildcard": ((V5,), publish("a", b"\x08\0\1#"), PROTOCOL),
    "user property ill-formed": ((V5,), publish("a", b"\x26\0\1\xff\0\1v"), MALFORMED),
    "subscription identifier from a client": ((V5,), publish("a", b"\x0b\1"), PROTOCOL),
    # 3.3: PUBLISH
    "QoS 3": (BOTH, publish("a", first=0x36, packet_id=ID), MALFORMED),
    "DUP at QoS 0": (BOTH, publish("a", first=0x38), MALFORMED),
    "topic name with +": (BOTH, publish("a/+"), MALFORMED),
    "topic name with #": (BOTH, publish("a/#"), MALFORMED),
    "empty topic name": (BOTH, publish(""), PROTOCOL),
    "topic alias 0": ((V5,), publish("a", b"\x23\0\0"), ALIAS),
    "topic alias over the maximum": ((V5,), publish("a", b"\x23\xff\xff"), ALIAS),
    "topic alias that was not set": ((V5,), publish("", b"\x23\0\1"), PROTOCOL),
    # 3.4 to 3.7: acknowledgements
    "reason of PUBACK that is undefined": ((V5,), always(b"\x40\3\0\1\x7f"), PROTOCOL),
    "reason of PUBREC that is undefined": ((V5,), always(b"\x50\3\0\1\x7f"), PROTOCOL),
    "reason of PUBREL that is undefined": ((V5,), always(b"\x62\3\0\1\x80"), PROTOCOL),
    "reason of PUBCOMP that is undefined": ((V5,), always(b"\x70\3\0\1\x80"), PROTOCOL),
    "reason in PUBACK of 3.1.1": ((V311,), always(b"\x40\3\0\1\0"), MALFORMED),
    # 3.8 and 3.10: SUBSCRIBE, UNSUBSCRIBE, and the grammar of 4.7 and 4.8.2
    "SUBSCRIBE without a filter": (BOTH, subscribe(), PROTOCOL),
    "UNSUBSCRIBE without a filter": (BOTH, unsubscribe(), PROTOCOL),
    "reserved subscription options": (BOTH, subscribe("a", options=b"\xc0"), MALFORMED),
    "options of 5.0 in 3.1.1": ((V311,), subscribe("a", options=b"\4"), MALFORMED),
    "subscription with QoS 3": (BOTH, subscribe("a", options=b"\3"), PROTOCOL),
    "retain handling 3": ((V5,), subscribe("a", options=b"\x30"), PROTOCOL),
    "no local on a shared subscription": ((V5,), subscribe("$share/g/a", options=b"\4"), PROTOCOL),
    "subscription identifier 0": ((V5,), subscribe("a", properties=(b"\x0b\0",)), PROTOCOL),
    "subscription identifier twice": ((V5,), subscribe("a", properties=(b"\x0b\1", b"\x0b\2")), PROTOCOL),
    "empty topic filter": (BOTH, subscribe(""), MALFORMED),
    "# before the end": (BOTH, subscribe("a/#/b"), MALFORMED),
    "# beside other characters": (BOTH, subscribe("a/b#"), MALFORMED),
    "+ beside other characters": (BOTH, subscribe("a/b+/c"), MALFORMED),
    "+ beside #": (BOTH, subscribe("a/+#"), MALFORMED),
    "share without a name": (BOTH, subscribe("$share//a"), PROTOCOL),
    "share without a filter": (BOTH, subscribe("$share/g"), PROTOCOL),
    "share with an empty filter": (BOTH, subscribe("$share/g/"), PROTOCOL),
    "share name with a wildcard": (BOTH, subscribe("$share/g+/a"), PROTOCOL),
    # 3.14 and 3.15
    "reason of DISCONNECT that is undefined": ((V5,), always(b"\xe0\1\3"), PROTOCOL),
    "session expiry in DISCONNECT that CONNECT had not": ((V5,), always(b"\xe0\7\0\5\x11\0\0\0\1"), PROTOCOL),
    "server reference in DISCONNECT": ((V5,), always(packet(0xE0, b"\0", block(b"\x1c\0\1a"))), None),
    "DISCONNECT of 3.1.1 with a body": ((V311,), always(b"\xe0\1\0"), MALFORMED),
    "AUTH without a method": ((V5,), always(b"\xf0\2\x19\0"), PROTOCOL),
}
PAIRS = [pytest.param(version, case, id=f"{case}-{version.name}") for case, row in CASES.items() for version in row[0]]


@pytest.mark.parametrize(("version", "case"), PAIRS)
def test_malformed(gateway, name, version, case):
    """The connection ends, in 5.0 with one DISCONNECT and the code; another client is served within a second."""
    other, wire = gateway.client(f"{name}o", version), gateway.client(name, version)
    _, data, code = CASES[case]
    wire.send(data(version))
    last = wire.ended()
    if version is V311:
        assert last == []
    else:
        assert [type(each) for each in last] == [Disconnect]
        assert code in {None, last[0].reason_code}
        assert last[0].reason_code >= 0x80
        assert last[0].properties.session_expiry_interval is None
    start = time.monotonic()
    other.ping()
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("version", BOTH)
def test_good_packets_before_a_bad_one_count(gateway, name, version):
    """What came whole before the broken packet is processed, what comes behind it is not."""
    watcher, wire = gateway.client(f"{name}w", version), gateway.client(name, version)
    watcher.subscribe(f"{name}/#")
    good, late = (publish(f"{name}/{which}")(version) for which in ("good", "late"))
    wire.send(good + b"\xc1\0" + late)
    wire.ended()
    assert [message.topic for message in watcher.received()] == [f"{name}/good"]


@pytest.mark.parametrize("version", BOTH)
def test_longest_topic(gateway, name, version):
    """A topic of 65,535 bytes is carried; no string can be longer."""
    wire = gateway.client(name, version)
    wire.subscribe(f"{name}/#")
    topic = f"{name}/".ljust(65_535, "x")
    wire.publish(topic, b"long")
    assert [(message.topic, message.payload) for message in wire.received()] == [(topic, b"long")]


@pytest.mark.parametrize("version", BOTH)
def test_strings_are_taken_as_they_are(gateway, name, version):
    """U+FEFF stays, nothing is normalised: composed and decomposed letters are two topics."""
    wire = gateway.client(name, version)
    topics = [f"{name}/\ufeffbom", f"{name}/\u00e9", f"{name}/e\u0301", f"{name}/A", f"{name}/a", f"{name}/\U0001f600"]
    for topic in topics:
        wire.subscribe(topic)
    for topic in topics:
        wire.send(Publish(topic=topic, payload=topic.encode()))
    assert [(message.topic, message.payload) for message in wire.received()] == [(t, t.encode()) for t in topics]
