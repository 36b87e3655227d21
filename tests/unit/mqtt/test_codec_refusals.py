"""Every way to break MQTT, in bytes and in packets, and the sentence that refuses it."""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import pytest

from gateway.mqtt.codec import (
    EMPTY,
    Auth,
    CodecError,
    Connack,
    Connect,
    Decoder,
    Disconnect,
    Packet,
    Puback,
    Publish,
    ReasonCode,
    Rule,
    Suback,
    Subscribe,
    Subscription,
    Unsubscribe,
    Version,
    Will,
    encode,
)

V311, V5 = Version.V311, Version.V5
NAME = b"\x00\x04MQTT"
NO_PROPERTIES = b"\x00"


def text(value: bytes) -> bytes:
    return len(value).to_bytes(2) + value


def block(properties: bytes) -> bytes:
    assert len(properties) < 128
    return bytes([len(properties)]) + properties


def packet(first: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    assert len(body) < 128
    return bytes([first, len(body)]) + body


def connect_311(flags: int = 2, payload: bytes = text(b"c"), name: bytes = NAME, level: int = 4) -> bytes:
    return packet(0x10, name, bytes([level, flags, 0, 60]), payload)


def connect_5(flags: int = 2, properties: bytes = b"", payload: bytes = text(b"c")) -> bytes:
    return packet(0x10, NAME, bytes([5, flags, 0, 60]), block(properties), payload)


def will_5(properties: bytes = b"", topic: bytes = b"w") -> bytes:
    return connect_5(flags=0x06, payload=text(b"c") + block(properties) + text(topic) + text(b"p"))


def publish_5(properties: bytes, topic: bytes = b"t") -> bytes:
    return packet(0x30, text(topic), block(properties), b"payload")


def subscribe_5(topic_filter: bytes, options: int = 0, properties: bytes = b"") -> bytes:
    return packet(0x82, b"\x00\x01", block(properties), text(topic_filter), bytes([options]))


def subscribe_311(topic_filter: bytes, options: int = 0) -> bytes:
    return packet(0x82, b"\x00\x01", text(topic_filter), bytes([options]))


# What is refused before or in CONNECT: (bytes, answer in, message)
OPENINGS = [
    (b"\xc0\x00", None, "first packet is not CONNECT [MQTT-3.1.0-1]"),
    (b"\x00", None, "first packet is not CONNECT [MQTT-3.1.0-1]"),
    (b"GET / HTTP/1.1", None, "first packet is not CONNECT [MQTT-3.1.0-1]"),
    (b"\x16\x03\x01", None, "reserved bits of the fixed header are wrong: 0x6 in CONNECT [MQTT-2.1.3-1; 3.1.1: MQTT-2.2.2-2]"),
    (b"\x10\xff\xff\xff\xff", None, "remaining length over 4 bytes [section 2.1.4; 3.1.1: section 2.2.3]"),
    (b"\x10\x8a\x00", None, "variable byte integer not in the fewest bytes: remaining length [MQTT-1.5.5-1; 3.1.1: section 2.2.3]"),
    (b"\x10\xff\xff\x7f", None, "packet over the largest accepted: 2097155 bytes, limit 16384 [section 3.2.2.3.6]"),
    (b"\x10\x00", None, "packet ends inside a field: 2 bytes wanted at byte 0 of 0 [section 2.1.4; 3.1.1: section 2.2.3]"),
    (connect_311(name=b"\x00\x04MQtt"), None, "protocol name is not MQTT [MQTT-3.1.2-1]"),
    (connect_311(name=b"\x00\x04\xff\xff\xff\xff"), None, "protocol name is not MQTT [MQTT-3.1.2-1]"),
    (connect_311(name=b"\x00\x06MQIsdp", level=3), V311, "protocol level is neither 4 nor 5: level 3 [MQTT-3.1.2-2]"),
    (connect_311(level=3), V311, "protocol level is neither 4 nor 5: level 3 [MQTT-3.1.2-2]"),
    (connect_311(level=0x84), V311, "protocol level is neither 4 nor 5: level 132 [MQTT-3.1.2-2]"),
    (connect_311(level=6), V311, "protocol level is neither 4 nor 5: level 6 [MQTT-3.1.2-2]"),
    (connect_311(flags=3), V311, "reserved connect flag is set [MQTT-3.1.2-3]"),
    (connect_5(flags=3), V5, "reserved connect flag is set [MQTT-3.1.2-3]"),
    (connect_311(flags=0x0A), V311, "will QoS without a will [MQTT-3.1.2-11; 3.1.1: MQTT-3.1.2-13]"),
    (connect_5(flags=0x12), V5, "will QoS without a will [MQTT-3.1.2-11; 3.1.1: MQTT-3.1.2-13]"),
    (connect_311(flags=0x22), V311, "will retain without a will [MQTT-3.1.2-13; 3.1.1: MQTT-3.1.2-15]"),
    (connect_311(0x1E, text(b"c") + text(b"w") + text(b"p")), V311, "will QoS 3 [MQTT-3.1.2-12; 3.1.1: MQTT-3.1.2-14]"),
    (connect_311(0x06, text(b"c") + text(b"") + text(b"p")), V311, "empty topic name [MQTT-4.7.3-1]"),
    (connect_311(0x06, text(b"c") + text(b"a/+") + text(b"p")), V311, "wildcard in a topic name [MQTT-3.3.2-2]"),
    (will_5(topic=b"#"), V5, "wildcard in a topic name [MQTT-3.3.2-2]"),
    (connect_311(0x42, text(b"c") + text(b"pw")), V311, "password without user name in 3.1.1 [MQTT-3.1.2-22]"),
    (connect_311(0x00, text(b"")), V311, "empty client identifier without clean session in 3.1.1 [MQTT-3.1.3-8]"),
    (connect_311(payload=text(b"c") + b"x"), V311, "bytes after the last field: 1 of 14 [section 2.1.4; 3.1.1: section 2.2.3]"),
    (connect_311(0x82), V311, "packet ends inside a field: 2 bytes wanted at byte 13 of 13 [section 2.1.4; 3.1.1: section 2.2.3]"),
    (connect_311(payload=text(b"\xed\xa0\x80")), V311, "string is not well-formed UTF-8: at byte 0 [MQTT-1.5.4-1; 3.1.1: MQTT-1.5.3-1]"),
    (connect_311(payload=text(b"a\xc0\x80")), V311, "string is not well-formed UTF-8: at byte 1 [MQTT-1.5.4-1; 3.1.1: MQTT-1.5.3-1]"),
    (connect_5(payload=text(b"a\0b")), V5, "string holds U+0000 [MQTT-1.5.4-2; 3.1.1: MQTT-1.5.3-2]"),
    (connect_5(payload=text(b"a\x7f")), V5, "control character in a name: U+007F [section 1.5.4; 3.1.1: section 1.5.3]"),
    (connect_5(properties=b"\x16\x00\x01x"), V5, "authentication data without a method [section 3.1.2.11.10]"),
    (connect_5(properties=b"\x21\x00\x00"), V5, "receive maximum 0: receive_maximum in CONNECT [section 3.1.2.11.3]"),
    (connect_5(properties=b"\x27\x00\x00\x00\x00"), V5, "maximum packet size 0: maximum_packet_size in CONNECT [section 3.1.2.11.4]"),
    (connect_5(properties=b"\x17\x02"), V5, "property must be 0 or 1: request_problem_information in CONNECT [section 2.2.2.2]"),
    (connect_5(properties=b"\x19\xff"), V5, "property must be 0 or 1: request_response_information in CONNECT [section 2.2.2.2]"),
    (connect_5(properties=b"\x21\x00\x01\x21\x00\x01"), V5, "property more than once: receive_maximum in CONNECT [section 2.2.2.2]"),
    (connect_5(properties=b"\x18\x00\x00\x00\x01"), V5, "property not allowed in the packet: will_delay_interval in CONNECT [section 2.2.2.2]"),
    (connect_5(properties=b"\x7f"), V5, "unknown property identifier: 0x7F in CONNECT [section 2.2.2.2]"),
    (connect_5(properties=b"\xa1\x00\x00\x01"), V5, "variable byte integer not in the fewest bytes [MQTT-1.5.5-1; 3.1.1: section 2.2.3]"),
    (connect_5(properties=b"\x80\x80\x80\x80\x01"), V5, "variable byte integer over 4 bytes [section 1.5.5]"),
    (connect_5(properties=b"\x21\x00"), V5, "packet ends inside a field: 2 bytes wanted at byte 1 of 2 [section 2.1.4; 3.1.1: section 2.2.3]"),
    (will_5(b"\x01\x02"), V5, "property must be 0 or 1: payload_format_indicator in a will [section 2.2.2.2]"),
    (will_5(b"\x08\x00\x03a/#"), V5, "response topic is empty or holds a wildcard: response_topic in a will [MQTT-3.3.2-14]"),
    (will_5(b"\x23\x00\x01"), V5, "property not allowed in the packet: topic_alias in a will [section 2.2.2.2]"),
]  # fmt: skip

# What a server refuses of a connected client: (versions, bytes, message)
FROM_CLIENTS = [
    ((V311, V5), b"\x00", "reserved packet type: 0 [section 2.1.2]"),
    ((V311,), b"\xf0", "reserved packet type: 15 [section 2.1.2]"),
    ((V311, V5), b"\x10", "second CONNECT on a connection [MQTT-3.1.0-2]"),
    ((V311, V5), b"\x20", "packet that the peer never sends: CONNACK from a client [section 2.1.2]"),
    ((V311, V5), b"\x90", "packet that the peer never sends: SUBACK from a client [section 2.1.2]"),
    ((V311, V5), b"\xb0", "packet that the peer never sends: UNSUBACK from a client [section 2.1.2]"),
    ((V311, V5), b"\xd0", "packet that the peer never sends: PINGRESP from a client [section 2.1.2]"),
    ((V311, V5), b"\x36", "QoS 3 [MQTT-3.3.1-4]"),
    ((V311, V5), b"\x38", "DUP at QoS 0 [MQTT-3.3.1-2]"),
    *(
        ((V311, V5), bytes([first]), f"reserved bits of the fixed header are wrong: 0x{first & 15:X} in {name} [MQTT-2.1.3-1; 3.1.1: MQTT-2.2.2-2]")
        for first, name in [(0x41, "PUBACK"), (0x52, "PUBREC"), (0x60, "PUBREL"), (0x71, "PUBCOMP"), (0x80, "SUBSCRIBE"),
                            (0x83, "SUBSCRIBE"), (0xA0, "UNSUBSCRIBE"), (0xC1, "PINGREQ"), (0xE8, "DISCONNECT")]
    ),
    ((V5,), b"\xf1", "reserved bits of the fixed header are wrong: 0x1 in AUTH [MQTT-2.1.3-1; 3.1.1: MQTT-2.2.2-2]"),
    ((V311, V5), packet(0x30, b"\x00"), "packet ends inside a field: topic name or packet identifier in 1 bytes [section 2.1.4; 3.1.1: section 2.2.3]"),
    ((V311, V5), packet(0x30, b"\x00\x05a"), "packet ends inside a field: topic name or packet identifier in 3 bytes [section 2.1.4; 3.1.1: section 2.2.3]"),
    ((V311, V5), packet(0x32, text(b"a"), b"\x00"), "packet ends inside a field: topic name or packet identifier in 4 bytes [section 2.1.4; 3.1.1: section 2.2.3]"),
    ((V5,), packet(0x32, text(b"a"), b"\x00\x01"), "packet ends inside a field: 1 bytes wanted at byte 5 of 5 [section 2.1.4; 3.1.1: section 2.2.3]"),
    ((V311, V5), packet(0x32, text(b"a"), b"\x00\x00", NO_PROPERTIES), "packet identifier 0 [MQTT-2.2.1-3; 3.1.1: MQTT-2.3.1-1]"),
    ((V311, V5), packet(0x30, text(b"a/+"), NO_PROPERTIES), "wildcard in a topic name [MQTT-3.3.2-2]"),
    ((V311, V5), packet(0x30, text(b"a#b"), NO_PROPERTIES), "wildcard in a topic name [MQTT-3.3.2-2]"),
    ((V311, V5), packet(0x30, text(b"a\0"), NO_PROPERTIES), "string holds U+0000 [MQTT-1.5.4-2; 3.1.1: MQTT-1.5.3-2]"),
    ((V311, V5), packet(0x30, text(b"a\xc2\x9f"), NO_PROPERTIES), "control character in a name: U+009F [section 1.5.4; 3.1.1: section 1.5.3]"),
    ((V311, V5), packet(0x30, text(b"\xff"), NO_PROPERTIES), "string is not well-formed UTF-8: at byte 0 [MQTT-1.5.4-1; 3.1.1: MQTT-1.5.3-1]"),
    ((V311,), packet(0x30, text(b"")), "empty topic name [MQTT-4.7.3-1]"),
    ((V5,), publish_5(b"", b""), "empty topic name without a topic alias [section 3.3.2.1]"),
    ((V5,), publish_5(b"\x23\x00\x00"), "topic alias 0: topic_alias in PUBLISH [MQTT-3.3.2-8]"),
    ((V5,), publish_5(b"\x23\x00\x01\x23\x00\x01"), "property more than once: topic_alias in PUBLISH [section 2.2.2.2]"),
    ((V5,), publish_5(b"\x0b\x01"), "subscription identifier in a client's PUBLISH [MQTT-3.3.4-6]"),
    ((V5,), publish_5(b"\x0b\x00"), "subscription identifier 0: subscription_identifiers in PUBLISH [section 3.8.2.1.2]"),
    ((V5,), publish_5(b"\x01\x03"), "property must be 0 or 1: payload_format_indicator in PUBLISH [section 2.2.2.2]"),
    ((V5,), publish_5(b"\x08\x00\x01+"), "response topic is empty or holds a wildcard: response_topic in PUBLISH [MQTT-3.3.2-14]"),
    ((V5,), publish_5(b"\x08\x00\x00"), "response topic is empty or holds a wildcard: response_topic in PUBLISH [MQTT-3.3.2-14]"),
    ((V5,), publish_5(b"\x11\x00\x00\x00\x01"), "property not allowed in the packet: session_expiry_interval in PUBLISH [section 2.2.2.2]"),
    ((V5,), packet(0x30, text(b"t"), b"\x05\x01"), "packet ends inside a field: 5 bytes wanted at byte 4 of 5 [section 2.1.4; 3.1.1: section 2.2.3]"),
    ((V311, V5), packet(0x40, b"\x00\x00"), "packet identifier 0 [MQTT-2.2.1-3; 3.1.1: MQTT-2.3.1-1]"),
    ((V311, V5), packet(0x62, b"\x00"), "packet ends inside a field: 2 bytes wanted at byte 0 of 1 [section 2.1.4; 3.1.1: section 2.2.3]"),
    ((V311,), packet(0x40, b"\x00\x01\x00"), "bytes after the last field: 1 of 3 [section 2.1.4; 3.1.1: section 2.2.3]"),
    ((V5,), packet(0x40, b"\x00\x01\x00\x00\x00"), "bytes after the last field: 1 of 5 [section 2.1.4; 3.1.1: section 2.2.3]"),
    ((V5,), packet(0x40, b"\x00\x01\x11"), "reason code is not defined for the packet and its sender: 0x11 in PUBACK [section 2.4]"),
    ((V5,), packet(0x62, b"\x00\x01\x80"), "reason code is not defined for the packet and its sender: 0x80 in PUBREL [section 2.4]"),
    ((V311, V5), packet(0x82, b"\x00\x00", NO_PROPERTIES), "packet identifier 0 [MQTT-2.2.1-3; 3.1.1: MQTT-2.3.1-1]"),
    ((V311,), packet(0x82, b"\x00\x01"), "SUBSCRIBE without a topic filter [MQTT-3.8.3-2; 3.1.1: MQTT-3.8.3-3]"),
    ((V5,), packet(0x82, b"\x00\x01", NO_PROPERTIES), "SUBSCRIBE without a topic filter [MQTT-3.8.3-2; 3.1.1: MQTT-3.8.3-3]"),
    ((V5,), subscribe_5(b"a", 0x40), "reserved bits of the subscription options are set: 0x40 [MQTT-3.8.3-5; 3.1.1: MQTT-3-8.3-4]"),
    ((V311,), subscribe_311(b"a", 0x04), "reserved bits of the subscription options are set: 0x04 [MQTT-3.8.3-5; 3.1.1: MQTT-3-8.3-4]"),
    ((V311,), subscribe_311(b"a", 3), "subscription with QoS 3 [section 3.8.3.1; 3.1.1: MQTT-3-8.3-4]"),
    ((V5,), subscribe_5(b"a", 3), "subscription with QoS 3 [section 3.8.3.1; 3.1.1: MQTT-3-8.3-4]"),
    ((V5,), subscribe_5(b"a", 0x30), "retain handling 3 [section 3.8.3.1]"),
    ((V5,), subscribe_5(b"$share/g/a", 4), "no local on a shared subscription [MQTT-3.8.3-4]"),
    ((V5,), subscribe_5(b"a", 0, b"\x0b\x00"), "subscription identifier 0: subscription_identifiers in SUBSCRIBE [section 3.8.2.1.2]"),
    ((V5,), subscribe_5(b"a", 0, b"\x0b\x01\x0b\x02"), "property more than once: subscription_identifiers in SUBSCRIBE [section 2.2.2.2]"),
    ((V311,), packet(0xA2, b"\x00\x01"), "UNSUBSCRIBE without a topic filter [MQTT-3.10.3-2]"),
    ((V5,), packet(0xA2, b"\x00\x01", NO_PROPERTIES), "UNSUBSCRIBE without a topic filter [MQTT-3.10.3-2]"),
    ((V311,), packet(0xA2, b"\x00\x01", text(b"a#")), '"#" is not the whole last level of the topic filter [MQTT-4.7.1-1; 3.1.1: MQTT-4.7.1-2]'),
    ((V311, V5), packet(0xC0, b"x"), "bytes after the last field: 1 of 1 [section 2.1.4; 3.1.1: section 2.2.3]"),
    ((V311,), packet(0xE0, b"\x00"), "bytes after the last field: 1 of 1 [section 2.1.4; 3.1.1: section 2.2.3]"),
    ((V5,), packet(0xE0, b"\x8b"), "reason code is not defined for the packet and its sender: 0x8B in DISCONNECT [section 2.4]"),
    ((V5,), packet(0xE0, b"\x00", block(b"\x1c\x00\x01x")), "server reference in a client's DISCONNECT [section 3.14.2.2.5]"),
    ((V5,), packet(0xF0), "reason code is not defined for the packet and its sender: 0x00 in AUTH [section 2.4]"),
    ((V5,), packet(0xF0, b"\x18"), "packet ends inside a field: 1 bytes wanted at byte 1 of 1 [section 2.1.4; 3.1.1: section 2.2.3]"),
    ((V5,), packet(0xF0, b"\x18\x00"), "AUTH without an authentication method [section 3.15.2.2.2]"),
]  # fmt: skip

# Topic filters that both versions refuse: (filter, message)
FILTERS = [
    (b"", "empty topic filter [MQTT-4.7.3-1]"),
    (b"a/#/b", '"#" is not the whole last level of the topic filter [MQTT-4.7.1-1; 3.1.1: MQTT-4.7.1-2]'),
    (b"a/b#", '"#" is not the whole last level of the topic filter [MQTT-4.7.1-1; 3.1.1: MQTT-4.7.1-2]'),
    (b"##", '"#" is not the whole last level of the topic filter [MQTT-4.7.1-1; 3.1.1: MQTT-4.7.1-2]'),
    (b"a+/b", '"+" is not a whole level of the topic filter [MQTT-4.7.1-2; 3.1.1: MQTT-4.7.1-3]'),
    (b"a/+b", '"+" is not a whole level of the topic filter [MQTT-4.7.1-2; 3.1.1: MQTT-4.7.1-3]'),
    (b"++/#", '"+" is not a whole level of the topic filter [MQTT-4.7.1-2; 3.1.1: MQTT-4.7.1-3]'),
    (b"$share/", "shared subscription without a share name [MQTT-4.8.2-1]"),
    (b"$share//a", "shared subscription without a share name [MQTT-4.8.2-1]"),
    (b"$share/g", "shared subscription without a topic filter [MQTT-4.8.2-2]"),
    (b"$share/g/", "shared subscription without a topic filter [MQTT-4.8.2-2]"),
    (b"$share/+/a", "wildcard in a share name [MQTT-4.8.2-2]"),
    (b"$share/g#/a", "wildcard in a share name [MQTT-4.8.2-2]"),
    (b"$share/g/a/#/b", '"#" is not the whole last level of the topic filter [MQTT-4.7.1-1; 3.1.1: MQTT-4.7.1-2]'),
]

# What a client refuses of a server: (versions, bytes, message)
FROM_SERVERS = [
    ((V311, V5), b"\x10", "packet that the peer never sends: CONNECT from a server [section 2.1.2]"),
    ((V311, V5), b"\x82", "packet that the peer never sends: SUBSCRIBE from a server [section 2.1.2]"),
    ((V311, V5), b"\xc0", "packet that the peer never sends: PINGREQ from a server [section 2.1.2]"),
    ((V311,), b"\xe0", "packet that the peer never sends: DISCONNECT from a server [section 2.1.2]"),
    ((V311, V5), packet(0x20, b"\x02\x00", NO_PROPERTIES), "reserved connect acknowledge flags are set: 0x02 [MQTT-3.2.2-1]"),
    ((V311,), packet(0x20, b"\x00\x06"), "reason code is not defined for the packet and its sender: 0x06 in CONNACK [section 2.4]"),
    ((V311,), packet(0x20, b"\x01\x05"), "session present in a refusal [MQTT-3.2.2-6; 3.1.1: MQTT-3.2.2-4]"),
    ((V5,), packet(0x20, b"\x01\x87", NO_PROPERTIES), "session present in a refusal [MQTT-3.2.2-6; 3.1.1: MQTT-3.2.2-4]"),
    ((V5,), packet(0x20, b"\x00\x00", block(b"\x24\x02")), "property must be 0 or 1: maximum_qos in CONNACK [section 2.2.2.2]"),
    ((V5,), packet(0x20, b"\x00\x00", block(b"\x16\x00\x00")), "authentication data without a method [section 3.1.2.11.10]"),
    ((V311,), packet(0x90, b"\x00\x01\x03"), "reason code is not defined for the packet and its sender: 0x03 in SUBACK [section 2.4]"),
    ((V311,), packet(0x90, b"\x00\x01"), "acknowledgement without a reason code: SUBACK [MQTT-3.8.4-6; 3.1.1: MQTT-3.8.4-5]"),
    ((V5,), packet(0xB0, b"\x00\x01\x00"), "acknowledgement without a reason code: UNSUBACK [MQTT-3.8.4-6; 3.1.1: MQTT-3.8.4-5]"),
    ((V5,), packet(0xE0, b"\x8b", block(b"\x11\x00\x00\x00\x01")), "session expiry interval in a server's DISCONNECT [MQTT-3.14.2-2]"),
    ((V5,), packet(0xE0, b"\x04"), "reason code is not defined for the packet and its sender: 0x04 in DISCONNECT [section 2.4]"),
]  # fmt: skip

# What the writer refuses: (packet, version, message)
UNWRITABLE = [
    (Publish(topic="a", payload=b"", qos=1), V5, "packet identifier 0 [MQTT-2.2.1-3; 3.1.1: MQTT-2.3.1-1]"),
    (Publish(topic="a", payload=b"", packet_id=1), V5, "packet identifier at QoS 0 [MQTT-2.2.1-2; 3.1.1: MQTT-2.3.1-5]"),
    (Publish(topic="a", payload=b"", qos=3, packet_id=1), V5, "QoS 3 [MQTT-3.3.1-4]"),
    (Publish(topic="a", payload=b"", dup=True), V311, "DUP at QoS 0 [MQTT-3.3.1-2]"),
    (Publish(topic="a/#", payload=b""), V311, "wildcard in a topic name [MQTT-3.3.2-2]"),
    (Publish(topic="a\0", payload=b""), V311, "string holds U+0000 [MQTT-1.5.4-2; 3.1.1: MQTT-1.5.3-2]"),
    (Publish(topic="a\n", payload=b""), V311, "control character in a name: U+000A [section 1.5.4; 3.1.1: section 1.5.3]"),
    (Publish(topic="\ud800", payload=b""), V311, "string is not well-formed UTF-8: a surrogate [MQTT-1.5.4-1; 3.1.1: MQTT-1.5.3-1]"),
    (Publish(topic="é" * 32768, payload=b""), V311, "string or binary data over 65535 bytes: 65536 bytes [section 1.5.4]"),
    (Puback(packet_id=65536), V311, "integer does not fit its field: 65536 in 2 bytes [section 1.5]"),
    (Puback(packet_id=1, reason_code=ReasonCode.NOT_AUTHORIZED), V311, "MQTT 3.1.1 has no words for this: NOT_AUTHORIZED in PUBACK [MQTT 3.1.1, chapter 3]"),
    (Puback(packet_id=1, reason_code=ReasonCode.BANNED), V5, "reason code is not defined for the packet and its sender: BANNED in PUBACK [section 2.4]"),
    (Disconnect(reason_code=ReasonCode.SERVER_SHUTTING_DOWN), V311, "MQTT 3.1.1 has no words for this: SERVER_SHUTTING_DOWN in DISCONNECT [MQTT 3.1.1, chapter 3]"),
    (Auth(), V311, "MQTT 3.1.1 has no words for this: AUTH [MQTT 3.1.1, chapter 3]"),
    (Auth(reason_code=ReasonCode.RE_AUTHENTICATE), V5, "AUTH without an authentication method [section 3.15.2.2.2]"),
    (Connack(session_present=True, reason_code=ReasonCode.BANNED), V5, "session present in a refusal [MQTT-3.2.2-6; 3.1.1: MQTT-3.2.2-4]"),
    (Subscribe(packet_id=1, subscriptions=()), V5, "SUBSCRIBE without a topic filter [MQTT-3.8.3-2; 3.1.1: MQTT-3.8.3-3]"),
    (Subscribe(packet_id=1, subscriptions=(Subscription(topic_filter="a", retain_handling=3),)), V5, "retain handling 3 [section 3.8.3.1]"),
    (Subscribe(packet_id=1, subscriptions=(Subscription(topic_filter="a", qos=3),)), V5, "subscription with QoS 3 [section 3.8.3.1; 3.1.1: MQTT-3-8.3-4]"),
    (Unsubscribe(packet_id=1, topic_filters=()), V5, "UNSUBSCRIBE without a topic filter [MQTT-3.10.3-2]"),
    (Unsubscribe(packet_id=1, topic_filters=("",)), V5, "empty topic filter [MQTT-4.7.3-1]"),
    (Suback(packet_id=1, reason_codes=()), V5, "acknowledgement without a reason code: SUBACK [MQTT-3.8.4-6; 3.1.1: MQTT-3.8.4-5]"),
    (Connect(version=V311, client_id="", clean_start=False), V311, "empty client identifier without clean session in 3.1.1 [MQTT-3.1.3-8]"),
    (Connect(version=V311, client_id="c", password=b""), V311, "password without user name in 3.1.1 [MQTT-3.1.2-22]"),
    (Connect(version=V311, client_id="c", keep_alive_s=65536), V311, "integer does not fit its field: 65536 in 2 bytes [section 1.5]"),
    (Connect(version=V311, client_id="c", will=Will(topic="", payload=b"")), V311, "empty topic name [MQTT-4.7.3-1]"),
    (Connect(version=V311, client_id="c", will=Will(topic="w", payload=b"", qos=3)), V311, "will QoS 3 [MQTT-3.1.2-12; 3.1.1: MQTT-3.1.2-14]"),
]  # fmt: skip

# Properties that the writer refuses in a PUBLISH: (fields, message)
UNWRITABLE_PROPERTIES = [
    ({"topic_alias": 0}, "topic alias 0: topic_alias in PUBLISH [MQTT-3.3.2-8]"),
    ({"receive_maximum": 5}, "property not allowed in the packet: receive_maximum in PUBLISH [section 2.2.2.2]"),
    ({"message_expiry_interval": 2**32}, "integer does not fit its field: 4294967296 in 4 bytes [section 1.5]"),
    ({"message_expiry_interval": -1}, "integer does not fit its field: -1 in 4 bytes [section 1.5]"),
    ({"subscription_identifiers": (268_435_456,)}, "integer does not fit its field: 268435456 as a variable byte integer [section 1.5]"),
    ({"correlation_data": bytes(65536)}, "string or binary data over 65535 bytes: 65536 bytes [section 1.5.4]"),
]  # fmt: skip


def cases(table: Iterable[tuple[tuple[Version, ...], bytes, str]]) -> list[tuple[Version, bytes, str]]:
    return [(version, wire, message) for versions, wire, message in table for version in versions]


def refusal(decoder: Decoder, wire: bytes) -> str:
    with pytest.raises(CodecError) as refused:
        list(decoder.feed(wire))
    assert refused.value.code is refused.value.rule.code
    return str(refused.value)


@pytest.mark.parametrize(("wire", "answer_in", "message"), OPENINGS)
def test_a_bad_opening_is_refused(wire: bytes, answer_in: Version | None, message: str) -> None:
    """Before and in CONNECT every breach is named, and the decoder knows in which version to answer, if at all."""
    decoder = Decoder()
    assert refusal(decoder, wire) == message
    assert decoder.version is answer_in


@pytest.mark.parametrize(("version", "wire", "message"), cases(FROM_CLIENTS))
def test_a_server_refuses_a_bad_client(version: Version, wire: bytes, message: str) -> None:
    """After CONNECT every breach is named."""
    assert refusal(Decoder(version=version), wire) == message


@pytest.mark.parametrize(("topic_filter", "message"), FILTERS)
def test_a_bad_topic_filter_is_refused(topic_filter: bytes, message: str) -> None:
    """Both versions, SUBSCRIBE and UNSUBSCRIBE, hold filters to one grammar, shared ones included."""
    assert refusal(Decoder(version=V5), subscribe_5(topic_filter)) == message
    assert refusal(Decoder(version=V311), subscribe_311(topic_filter)) == message
    unsubscribe = packet(0xA2, b"\x00\x01", NO_PROPERTIES, text(topic_filter))
    assert refusal(Decoder(version=V5), unsubscribe) == message


@pytest.mark.parametrize(
    "topic_filter",
    ["#", "+", "/", "//", "a", " ", "+/+", "a/+/#", "/#", "$SYS/#", "$share", "$shared/a", "$share/g/#", "$share/g//a"],
)
def test_a_good_topic_filter_is_accepted(topic_filter: str) -> None:
    """What only looks unusual is a filter like any other."""
    [subscribe] = Decoder(version=V5).feed(subscribe_5(topic_filter.encode()))
    assert subscribe.subscriptions == (Subscription(topic_filter=topic_filter),)


@pytest.mark.parametrize(("version", "wire", "message"), cases(FROM_SERVERS))
def test_a_client_refuses_a_bad_server(version: Version, wire: bytes, message: str) -> None:
    """The same codec on the client's side names a server's breaches."""
    assert refusal(Decoder(role="client", version=version), wire) == message


@pytest.mark.parametrize(("value", "version", "message"), UNWRITABLE)
def test_a_bad_packet_is_not_written(value: Packet, version: Version, message: str) -> None:
    """What the other side would refuse, or 3.1.1 cannot say, is not written."""
    with pytest.raises(CodecError) as refused:
        encode(value, version)
    assert str(refused.value) == message


@pytest.mark.parametrize(("fields", "message"), UNWRITABLE_PROPERTIES)
def test_bad_properties_are_not_written(fields: Mapping[str, Any], message: str) -> None:
    """The table of properties binds the writer as it does the reader."""
    value = Publish(topic="a", payload=b"", properties=msgspec.structs.replace(EMPTY, **fields))
    with pytest.raises(CodecError) as refused:
        encode(value, V5)
    assert str(refused.value) == message


def test_every_rule_has_an_example() -> None:
    """No rule stands in the table that is not refused above."""
    messages = [row[-1] for table in (OPENINGS, FROM_CLIENTS, FROM_SERVERS, UNWRITABLE, FILTERS) for row in table]
    assert [rule for rule in Rule if not any(message.startswith(rule.text) for message in messages)] == []


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        (Rule.RESERVED_FLAGS, 0x81),
        (Rule.FIRST_PACKET, 0x82),
        (Rule.PROTOCOL_LEVEL, 0x84),
        (Rule.CLIENT_ID_EMPTY, 0x85),
        (Rule.FILTER_EMPTY, 0x81),
        (Rule.SHARE_NAME_EMPTY, 0x82),
        (Rule.TOPIC_WILDCARD, 0x81),
        (Rule.TOPIC_ALIAS_0, 0x94),
        (Rule.PACKET_TOO_LARGE, 0x95),
    ],
)
def test_a_refusal_carries_the_code_that_answers_it(rule: Rule, code: int) -> None:
    """The code for DISCONNECT or CONNACK stands at the rule."""
    assert CodecError(rule).code == code
