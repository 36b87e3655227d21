"""Sessions (sections 3.1.2.4, 3.1.2.11.2, 4.1, 4.4), black box, both versions; through a restart of the gateway too."""

import signal
import time

import pytest
from open_gateway import open_gateway

from gateway.mqtt.codec import (
    Properties,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    ReasonCode,
    Version,
)

BOTH = pytest.mark.parametrize("version", list(Version))
V311 = Version.V311
LASTING = Properties(session_expiry_interval=600)


def lasting(gateway, name, version, **options):
    """A client whose session outlives its connection."""
    said = {"properties": LASTING} if version is Version.V5 else {}
    return gateway.client(name, version, **({"clean_start": False} | said | options))


@BOTH
def test_session_present(gateway, name, version):
    """0 for a new session, 1 for one that is resumed, 0 after a clean start and for what that leaves."""
    for clean, wanted in ((False, False), (False, True), (True, False), (False, version is Version.V5)):
        wire = lasting(gateway, name, version, clean_start=clean)
        assert wire.connack.session_present == wanted, (clean, wanted)
        wire.disconnect()


@BOTH
def test_subscriptions_are_kept(gateway, name, version):
    """A resumed session has its subscriptions, with their options; a clean start forgets them."""
    other = gateway.client(f"{name}o", version)
    wire = lasting(gateway, name, version)
    wire.subscribe(f"{name}/+", qos=1)
    wire.drop()
    wire = lasting(gateway, name, version)
    other.publish(f"{name}/a", qos=2)
    assert [message.qos for message in wire.received()] == [1]
    wire.disconnect()
    wire = lasting(gateway, name, version, clean_start=True)
    other.publish(f"{name}/a")
    assert wire.received() == []


@BOTH
def test_offline_messages(gateway, name, version):
    """What is published at QoS 1 and 2 meanwhile is delivered on resumption, in order; QoS 0 may be."""
    wire = lasting(gateway, name, version)
    wire.subscribe(f"{name}/#", qos=2)
    wire.disconnect()
    other = gateway.client(f"{name}o", version)
    for n in range(9):
        other.publish(f"{name}/{n % 3}", b"%d" % n, qos=n % 3)
    other.ping()
    wire = lasting(gateway, name, version)
    assert wire.connack.session_present
    found = [message.payload for message in wire.received() if message.qos]
    assert found == [b"%d" % n for n in range(9) if n % 3]
    assert wire.received() == []
    wire.disconnect()
    assert lasting(gateway, name, version).received() == []


@BOTH
def test_messages_of_a_clean_session_are_not_kept(gateway, name, version):
    """A session that ends with its connection gets nothing afterwards."""
    wire = gateway.client(name, version)
    wire.subscribe(name, qos=2)
    wire.disconnect()
    gateway.client(f"{name}o", version).publish(name)
    wire = gateway.client(name, version, clean_start=False)
    assert not wire.connack.session_present
    assert wire.received() == []


@BOTH
def test_qos_1_again_on_reconnect(gateway, name, version):
    """A PUBLISH that was not acknowledged comes again with DUP and its identifier, until it is."""
    wire = lasting(gateway, name, version)
    wire.subscribe(name, qos=1)
    gateway.client(f"{name}o", version).publish(name, b"m", qos=1)
    first = wire.take(Publish)
    assert not first.dup
    for _ in range(2):
        wire.drop()
        wire = lasting(gateway, name, version)
        again = wire.take(Publish)
        assert (again.packet_id, again.payload, again.dup) == (first.packet_id, b"m", True)
    wire.send(Puback(packet_id=again.packet_id))
    wire.disconnect()
    assert lasting(gateway, name, version).received() == []


@BOTH
def test_qos_2_again_on_reconnect(gateway, name, version):
    """Before PUBREC the PUBLISH comes again; after it PUBREL does, and no PUBLISH."""
    wire = lasting(gateway, name, version)
    wire.subscribe(name, qos=2)
    gateway.client(f"{name}o", version).publish(name, b"m", qos=2)
    first = wire.take(Publish)
    wire.drop()
    wire = lasting(gateway, name, version)
    again = wire.take(Publish)
    assert (again.packet_id, again.qos, again.dup) == (first.packet_id, 2, True)
    wire.send(Pubrec(packet_id=again.packet_id))
    assert wire.take(Pubrel).packet_id == first.packet_id
    wire.drop()
    wire = lasting(gateway, name, version)
    assert wire.take(Pubrel).packet_id == first.packet_id
    wire.send(Pubcomp(packet_id=first.packet_id))
    assert wire.received() == []
    wire.disconnect()
    assert lasting(gateway, name, version).received() == []


@BOTH
def test_order_of_what_comes_again(gateway, name, version):
    """Unacknowledged messages come again in the order they were sent in, before new ones."""
    wire = lasting(gateway, name, version)
    wire.subscribe(name, qos=2)
    other = gateway.client(f"{name}o", version)
    for n in range(6):
        other.publish(name, b"%d" % n, qos=1 + n % 2)
    sent = [wire.take(Publish) for _ in range(6)]
    wire.send(Puback(packet_id=sent[2].packet_id))
    wire.ping()
    wire.drop()
    other.publish(name, b"new")
    wire = lasting(gateway, name, version)
    assert wire.payloads() == [b"0", b"1", b"3", b"4", b"5", b"new"]


@BOTH
def test_qos_2_from_a_client_through_a_reconnect(gateway, name, version):
    """The identifiers that a client has not released are kept: its PUBLISH again is no new message."""
    watcher, wire = gateway.client(f"{name}w", version), lasting(gateway, name, version)
    watcher.subscribe(name, qos=2)
    wire.send(Publish(topic=name, payload=b"once", qos=2, packet_id=12))
    wire.take(Pubrec)
    wire.drop()
    wire = lasting(gateway, name, version)
    wire.send(Publish(topic=name, payload=b"once", qos=2, packet_id=12, dup=True))
    assert wire.take(Pubrec).packet_id == 12
    wire.send(Pubrel(packet_id=12))
    assert wire.take(Pubcomp).packet_id == 12
    assert watcher.payloads() == [b"once"]


@BOTH
def test_taken_over_and_resumed(gateway, name, version):
    """A second connection of the client resumes the session of the first, which is ended."""
    first = lasting(gateway, name, version)
    first.subscribe(name, qos=1)
    gateway.client(f"{name}o", version).publish(name, b"m")
    first.take(Publish)
    second = lasting(gateway, name, version)
    assert second.connack.session_present
    assert second.payloads() == [b"m"]
    assert first.verdict() == ([] if version is V311 else [ReasonCode.SESSION_TAKEN_OVER])


@BOTH
def test_unsubscribed_stays_unsubscribed(gateway, name, version):
    """What was unsubscribed is not there after resumption."""
    wire = lasting(gateway, name, version)
    wire.subscribe(f"{name}/a", f"{name}/b", qos=1)
    wire.unsubscribe(f"{name}/a")
    wire.disconnect()
    other = gateway.client(f"{name}o", version)
    for topic in "ab":
        other.publish(f"{name}/{topic}")
    assert [message.topic for message in lasting(gateway, name, version).received()] == [f"{name}/b"]


def test_session_expiry(gateway, name):
    """A session is kept for its expiry interval, and not beyond."""
    expiry = Properties(session_expiry_interval=1)
    gateway.client(name, properties=expiry).disconnect()
    wire = gateway.client(name, clean_start=False, properties=expiry)
    assert wire.connack.session_present
    wire.disconnect()
    time.sleep(2.5)  # the interval itself
    assert not gateway.client(name, clean_start=False).connack.session_present


def test_session_expiry_0(gateway, name):
    """Without an interval, or with 0, the session ends with the connection."""
    for properties in (Properties(), Properties(session_expiry_interval=0)):
        gateway.client(name, properties=properties).disconnect()
        assert not gateway.client(name, clean_start=False, properties=properties).connack.session_present


def test_session_expiry_forever(gateway, name):
    """0xFFFFFFFF is a session that does not expire, and may be told back shorter."""
    forever = Properties(session_expiry_interval=0xFFFF_FFFF)
    wire = gateway.client(name, properties=forever)
    told = wire.connack.properties.session_expiry_interval
    assert told is None or told > 0
    wire.disconnect()
    assert gateway.client(name, clean_start=False, properties=forever).connack.session_present


def test_session_expiry_changed_at_the_end(gateway, name):
    """DISCONNECT may change the interval, to 0 as well."""
    gateway.client(name, properties=LASTING).disconnect(session_expiry_interval=0)
    assert not gateway.client(name, clean_start=False).connack.session_present
    gateway.client(name, properties=Properties(session_expiry_interval=1)).disconnect(session_expiry_interval=600)
    time.sleep(2)  # the interval of CONNECT
    assert gateway.client(name, clean_start=False).connack.session_present


def test_session_expiry_changed_at_the_beginning(gateway, name):
    """The interval of the last CONNECT holds."""
    gateway.client(name, properties=LASTING).disconnect()
    wire = gateway.client(name, clean_start=False, properties=Properties(session_expiry_interval=0))
    assert wire.connack.session_present
    wire.disconnect()
    assert not gateway.client(name, clean_start=False).connack.session_present


def test_expiry_of_offline_messages(gateway, name):
    """A message that expired while it waited is not delivered; another's interval is what is left."""
    wire = gateway.client(name, properties=LASTING)
    wire.subscribe(name, qos=2)
    wire.disconnect()
    other = gateway.client(f"{name}o")
    for interval in (1, 100, None):
        other.publish(name, str(interval).encode(), qos=2, properties=Properties(message_expiry_interval=interval))
    time.sleep(2.2)  # the interval itself
    found = gateway.client(name, clean_start=False, properties=LASTING).received()
    assert [message.payload for message in found] == [b"100", b"None"]
    assert 90 <= found[0].properties.message_expiry_interval <= 98
    assert found[1].properties.message_expiry_interval is None


def test_sent_message_does_not_expire(gateway, name):
    """Once a PUBLISH was sent at QoS 2, its flow is completed though the message has expired."""
    wire = gateway.client(name, properties=LASTING)
    wire.subscribe(name, qos=2)
    gateway.client(f"{name}o").publish(name, b"m", qos=2, properties=Properties(message_expiry_interval=1))
    first = wire.take(Publish)
    wire.drop()
    time.sleep(1.5)  # the interval itself
    wire = gateway.client(name, clean_start=False, properties=LASTING)
    again = wire.take(Publish)
    assert (again.packet_id, again.dup) == (first.packet_id, True)
    wire.acknowledge(again)
    wire.ping()


def test_aliases_are_not_kept(gateway, name):
    """Topic aliases end with the connection."""
    wire = gateway.client(name, properties=LASTING)
    wire.publish(name, properties=Properties(topic_alias=1))
    wire.publish("", properties=Properties(topic_alias=1))
    wire.disconnect()
    wire = gateway.client(name, clean_start=False, properties=LASTING)
    wire.send(Publish(topic="", payload=b"", properties=Properties(topic_alias=1)))
    assert wire.verdict() == [ReasonCode.PROTOCOL_ERROR]


def test_versions_share_sessions(gateway, name):
    """A client may come back in the other version."""
    wire = gateway.client(name, V311, clean_start=False)
    wire.subscribe(name, qos=1)
    wire.disconnect()
    gateway.client(f"{name}o").publish(name, b"m")
    wire = gateway.client(name, Version.V5, clean_start=False, properties=LASTING)
    assert wire.connack.session_present
    assert wire.payloads() == [b"m"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_restart(tmp_path, name, how):
    """Sessions, queues, what is on its way, QoS 2 identifiers and retained messages survive the gateway's end."""
    with open_gateway(tmp_path / "gateway") as gateway:
        for version in Version:
            other, wire = gateway.client(f"{name}o{version}", version), lasting(gateway, f"{name}{version}", version)
            wire.subscribe(f"{name}{version}", qos=2)
            other.publish(f"{name}{version}", b"sent", qos=2)
            message = wire.take(Publish)
            wire.send(Publish(topic=f"{name}{version}", payload=b"mine", qos=2, packet_id=8))
            wire.take(Pubrec)
            wire.drop()
            other.publish(f"{name}{version}", b"queued", qos=1)
            other.publish(f"{name}r{version}", b"kept", retain=True)
        gateway.stop(how)
        gateway.start()
        for version in Version:
            wire = lasting(gateway, f"{name}{version}", version)
            assert wire.connack.session_present
            first = wire.receive()
            assert (first.payload, first.packet_id, first.dup) == (b"sent", message.packet_id, True)
            wire.send(
                Publish(topic=f"{name}{version}", payload=b"mine", qos=2, packet_id=8, dup=True), Pubrel(packet_id=8)
            )
            assert wire.take(Pubcomp).packet_id == 8
            assert sorted(wire.payloads()) == [b"mine", b"queued"]
            wire.subscribe(f"{name}r{version}")
            assert wire.payloads() == [b"kept"]
