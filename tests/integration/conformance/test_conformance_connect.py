"""CONNECT and CONNACK as MQTT wants them (sections 3.1 and 3.2), black box, both versions."""

import string
import time
from contextlib import suppress

import pytest
from mqtt_wire import TIMEOUT_S, Wire, block, packet, text
from open_gateway import KEEP_ALIVE_S

from gateway.mqtt.codec import Connack, Connect, Disconnect, Pingreq, Properties, Publish, ReasonCode, Version, encode

BOTH = pytest.mark.parametrize("version", list(Version))
V5, V311 = Version.V5, Version.V311


def connect_bytes(version, *payload, flags=0x02, protocol="MQTT", level=None, properties=(), keep_alive=0):
    """A CONNECT by hand: the payload as it is given."""
    head = text(protocol), bytes([version if level is None else level, flags]), keep_alive.to_bytes(2)
    return packet(0x10, *head, *((block(*properties),) if version is V5 else ()), *payload)


@BOTH
def test_accepted(gateway, name, version):
    """A good CONNECT is answered by one CONNACK with code 0, before anything else, and no reserved bit set."""
    wire = gateway.wire(version)
    wire.send(connect_bytes(version, text(name)))
    first = wire.read()
    assert (type(first), first.reason_code, first.session_present) == (Connack, 0, False)
    wire.ping()
    assert not wire.packets


@BOTH
def test_connack_bytes(gateway, name, version):
    """On the wire: type 2, flags 0, return code 0."""
    wire = gateway.wire(version)
    wire.send(connect_bytes(version, text(name)))
    data = wire._socket.recv(4096)
    body = data[2:] if data[1] < 0x80 else data[3:]
    assert (data[0], body[:2]) == (0x20, b"\0\0")
    assert version is V5 or data == b"\x20\x02\0\0"


@BOTH
def test_second_connect(gateway, name, version):
    """A second CONNECT ends the connection; in 5.0 with 0x82, never with another CONNACK."""
    wire = gateway.client(name, version)
    wire.send(connect_bytes(version, text(name)))
    assert wire.verdict() == ([] if version is V311 else [ReasonCode.PROTOCOL_ERROR])


@BOTH
@pytest.mark.parametrize(
    "first", [Pingreq(), Publish(topic="a", payload=b""), Disconnect()], ids=lambda p: type(p).__name__
)
def test_first_packet_is_connect(gateway, version, first):
    """Whatever else comes first closes the connection without a word: no CONNACK, no DISCONNECT."""
    wire = gateway.wire(version)
    wire.send(first)
    assert wire.ended() == []


@pytest.mark.parametrize(
    ("protocol", "level", "answer"),
    [
        ("MQTT", 3, 0x01),
        ("MQTT", 6, 0x01),
        ("MQTT", 0, 0x01),
        ("MQIsdp", 3, None),
        ("mqtt", 4, None),
        ("MQTX", 5, None),
    ],
)
def test_protocol_name_and_level(gateway, name, protocol, level, answer):
    """Another level is refused in the words of 3.1.1, as other servers do; another name is closed, or refused likewise."""
    wire = gateway.wire(V311)
    wire.send(connect_bytes(V5 if level > 4 else V311, text(name), protocol=protocol, level=level))
    data = b""
    while part := wire._socket.recv(4096):
        data += part
    if answer is None:
        assert data == b"" or data[3] in {0x01, 0x84}
    else:
        assert (data[0], data[3]) == (0x20, answer)


WILL = (text("t"), text("m"))
BAD_CONNECTS = {
    "reserved flag": lambda v: connect_bytes(v, text("c"), flags=0x03),
    "reserved bits of the fixed header": lambda v: b"\x11" + connect_bytes(v, text("c"))[1:],
    "will QoS without a will": lambda v: connect_bytes(v, text("c"), flags=0x0A),
    "will retain without a will": lambda v: connect_bytes(v, text("c"), flags=0x22),
    "will QoS 3": lambda v: connect_bytes(v, text("c"), *_properties(v), *WILL, flags=0x1E),
    "will flag without will fields": lambda v: connect_bytes(v, text("c"), flags=0x06),
    "will fields without the flag": lambda v: connect_bytes(v, text("c"), *_properties(v), *WILL, flags=0x02),
    "user name flag without the field": lambda v: connect_bytes(v, text("c"), flags=0x82),
    "user name without the flag": lambda v: connect_bytes(v, text("c"), text("u"), flags=0x02),
    "password flag without the field": lambda v: connect_bytes(v, text("c"), text("u"), flags=0xC2),
    "password without the flag": lambda v: connect_bytes(v, text("c"), text("u"), text("p"), flags=0x82),
    "no client identifier": connect_bytes,
    "client identifier ill-formed": lambda v: connect_bytes(v, text(b"c\xc0\xaf")),
    "client identifier with a surrogate": lambda v: connect_bytes(v, text(b"c\xed\xa0\x80")),
    "client identifier with NUL": lambda v: connect_bytes(v, text(b"c\0")),
    "client identifier with a control character": lambda v: connect_bytes(v, text(b"c\n")),
    "user name with a control character": lambda v: connect_bytes(v, text("c"), text("u\x9f"), flags=0x82),
    "will topic with a control character": lambda v: connect_bytes(
        v, text("c"), *_properties(v), text("t\x1f"), text("m"), flags=0x06
    ),
    "will topic ill-formed": lambda v: connect_bytes(
        v, text("c"), *_properties(v), text(b"\xff"), text("m"), flags=0x06
    ),
    "will topic with a wildcard": lambda v: connect_bytes(
        v, text("c"), *_properties(v), text("a/#"), text("m"), flags=0x06
    ),
    "user name ill-formed": lambda v: connect_bytes(v, text("c"), text(b"\xff"), flags=0x82),
    "truncated": lambda v: connect_bytes(v, b"\0\x05ab"),
    "bytes behind the last field": lambda v: connect_bytes(v, text("c"), b"x"),
}


def _properties(version):
    return (b"\0",) if version is V5 else ()


@BOTH
@pytest.mark.parametrize("case", BAD_CONNECTS)
def test_malformed_connect(gateway, version, case):
    """A CONNECT that breaks the format is closed: in 3.1.1 without CONNACK, in 5.0 with a code or without a word."""
    wire = gateway.wire(version)
    wire.send(BAD_CONNECTS[case](version))
    answers = wire.ended()
    if version is V311:
        assert answers == []
    else:
        assert all(type(each) is Connack and each.reason_code >= 0x80 for each in answers), answers
        assert len(answers) < 2


BAD_PROPERTIES = {
    "receive maximum 0": (b"\x21\0\0", ReasonCode.PROTOCOL_ERROR),
    "maximum packet size 0": (b"\x27\0\0\0\0", ReasonCode.PROTOCOL_ERROR),
    "session expiry twice": (b"\x11\0\0\0\1" * 2, ReasonCode.PROTOCOL_ERROR),
    "receive maximum twice": (b"\x21\0\1" * 2, ReasonCode.PROTOCOL_ERROR),
    "topic alias maximum twice": (b"\x22\0\1" * 2, ReasonCode.PROTOCOL_ERROR),
    "request problem information 2": (b"\x17\2", ReasonCode.PROTOCOL_ERROR),
    "request response information 2": (b"\x19\2", ReasonCode.PROTOCOL_ERROR),
    "authentication data without a method": (b"\x16\0\1x", ReasonCode.PROTOCOL_ERROR),
    "authentication method that is unknown": (b"\x15\0\5SCRAM", ReasonCode.BAD_AUTHENTICATION_METHOD),
    "user property ill-formed, name": (b"\x26\0\1\xff\0\1v", ReasonCode.MALFORMED_PACKET),
    "user property ill-formed, value": (b"\x26\0\1k\0\1\xff", ReasonCode.MALFORMED_PACKET),
    "a property of PUBLISH": (b"\x23\0\1", ReasonCode.MALFORMED_PACKET),
    "an unknown property": (b"\x7f\0", ReasonCode.MALFORMED_PACKET),
}


@pytest.mark.parametrize("case", BAD_PROPERTIES)
def test_bad_connect_properties(gateway, case):
    """A property that is wrong is refused with its code in CONNACK, and the connection closed."""
    wire = gateway.wire()
    data, code = BAD_PROPERTIES[case]
    wire.send(connect_bytes(V5, text("c"), properties=(data,)))
    assert [(type(each), each.reason_code) for each in wire.ended()] == [(Connack, code)]


def test_refused_connect_has_no_session(gateway):
    """A CONNACK that refuses has Session Present 0 and is followed by the end of the connection."""
    wire = gateway.wire(V311)
    wire.send(connect_bytes(V311, text(""), flags=0))
    assert wire.ended() == [Connack(reason_code=ReasonCode.CLIENT_IDENTIFIER_NOT_VALID)]


@BOTH
def test_nothing_behind_a_refused_connect_is_processed(gateway, name, version):
    """What was pipelined behind a CONNECT that is refused is not processed."""
    watcher = gateway.client(name, version)
    watcher.subscribe(f"{name}/#")
    wire = gateway.wire(version)
    behind = encode(Publish(topic=f"{name}/x", payload=b"late"), version)
    wire.send(connect_bytes(version, text("c"), flags=0x0A) + behind)
    wire.ended()
    assert watcher.received() == []


@BOTH
def test_pipelined_behind_connect(gateway, name, version):
    """A client need not wait for CONNACK."""
    wire = gateway.wire(version)
    wire.send(connect_bytes(version, text(name)) + encode(Pingreq(), version))
    assert [type(wire.read()).__name__, type(wire.read()).__name__] == ["Connack", "Pingresp"]


@BOTH
@pytest.mark.parametrize("client_id", ["a", "0123456789ABCDEFGHIJKLM", "x" * 64, "zä-_.~ 1", "\ufeffbom"])
def test_client_identifiers(gateway, name, version, client_id):
    """One to 23 letters and digits are allowed, and so is what a server may allow beyond."""
    gateway.client(client_id, version).ping()


@BOTH
def test_client_identifier_alphabet(gateway, version):
    """Every character that must be allowed is."""
    every = string.digits + string.ascii_letters
    for start in range(0, len(every), 23):
        gateway.client(every[start : start + 23], version).ping()


def test_client_identifiers_are_not_normalised(gateway):
    """U+FEFF is part of a client id: with and without it are two sessions."""
    first, second = gateway.client("\ufeffsame"), gateway.client("same")
    first.ping()
    second.ping()


def test_assigned_client_identifier(gateway):
    """An empty client id gets a new one, told in CONNACK, by which the session can be resumed."""
    expiry = Properties(session_expiry_interval=60)
    wires = [gateway.client("", properties=expiry, clean_start=clean) for clean in (True, False)]
    ids = [wire.connack.properties.assigned_client_identifier for wire in wires]
    assert all(ids)
    assert ids[0] != ids[1]
    wires[0].disconnect()
    assert gateway.client(ids[0], clean_start=False, properties=expiry).connack.session_present
    assert gateway.client("named").connack.properties.assigned_client_identifier is None


def test_empty_client_identifier_in_311(gateway):
    """Empty with a clean session is let in, each client for itself; without one it is refused with 2."""
    first, second = (gateway.client("", V311) for _ in range(2))
    first.ping()
    second.ping()
    wire = gateway.wire(V311)
    wire.send(connect_bytes(V311, text(""), flags=0))
    assert wire.verdict() == [ReasonCode.CLIENT_IDENTIFIER_NOT_VALID]


@BOTH
def test_user_name_without_password(gateway, name, version):
    """A user name alone proves nothing and does no harm."""
    gateway.client(name, version, user_name="anybody").ping()


def test_password_without_user_name_in_311(gateway):
    """Where there is no user name 3.1.1 has no password: closed; 5.0 allows it."""
    wire = gateway.wire(V311)
    wire.send(connect_bytes(V311, text("c"), text("p"), flags=0x42))
    assert wire.ended() == []


@BOTH
def test_takeover(gateway, name, version):
    """A second connection of the same client id ends the first, in 5.0 with 0x8E, and serves."""
    first = gateway.client(name, version)
    second = gateway.client(name, version)
    assert first.verdict() == ([] if version is V311 else [ReasonCode.SESSION_TAKEN_OVER])
    second.ping()


@BOTH
def test_keep_alive(gateway, name, version):
    """Who is silent for one and a half intervals is closed, in 5.0 with 0x8D; who pings is not."""
    silent, alive = (gateway.client(f"{name}{n}", version, keep_alive_s=1) for n in range(2))
    start, last = time.monotonic(), []
    while not last and time.monotonic() < start + TIMEOUT_S:
        alive.ping()
        with suppress(TimeoutError):
            last = [silent.read(0.5)]
    alive.ping()
    assert 1 < time.monotonic() - start < TIMEOUT_S
    assert last == [None] if version is V311 else last[0].reason_code == ReasonCode.KEEP_ALIVE_TIMEOUT


@BOTH
def test_no_keep_alive(gateway, name, version):
    """Keep-alive 0 asks for none: 3.1.1 has none then; 5.0 is told the server's."""
    said = gateway.client(name, version).connack.properties
    assert said.server_keep_alive == (KEEP_ALIVE_S if version is V5 else None)


@pytest.mark.parametrize(
    ("asked", "told"), [(KEEP_ALIVE_S - 1, None), (KEEP_ALIVE_S, None), (KEEP_ALIVE_S + 1, KEEP_ALIVE_S)]
)
def test_server_keep_alive(gateway, name, asked, told):
    """A client that asks for more than the server grants is told what is used."""
    assert gateway.client(name, keep_alive_s=asked).connack.properties.server_keep_alive == told


def test_what_connack_announces(gateway, name):
    """All of MQTT is offered: QoS 2, retained messages, wildcards, identifiers, shared subscriptions."""
    said = gateway.client(name).connack.properties
    assert said.maximum_qos is None
    assert said.retain_available is not False
    assert said.wildcard_subscription_available is not False
    assert said.subscription_identifier_available is not False
    assert said.shared_subscription_available is not False
    assert said.receive_maximum is None or said.receive_maximum > 0


@pytest.mark.parametrize("asked", [False, None, True])
def test_response_information(gateway, name, asked):
    """Response Information is not sent unasked."""
    said = gateway.client(name, properties=Properties(request_response_information=asked)).connack.properties
    assert asked or said.response_information is None


def test_connack_fits(gateway, name):
    """User properties are left out of a CONNACK that would exceed the client's Maximum Packet Size."""
    wire = gateway.client(name, properties=Properties(maximum_packet_size=64))
    assert wire.connack.properties.user_properties == ()
    assert len(encode(wire.connack, V5)) <= 64


def test_reason_string_fits(gateway):
    """A refusal leaves its Reason String and user properties out where they do not fit."""
    wire = gateway.wire()
    wire.send(connect_bytes(V5, text("c"), properties=(b"\x15\0\5SCRAM", b"\x27\0\0\0\x0a")))
    (refused,) = wire.ended()
    assert (refused.reason_code, refused.properties) == (ReasonCode.BAD_AUTHENTICATION_METHOD, Properties())


def test_no_authentication_method_unasked(gateway, name):
    """Without an Authentication Method in CONNECT there is none in CONNACK, and an AUTH is a protocol error."""
    wire = gateway.client(name)
    assert wire.connack.properties.authentication_method is None
    wire.send(packet(0xF0, b"\x19", block(b"\x15", text("jwt"))))
    assert wire.verdict() == [ReasonCode.PROTOCOL_ERROR]


@BOTH
def test_byte_by_byte(gateway, name, version):
    """However the network cuts the bytes, packets are the same."""
    wire = gateway.wire(version)
    for byte in encode(Connect(version=version, client_id=name), version) + encode(Pingreq(), version):
        wire.send(bytes([byte]))
    assert wire.take(Connack).reason_code == 0
    assert type(wire.read()).__name__ == "Pingresp"


def test_versions_side_by_side(gateway, name):
    """Clients of both versions reach each other."""
    wires: list[Wire] = [gateway.client(f"{name}{version}", version) for version in Version]
    for wire in wires:
        wire.subscribe(name, qos=2)
    for wire in wires:
        wire.publish(name, qos=2)
    assert [wire.payloads() for wire in wires] == [[b"x", b"x"]] * 2
