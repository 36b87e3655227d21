"""PUBLISH and its acknowledgements (sections 3.3 to 3.7, 4.3, 4.5, 4.6), black box, both versions."""

import pytest
from mqtt_wire import packet

from gateway.mqtt.codec import (
    EMPTY,
    Disconnect,
    Pingresp,
    Properties,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    ReasonCode,
    Subscribe,
    Subscription,
    Version,
)

BOTH = pytest.mark.parametrize("version", list(Version))
QOS = pytest.mark.parametrize("qos", [0, 1, 2])
V311 = Version.V311


@BOTH
@pytest.mark.parametrize("granted", [0, 1, 2])
@pytest.mark.parametrize("sent", [0, 1, 2])
def test_quality_of_service(gateway, name, version, sent, granted):
    """A message arrives at the lower QoS of publish and subscription, once, with DUP 0 and RETAIN 0."""
    publisher, subscriber = (gateway.client(f"{name}{n}", version) for n in range(2))
    assert subscriber.subscribe(f"{name}/+", qos=granted) == (granted,)
    publisher.publish(f"{name}/a", b"payload", qos=sent)
    message = subscriber.receive()
    assert (message.topic, message.payload, message.qos) == (f"{name}/a", b"payload", min(sent, granted))
    assert (message.dup, message.retain) == (False, False)
    assert (message.packet_id == 0) == (message.qos == 0)
    assert subscriber.received() == []


@BOTH
def test_each_qos_has_its_answer(gateway, name, version):
    """QoS 0 gets none, QoS 1 PUBACK, QoS 2 PUBREC and then PUBCOMP, with the identifier of the PUBLISH."""
    wire = gateway.client(name, version)
    assert wire.publish(name, qos=0) is None
    wire.ping()
    assert not wire.packets
    wire.send(Publish(topic=name, payload=b"", qos=1, packet_id=77))
    assert type(answer := wire.read()) is Puback
    assert (answer.packet_id, answer.reason_code < 0x80) == (77, True)
    wire.send(Publish(topic=name, payload=b"", qos=2, packet_id=65535))
    assert type(answer := wire.read()) is Pubrec
    assert (answer.packet_id, answer.reason_code < 0x80) == (65535, True)
    wire.send(Pubrel(packet_id=65535))
    assert wire.read() == Pubcomp(packet_id=65535)


@BOTH
def test_empty_payload(gateway, name, version):
    """A payload may be empty, or large."""
    wire = gateway.client(name, version)
    wire.subscribe(name, qos=2)
    for size in (0, 1, 127, 128, 16_384, 200_000):
        wire.publish(name, b"p" * size, qos=2)
        assert len(wire.receive().payload) == size


@BOTH
def test_acknowledged_identifier_is_new_again(gateway, name, version):
    """After PUBACK the same identifier is another message, whatever DUP says."""
    wire, watcher = gateway.client(name, version), gateway.client(f"{name}w", version)
    watcher.subscribe(name, qos=1)
    for dup in (False, True, False):
        wire.publish(name, qos=1, packet_id=5, dup=dup)
    assert watcher.payloads() == [b"x"] * 3


@BOTH
def test_dup_is_not_passed_on(gateway, name, version):
    """DUP of what comes in says nothing of what goes out."""
    wire, watcher = gateway.client(name, version), gateway.client(f"{name}w", version)
    watcher.subscribe(name, qos=2)
    wire.publish(name, qos=1, packet_id=9, dup=True)
    wire.publish(name, qos=2, packet_id=10, dup=True)
    assert [message.dup for message in watcher.received()] == [False, False]


@BOTH
def test_qos_2_is_delivered_once(gateway, name, version):
    """Until PUBREL the same identifier is the same message: PUBREC again, nothing delivered; after PUBCOMP a new one."""
    wire, watcher = gateway.client(name, version), gateway.client(f"{name}w", version)
    watcher.subscribe(name, qos=2)
    for dup in (False, True, True):
        wire.send(Publish(topic=name, payload=b"once", qos=2, packet_id=3, dup=dup))
        assert wire.take(Pubrec).packet_id == 3
    for _ in range(2):
        wire.send(Pubrel(packet_id=3))
        assert wire.take(Pubcomp).packet_id == 3
    wire.publish(name, b"again", qos=2, packet_id=3)
    assert watcher.payloads() == [b"once", b"again"]


@BOTH
def test_qos_2_interleaved(gateway, name, version):
    """Several QoS 2 messages may be on their way; PUBREC and PUBCOMP keep the order of what they answer."""
    wire, watcher = gateway.client(name, version), gateway.client(f"{name}w", version)
    watcher.subscribe(name, qos=2)
    wire.send(*(Publish(topic=name, payload=b"%d" % n, qos=2, packet_id=n) for n in (1, 2, 3)))
    assert [wire.take(Pubrec).packet_id for _ in range(3)] == [1, 2, 3]
    wire.send(*(Pubrel(packet_id=n) for n in (1, 2, 3)))
    assert [wire.take(Pubcomp).packet_id for _ in range(3)] == [1, 2, 3]
    assert watcher.payloads() == [b"1", b"2", b"3"]


@BOTH
def test_unknown_identifiers(gateway, name, version):
    """PUBREL and PUBREC of an unknown identifier are answered (0x92 in 5.0), PUBACK and PUBCOMP passed over."""
    wire = gateway.client(name, version)
    wire.send(Puback(packet_id=9), Pubcomp(packet_id=9), Pubrel(packet_id=9))
    answer = wire.take(Pubcomp)
    assert answer.packet_id == 9
    assert version is V311 or answer.reason_code == ReasonCode.PACKET_IDENTIFIER_NOT_FOUND
    wire.send(Pubrec(packet_id=8))
    answer = wire.take(Pubrel)
    assert answer.packet_id == 8
    assert version is V311 or answer.reason_code == ReasonCode.PACKET_IDENTIFIER_NOT_FOUND
    wire.ping()


def test_unknown_identifiers_of_a_resumed_session(gateway, name):
    """Who lost PUBCOMP sends PUBREL again after the reconnect, and is told no error: its message was delivered."""
    lasting = {"clean_start": False, "properties": Properties(session_expiry_interval=60)}
    wire = gateway.client(name, **lasting)
    wire.publish(name, qos=2, packet_id=7)
    wire.drop()
    wire = gateway.client(name, **lasting)
    wire.send(Pubrel(packet_id=7))
    assert wire.read() == Pubcomp(packet_id=7)
    wire.send(Pubrec(packet_id=8))
    assert wire.read() == Pubrel(packet_id=8)


@BOTH
def test_outbound_qos_2(gateway, name, version):
    """To a subscriber: PUBLISH, PUBREL after its PUBREC with the same identifier, nothing sent twice."""
    wire, watcher = gateway.client(name, version), gateway.client(f"{name}w", version)
    watcher.subscribe(name, qos=2)
    wire.publish(name, b"m", qos=2)
    message = watcher.take(Publish)
    for _ in range(2):
        watcher.ping()
        assert not watcher.packets  # resent on reconnect only [MQTT-4.4.0-1]
    watcher.send(Pubrec(packet_id=message.packet_id))
    assert watcher.take(Pubrel).packet_id == message.packet_id
    watcher.ping()
    assert not watcher.packets
    watcher.send(Pubcomp(packet_id=message.packet_id))
    watcher.ping()
    assert not watcher.packets


@BOTH
def test_outbound_qos_2_keeps_order(gateway, name, version):
    """PUBREL packets come in the order of the PUBREC packets."""
    wire, watcher = gateway.client(name, version), gateway.client(f"{name}w", version)
    watcher.subscribe(name, qos=2)
    for _ in range(3):
        wire.publish(name, qos=2)
    ids = [watcher.take(Publish).packet_id for _ in range(3)]
    order = ids[::-1]
    watcher.send(*(Pubrec(packet_id=each) for each in order))
    assert [watcher.take(Pubrel).packet_id for _ in order] == order
    watcher.send(*(Pubcomp(packet_id=each) for each in ids))
    watcher.ping()


def test_refused_by_the_subscriber(gateway, name):
    """PUBACK or PUBREC with a failure ends the delivery: no PUBREL, nothing sent again, the identifier is free."""
    wire, watcher = gateway.client(name), gateway.client(f"{name}w", properties=Properties(receive_maximum=1))
    watcher.subscribe(name, qos=2)
    for qos, refusal in ((1, Puback), (2, Pubrec)):
        wire.publish(name, b"refused", qos=qos)
        message = watcher.take(Publish)
        watcher.send(refusal(packet_id=message.packet_id, reason_code=ReasonCode.UNSPECIFIED_ERROR))
        wire.publish(name, b"next", qos=qos)
        assert watcher.receive().payload == b"next"
        assert watcher.received() == []


@BOTH
def test_identifiers_of_the_server_are_unused(gateway, name, version):
    """Messages on their way to one client have different identifiers, never 0."""
    wire, watcher = gateway.client(name, version), gateway.client(f"{name}w", version)
    watcher.subscribe(name, qos=2)
    for n in range(20):
        wire.publish(name, qos=1 + n % 2)
    messages = [watcher.take(Publish) for _ in range(20)]
    assert len({message.packet_id for message in messages} - {0}) == 20
    for message in messages:
        watcher.acknowledge(message)


@BOTH
@QOS
def test_order(gateway, name, version, qos):
    """Messages of one client arrive in the order they were sent in, acknowledgements come in the order of arrival."""
    wire, watcher = gateway.client(name, version), gateway.client(f"{name}w", version)
    watcher.subscribe(f"{name}/#", qos=qos)
    wanted = [b"%d" % n for n in range(100)]
    wire.send(*(Publish(topic=f"{name}/a", payload=p, qos=qos, packet_id=int(p) + 1 if qos else 0) for p in wanted))
    answers = [wire.take(Puback if qos == 1 else Pubrec).packet_id for _ in range(100 if qos else 0)]
    assert answers == list(range(1, 101))[: len(answers)]
    if qos == 2:
        wire.send(*(Pubrel(packet_id=n) for n in answers))
        assert [wire.take(Pubcomp).packet_id for _ in answers] == answers
    wire.ping()
    assert watcher.payloads() == wanted


@BOTH
def test_own_messages_come_back(gateway, name, version):
    """Without No Local a client gets what it publishes itself."""
    wire = gateway.client(name, version)
    wire.subscribe(name, qos=1)
    wire.publish(name, b"mine")
    assert wire.payloads() == [b"mine"]


MESSAGE = Properties(
    payload_format_indicator=1,
    message_expiry_interval=1000,
    content_type="text/ünicode",
    response_topic="answers/here",
    correlation_data=b"\0\1\xff",
    user_properties=(("b", "2"), ("a", "1"), ("b", "1"), ("", ""), ("a", "1")),
)


@QOS
def test_properties_are_passed_on(gateway, name, qos):
    """All properties of a message arrive unaltered, user properties in their order."""
    wire = gateway.client(name)
    wire.subscribe(name, qos=2)
    wire.publish(name, "grüße".encode(), qos=qos, properties=MESSAGE)
    got = wire.receive().properties
    for field in ("payload_format_indicator", "content_type", "response_topic", "correlation_data", "user_properties"):
        assert getattr(got, field) == getattr(MESSAGE, field), field
    assert 990 <= got.message_expiry_interval <= 1000
    assert got.subscription_identifiers == ()


def test_properties_are_dropped_for_311(gateway, name):
    """A 3.1.1 subscriber gets the message without what its version cannot say."""
    wire, old = gateway.client(name), gateway.client(f"{name}o", V311)
    old.subscribe(name, qos=1)
    wire.publish(name, b"text", properties=MESSAGE)
    assert old.receive() == Publish(topic=name, payload=b"text", qos=1, packet_id=1)


def test_payload_that_is_not_text(gateway, name):
    """A payload said to be UTF-8 that is not may be refused with 0x99, and then reaches nobody."""
    wire = gateway.client(name)
    wire.subscribe(name)
    for qos in (1, 2):
        answer = wire.publish(name, b"\xff", qos=qos, properties=Properties(payload_format_indicator=1))
        assert answer.reason_code == ReasonCode.PAYLOAD_FORMAT_INVALID
    assert wire.received() == []


@pytest.mark.parametrize("qos", [1, 2])
def test_reason_codes_of_acknowledgements(gateway, name, qos):
    """Nobody there is 0x10, somebody 0x00, what policy forbids 0x87; a refused identifier is a new message next."""
    wire = gateway.client(name)
    answer = wire.publish(name, qos=qos)
    assert answer.reason_code in {ReasonCode.SUCCESS, ReasonCode.NO_MATCHING_SUBSCRIBERS}
    refused = wire.publish("test/nopublish", qos=qos, packet_id=7)
    assert (type(refused), refused.reason_code) == ((Puback, Pubrec)[qos - 1], ReasonCode.NOT_AUTHORIZED)
    wire.subscribe(name)
    assert wire.publish(name, qos=qos, packet_id=7).reason_code == ReasonCode.SUCCESS
    assert wire.payloads() == [b"x"]


def test_no_matching_subscribers(gateway, name):
    """0x10 is PUBACK's when no subscription matches, even one that is not to get the message; PUBREC never says it."""
    wire = gateway.client(name)
    assert wire.publish(name, qos=1).reason_code == ReasonCode.NO_MATCHING_SUBSCRIBERS
    wire.send(Publish(topic=name, payload=b"", qos=2, packet_id=99))
    assert wire.read() == Pubrec(packet_id=99)
    wire.subscribe(name, no_local=True)
    assert wire.publish(name, qos=1).reason_code == ReasonCode.SUCCESS
    assert wire.received() == []


@pytest.mark.parametrize("qos", [1, 2])
def test_no_matching_subscribers_from_a_client(gateway, name, qos):
    """0x10 from a client is one of the codes of its acknowledgement: the delivery is over, the connection is not."""
    wire = gateway.client(name)
    wire.subscribe(name, qos=qos)
    wire.publish(name, qos=qos)
    kind = Puback if qos == 1 else Pubrec
    wire.send(kind(packet_id=wire.take(Publish).packet_id, reason_code=ReasonCode.NO_MATCHING_SUBSCRIBERS))
    assert qos == 1 or wire.take(Pubrel)
    wire.ping()


@BOTH
@pytest.mark.parametrize("granted", [1, 2])
@pytest.mark.parametrize("clean_start", [True, False])
def test_own_message_comes_behind_its_pubrec(gateway, name, version, granted, clean_start):
    """A client that gets what it publishes at QoS 2 is answered first, as by other servers, in a lasting session too."""
    properties = Properties(session_expiry_interval=60) if version is Version.V5 and not clean_start else EMPTY
    wire = gateway.client(name, version, clean_start=clean_start, properties=properties)
    wire.subscribe(name, qos=granted)
    wire.send(Publish(topic=name, payload=b"", qos=2, packet_id=7))
    assert [type(wire.read()), type(wire.read())] == [Pubrec, Publish]


@pytest.mark.parametrize("qos", [1, 2])
def test_no_reasons_where_none_are_wanted(gateway, name, qos):
    """Request Problem Information 0: acknowledgements carry neither Reason String nor user properties."""
    wire = gateway.client(name, properties=Properties(request_problem_information=False))
    assert wire.publish("test/nopublish", qos=qos).properties == Properties()
    assert wire.subscribe("test/nosubscribe")[0] >= 0x80
    wire.send(Subscribe(packet_id=9, subscriptions=(Subscription(topic_filter="test/nosubscribe"),)))
    assert wire.read().properties == Properties()


@pytest.mark.parametrize("qos", [1, 2])
def test_reasons_that_do_not_fit(gateway, name, qos):
    """A Reason String that would exceed the client's Maximum Packet Size is left out."""
    wire = gateway.client(name, properties=Properties(maximum_packet_size=50))
    assert wire.publish("test/nopublish", qos=qos).properties == Properties()
    wire.send(Subscribe(packet_id=9, subscriptions=(Subscription(topic_filter="test/nosubscribe"),)))
    assert wire.read().properties.user_properties == ()


@QOS
def test_publish_that_policy_forbids_in_311(gateway, name, qos):
    """3.1.1 cannot say no: a refused QoS 0 is dropped; for QoS 1 and 2 the connection is closed."""
    wire = gateway.client(name, V311)
    wire.send(Publish(topic="test/nopublish", payload=b"x", qos=qos, packet_id=1 if qos else 0))
    if qos:
        assert wire.ended() == []
    else:
        wire.ping()


@BOTH
def test_disconnect_ends_the_connection(gateway, name, version):
    """After DISCONNECT nothing is processed and the server closes."""
    wire, watcher = gateway.client(name, version), gateway.client(f"{name}w", version)
    watcher.subscribe(name)
    late = packet(0x30, len(name).to_bytes(2), name.encode(), b"\0" if version is Version.V5 else b"", b"late")
    wire.send(Disconnect(), late)
    assert wire.ended() == []
    assert watcher.received() == []


@BOTH
def test_ping(gateway, name, version):
    """Each PINGREQ is answered by one PINGRESP."""
    wire = gateway.client(name, version)
    wire.send(b"\xc0\0" * 3)
    assert [wire.read() for _ in range(3)] == [Pingresp()] * 3
    wire.ping()
    assert not wire.packets
