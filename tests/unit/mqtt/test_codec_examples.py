"""Known bytes: the worked examples and tables of the specifications, and the limits of the data types."""

import ast
import pathlib
import sys

import pytest

from gateway.mqtt import codec
from gateway.mqtt.codec import (
    EMPTY,
    Auth,
    CodecError,
    Connack,
    Connect,
    Decoder,
    Disconnect,
    Packet,
    PacketType,
    Pingreq,
    Pingresp,
    Properties,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    ReasonCode,
    Side,
    Suback,
    Subscribe,
    Subscription,
    Unsuback,
    Unsubscribe,
    Version,
    Will,
    encode,
    is_payload_format_valid,
)
from gateway.mqtt.codec.reasons import REASON_CODES
from gateway.mqtt.codec.wire import Cursor, decode_text, put_text, put_varint

V311, V5 = Version.V311, Version.V5

WILL = Will(topic="w", payload=b"bye", qos=1)
EXAMPLES = [
    # 3.1.2.10 and 3.1.2.11.12: user name, password, will QoS 1, clean, keep alive 10
    ("client", V311, Connect(version=V311, client_id="c", keep_alive_s=10, user_name="u", password=b"p", will=WILL),
     "10 1b 0004 4d515454 04 ce 000a 0001 63 0001 77 0003 627965 0001 75 0001 70"),
    ("client", V5, Connect(version=V5, client_id="c", keep_alive_s=10, user_name="u", password=b"p", will=WILL,
                           properties=Properties(session_expiry_interval=10)),
     "10 22 0004 4d515454 05 ce 000a 05 11 0000000a 0001 63 00 0001 77 0003 627965 0001 75 0001 70"),
    ("server", V311, Connack(), "20 02 00 00"),
    ("server", V311, Connack(session_present=True), "20 02 01 00"),
    ("server", V311, Connack(reason_code=ReasonCode.NOT_AUTHORIZED), "20 02 00 05"),
    ("server", V5, Connack(), "20 03 00 00 00"),
    ("server", V5, Connack(reason_code=ReasonCode.NOT_AUTHORIZED, properties=Properties(reason_string="no")),
     "20 08 00 87 05 1f 0002 6e6f"),
    # 3.3.2.3 (3.1.1) and 3.3.2.4 (5.0): topic "a/b", packet identifier 10, no properties
    ("client", V311, Publish(topic="a/b", payload=b"", qos=1, packet_id=10), "32 07 0003 612f62 000a"),
    ("client", V5, Publish(topic="a/b", payload=b"", qos=1, packet_id=10), "32 08 0003 612f62 000a 00"),
    ("client", V311, Publish(topic="a/b", payload=b"hi", retain=True), "31 07 0003 612f62 6869"),
    ("client", V5, Publish(topic="a/b", payload=b"hi", qos=2, dup=True, packet_id=10), "3c 0a 0003 612f62 000a 00 6869"),
    ("client", V5, Publish(topic="", payload=b"", properties=Properties(topic_alias=5)), "30 06 0000 03 23 0005"),
    ("server", V5, Publish(topic="a", payload=b"", properties=Properties(subscription_identifiers=(1, 128))),
     "30 09 0001 61 05 0b 01 0b 8001"),
    ("client", V5, Publish(topic="a", payload=b"", properties=Properties(user_properties=(("k", "v"), ("k", "w")))),
     "30 12 0001 61 0e 26 0001 6b 0001 76 26 0001 6b 0001 77"),
    ("client", V311, Puback(packet_id=10), "40 02 000a"),
    ("client", V5, Puback(packet_id=10), "40 02 000a"),
    ("client", V5, Puback(packet_id=10, reason_code=ReasonCode.QUOTA_EXCEEDED), "40 03 000a 97"),
    ("client", V5, Puback(packet_id=10, properties=Properties(reason_string="x")), "40 08 000a 00 04 1f 0001 78"),
    ("client", V5, Pubrec(packet_id=10), "50 02 000a"),
    ("client", V5, Pubrel(packet_id=10, reason_code=ReasonCode.PACKET_IDENTIFIER_NOT_FOUND), "62 03 000a 92"),
    ("client", V311, Pubcomp(packet_id=10), "70 02 000a"),
    # figure 3.23 (3.1.1) and 3.20 (5.0): "a/b" QoS 1, "c/d" QoS 2
    ("client", V311, Subscribe(packet_id=10, subscriptions=(
        Subscription(topic_filter="a/b", qos=1), Subscription(topic_filter="c/d", qos=2))),
     "82 0e 000a 0003 612f62 01 0003 632f64 02"),
    ("client", V5, Subscribe(packet_id=10, subscriptions=(
        Subscription(topic_filter="a/b", qos=1), Subscription(topic_filter="c/d", qos=2))),
     "82 0f 000a 00 0003 612f62 01 0003 632f64 02"),
    ("client", V5, Subscribe(packet_id=10, properties=Properties(subscription_identifiers=(7,)), subscriptions=(
        Subscription(topic_filter="#", qos=1, no_local=True, retain_as_published=True, retain_handling=2),)),
     "82 09 000a 02 0b07 0001 23 2d"),
    # figure 3.27: granted QoS 0, granted QoS 2, failure
    ("server", V311, Suback(packet_id=10, reason_codes=(
        ReasonCode.GRANTED_QOS_0, ReasonCode.GRANTED_QOS_2, ReasonCode.UNSPECIFIED_ERROR)),
     "90 05 000a 00 02 80"),
    ("server", V5, Suback(packet_id=10, reason_codes=(ReasonCode.GRANTED_QOS_1, ReasonCode.NOT_AUTHORIZED)),
     "90 05 000a 00 01 87"),
    # figure 3.30: "a/b", "c/d"
    ("client", V311, Unsubscribe(packet_id=10, topic_filters=("a/b", "c/d")), "a2 0c 000a 0003 612f62 0003 632f64"),
    ("client", V5, Unsubscribe(packet_id=10, topic_filters=("a/b",)), "a2 08 000a 00 0003 612f62"),
    ("server", V311, Unsuback(packet_id=10), "b0 02 000a"),
    ("server", V5, Unsuback(packet_id=10, reason_codes=(ReasonCode.SUCCESS, ReasonCode.NO_SUBSCRIPTION_EXISTED)),
     "b0 05 000a 00 00 11"),
    ("client", V311, Pingreq(), "c0 00"),
    ("server", V5, Pingresp(), "d0 00"),
    ("client", V311, Disconnect(), "e0 00"),
    ("client", V5, Disconnect(), "e0 00"),
    ("client", V5, Disconnect(reason_code=ReasonCode.DISCONNECT_WITH_WILL_MESSAGE), "e0 01 04"),
    ("server", V5, Disconnect(reason_code=ReasonCode.QUOTA_EXCEEDED, properties=Properties(
        user_properties=(("retry-after", "5"),))), "e0 13 97 11 26 000b 72657472792d6166746572 0001 35"),
    ("server", V5, Auth(), "f0 00"),
    ("client", V5, Auth(reason_code=ReasonCode.RE_AUTHENTICATE, properties=Properties(
        authentication_method="jwt", authentication_data=b"t")), "f0 0c 19 0a 15 0003 6a7774 16 0001 74"),
]  # fmt: skip


def decoder_for(sender: Side, version: Version, packet: Packet) -> Decoder:
    if isinstance(packet, Connect):
        return Decoder()
    return Decoder(role="server" if sender == "client" else "client", version=version)


@pytest.mark.parametrize(("sender", "version", "packet", "wire"), EXAMPLES)
def test_known_bytes(sender: Side, version: Version, packet: Packet, wire: str) -> None:
    """The bytes of the specification are written for the packet, and read as it."""
    data = bytes.fromhex(wire)
    assert encode(packet, version).hex() == data.hex()
    assert list(decoder_for(sender, version, packet).feed(data)) == [packet]


@pytest.mark.parametrize(
    ("wire", "packet"),
    [
        ("40 03 000a 00", Puback(packet_id=10)),
        ("40 04 000a 00 00", Puback(packet_id=10)),
        ("40 04 000a 97 00", Puback(packet_id=10, reason_code=ReasonCode.QUOTA_EXCEEDED)),
        ("e0 01 00", Disconnect()),
        ("e0 02 00 00", Disconnect()),
    ],
)
def test_the_longer_forms_of_the_same_packet_are_read(wire: str, packet: Packet) -> None:
    """What may be left out may also be there (3.4.2.1, 3.14.2.1)."""
    [read] = Decoder(version=V5).feed(bytes.fromhex(wire))
    assert read == packet
    assert read.properties is EMPTY


@pytest.mark.parametrize(
    ("value", "wire"),
    [
        (0, "00"),
        (127, "7f"),
        (128, "8001"),
        (16_383, "ff7f"),
        (16_384, "808001"),
        (2_097_151, "ffff7f"),
        (2_097_152, "80808001"),
        (268_435_455, "ffffff7f"),
    ],
)
def test_variable_byte_integers(value: int, wire: str) -> None:
    """Table 1-1: the smallest and largest value of each length."""
    assert put_varint(value).hex() == wire
    assert Cursor(bytes.fromhex(wire)).varint() == value


@pytest.mark.parametrize("value", [-1, 268_435_456])
def test_a_variable_byte_integer_has_limits(value: int) -> None:
    """One more than the largest is not written."""
    with pytest.raises(CodecError, match=f"integer does not fit its field: {value} as a variable byte integer"):
        put_varint(value)


def test_strings() -> None:
    """The example of 1.5.4 ("A" and U+2A6D4); U+FEFF stays where it is [MQTT-1.5.4-3]."""
    assert put_text("A\U0002a6d4").hex() == "000541f0aa9b94"
    assert decode_text(bytes.fromhex("41f0aa9b94")) == "A\U0002a6d4"
    assert decode_text(b"\xef\xbb\xbfa") == "\ufeffa"


@pytest.mark.parametrize("size", [65_534, 65_535])
def test_the_longest_string_is_written(size: int) -> None:
    """65,535 bytes fit; one more is refused elsewhere."""
    assert Cursor(put_text("a" * size)).text() == "a" * size


def test_every_refusal_of_5_has_a_return_code_in_311() -> None:
    """A CONNACK can be written in 3.1.1 for every code: 1 version, 2 identifier, 3 overloaded, 4 password, else 5."""
    returned = {
        code.name: encode(Connack(reason_code=code), V311)[3]
        for code in REASON_CODES[PacketType.CONNACK]["server"].values()
    }
    named = {name: value for name, value in returned.items() if value != 5}
    assert named == {
        "SUCCESS": 0,
        "UNSUPPORTED_PROTOCOL_VERSION": 1,
        "CLIENT_IDENTIFIER_NOT_VALID": 2,
        "SERVER_UNAVAILABLE": 3,
        "SERVER_BUSY": 3,
        "QUOTA_EXCEEDED": 3,
        "CONNECTION_RATE_EXCEEDED": 3,
        "USE_ANOTHER_SERVER": 3,
        "SERVER_MOVED": 3,
        "UNSPECIFIED_ERROR": 3,
        "IMPLEMENTATION_SPECIFIC_ERROR": 3,
        "BAD_USER_NAME_OR_PASSWORD": 4,
    }
    assert returned["NOT_AUTHORIZED"] == 5


def test_every_failure_of_5_is_0x80_in_a_311_suback() -> None:
    """SUBACK of 3.1.1 knows one failure [MQTT-3.9.3-2]."""
    codes = (ReasonCode.GRANTED_QOS_2, ReasonCode.NOT_AUTHORIZED, ReasonCode.QUOTA_EXCEEDED)
    assert encode(Suback(packet_id=1, reason_codes=codes), V311) == bytes.fromhex("90 05 0001 02 80 80")


@pytest.mark.parametrize(
    ("indicator", "payload", "valid"),
    [(None, b"\xff", True), (0, b"\xff", True), (1, b"\xff", False), (1, "é\0".encode(), True), (1, b"", True)],
)
def test_payload_format(indicator: int | None, payload: bytes, valid: bool) -> None:
    """A payload is held to UTF-8 only when it says it is text, and that breaks no framing."""
    properties = Properties(payload_format_indicator=indicator)
    message = Publish(topic="a", payload=payload, properties=properties)
    assert is_payload_format_valid(message) is valid
    assert is_payload_format_valid(Will(topic="a", payload=payload, properties=properties)) is valid
    assert list(Decoder(version=V5).feed(encode(message, V5))) == [message]


def test_the_codec_does_no_io() -> None:
    """It imports the standard library without sockets, clocks or logs, msgspec, and itself."""
    allowed = {"__future__", "collections", "enum", "struct", "typing", "msgspec", "gateway"}
    found = set()
    for path in pathlib.Path(codec.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert not node.module.startswith("gateway") or node.module.startswith("gateway.mqtt.codec")
                found.add(node.module.split(".")[0])
            elif isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
    assert found <= allowed
    assert allowed - {"msgspec", "gateway"} <= sys.stdlib_module_names
