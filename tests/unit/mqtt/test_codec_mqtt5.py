"""Agreement with `mqtt5`, a codec of other hands, on every valid packet of 5.0.

Only valid packets: mqtt5 is a client's codec, accepts much that a server must refuse, and panics on invalid UTF-8.
"""

from typing import Any

import mqtt5
import mqtt_strategies as ms
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from soak import SOAK

from gateway.mqtt import codec
from gateway.mqtt.codec import Connect, Decoder, Packet, PacketType, Properties, Side, Version, encode
from gateway.mqtt.codec.reasons import REASON_CODES

OTHER_SIDE = {"client": "server", "server": "client"}
RENAMED = {
    "reason_string": "reason_str",
    "receive_maximum": "receive_max",
    "topic_alias_maximum": "topic_alias_max",
    "maximum_packet_size": "max_packet_size",
    "maximum_qos": "max_qos",
    "request_problem_information": "request_problem_info",
    "request_response_information": "request_response_info",
    "assigned_client_identifier": "assigned_client_id",
    "response_information": "response_info",
    "subscription_identifiers": "subscription_ids",
    "subscription_identifier_available": "subscription_id_available",
}
KINDS = {
    codec.Puback: (mqtt5.PubAckPacket, mqtt5.PubAckReasonCode),
    codec.Pubrec: (mqtt5.PubRecPacket, mqtt5.PubRecReasonCode),
    codec.Pubrel: (mqtt5.PubRelPacket, mqtt5.PubRelReasonCode),
    codec.Pubcomp: (mqtt5.PubCompPacket, mqtt5.PubCompReasonCode),
    codec.Suback: (mqtt5.SubAckPacket, mqtt5.SubAckReasonCode),
    codec.Unsuback: (mqtt5.UnsubAckPacket, mqtt5.UnsubAckReasonCode),
    codec.Disconnect: (mqtt5.DisconnectPacket, mqtt5.DisconnectReasonCode),
    codec.Auth: (mqtt5.AuthPacket, mqtt5.AuthReasonCode),
    codec.Connack: (mqtt5.ConnAckPacket, mqtt5.ConnAckReasonCode),
}


def present(properties: Properties) -> dict[str, Any]:
    """The properties that are there, under mqtt5's names."""
    named = {name: getattr(properties, name) for name in properties.__struct_fields__}
    found = {RENAMED.get(name, name): value for name, value in named.items() if value not in (None, ())}
    for name in ("user_properties", "subscription_ids"):
        if name in found:
            found[name] = list(found[name])
    if "max_qos" in found:
        found["max_qos"] = mqtt5.QoS(found["max_qos"])
    return found


def as_will(will: codec.Will | None) -> mqtt5.Will | None:
    if will is None:
        return None
    return mqtt5.Will(
        will.topic, payload=will.payload, qos=mqtt5.QoS(will.qos), retain=will.retain, **present(will.properties)
    )


def as_filter(subscription: codec.Subscription) -> mqtt5.TopicFilter:
    return mqtt5.TopicFilter(
        subscription.topic_filter,
        max_qos=mqtt5.QoS(subscription.qos),
        no_local=subscription.no_local,
        retain_as_published=subscription.retain_as_published,
        retain_handling=mqtt5.RetainHandling(subscription.retain_handling),
    )


def as_publish(packet: codec.Publish) -> mqtt5.PublishPacket:
    return mqtt5.PublishPacket(
        packet.topic,
        packet.payload,
        qos=mqtt5.QoS(packet.qos),
        retain=packet.retain,
        packet_id=packet.packet_id or None,
        duplicate=packet.dup,
        **present(packet.properties),
    )


def as_connect(packet: Connect) -> mqtt5.ConnectPacket:
    return mqtt5.ConnectPacket(
        packet.client_id,
        username=packet.user_name,
        password=packet.password,
        clean_start=packet.clean_start,
        will=as_will(packet.will),
        keep_alive=packet.keep_alive_s,
        **present(packet.properties),
    )


def as_subscribe(packet: codec.Subscribe) -> mqtt5.SubscribePacket:
    found = present(packet.properties)
    [identifier] = found.pop("subscription_ids", [None])
    filters = [as_filter(subscription) for subscription in packet.subscriptions]
    return mqtt5.SubscribePacket(packet.packet_id, filters, subscription_id=identifier, **found)


def as_mqtt5(packet: Packet) -> mqtt5.Packet:
    """The same packet in mqtt5's classes."""
    match packet:
        case Connect():
            return as_connect(packet)
        case codec.Publish():
            return as_publish(packet)
        case codec.Subscribe():
            return as_subscribe(packet)
        case codec.Unsubscribe():
            return mqtt5.UnsubscribePacket(packet.packet_id, list(packet.topic_filters), **present(packet.properties))
        case codec.Pingreq():
            return mqtt5.PingReqPacket()
        case codec.Pingresp():
            return mqtt5.PingRespPacket()
    kind, reasons = KINDS[type(packet)]
    found = present(packet.properties)
    if isinstance(packet, codec.Suback | codec.Unsuback):
        return kind(packet.packet_id, [reasons(code) for code in packet.reason_codes], **found)
    if isinstance(packet, codec.Connack):
        found["session_present"] = packet.session_present
    if hasattr(packet, "packet_id"):
        return kind(packet.packet_id, reason_code=reasons(packet.reason_code), **found)
    return kind(reason_code=reasons(packet.reason_code), **found)


def check_agreement(packet: Packet, decoder: Decoder) -> None:
    """What either writes, the other reads with the same fields."""
    theirs = as_mqtt5(packet)
    wire = encode(packet, Version.V5)
    assert mqtt5.read(memoryview(wire)) == (theirs, len(wire))
    [read] = decoder.feed(theirs.write())
    assert as_mqtt5(read) == theirs


@pytest.mark.soak
@pytest.mark.parametrize("sender", ["client", "server"])
@settings(max_examples=300 * SOAK)
@given(data=st.data())
def test_every_packet_agrees(sender: Side, data: st.DataObject) -> None:
    """mqtt5 reads what we write and we read what mqtt5 writes, field by field."""
    packet = data.draw(ms.packets(Version.V5, sender))
    check_agreement(packet, Decoder(role=OTHER_SIDE[sender], version=Version.V5))


@pytest.mark.soak
@settings(max_examples=100 * SOAK)
@given(packet=ms.connects(Version.V5))
def test_connect_agrees(packet: Connect) -> None:
    """CONNECT with will, credentials and all properties agrees too."""
    check_agreement(packet, Decoder())


@pytest.mark.parametrize("size", [n + over for n in (1 << 7, 1 << 14, 1 << 21) for over in (-1, 0, 1)])
def test_lengths_agree(size: int) -> None:
    """A Remaining Length of one, two, three and four bytes is written and read alike, at each border."""
    packet = codec.Publish(topic="t", payload=bytes(size - len("..t.")))
    width = 1 + (size >= 1 << 7) + (size >= 1 << 14) + (size >= 1 << 21)
    assert len(encode(packet, Version.V5)) == 1 + width + size
    check_agreement(packet, Decoder(version=Version.V5, max_packet_bytes=1 << 22))


@pytest.mark.parametrize("size", [0, 1, 127, 128, 65_534, 65_535])
def test_strings_agree(size: int) -> None:
    """Strings and binary data of any length up to the longest are written and read alike, in the Properties too."""
    text = "é" * (size // 2) + "e" * (size % 2)
    properties = Properties(
        content_type=text, correlation_data=text.encode(), user_properties=((text, "once"), ("twice", text))
    )
    packet = codec.Publish(topic=text or "t", payload=b"x", properties=properties)
    check_agreement(packet, Decoder(version=Version.V5))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_reason_codes_agree(kind: type[Any]) -> None:
    """The codes each packet may carry, from either side, are those that mqtt5 lists."""
    ours = set().union(*REASON_CODES[PacketType[kind.__name__.upper()]].values())
    theirs = KINDS[kind][1]  # not iterable, although declared an enum
    assert ours == {int(getattr(theirs, name)) for name in dir(theirs) if name.isupper()}
