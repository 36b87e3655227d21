"""Wills (sections 3.1.2.5, 3.1.3.2, 3.14.4), black box, both versions."""

import time

import pytest

from gateway.mqtt.codec import Properties, Publish, ReasonCode, Version, Will

BOTH = pytest.mark.parametrize("version", list(Version))
V311 = Version.V311


@BOTH
@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("retain", [False, True])
def test_will_is_published(gateway, name, version, qos, retain):
    """A connection that is lost publishes its will, at its QoS, retained if it says so."""
    watcher = gateway.client(f"{name}w", version)
    watcher.subscribe(name, qos=2)
    wire = gateway.client(name, version, will=Will(topic=name, payload=b"gone", qos=qos, retain=retain))
    watcher.ping()
    assert not watcher.packets
    wire.drop()
    message = watcher.receive()
    assert (message.payload, message.qos, message.retain) == (b"gone", qos, False)
    later = gateway.client(f"{name}l", version)
    later.subscribe(name, qos=2)
    assert [(m.payload, m.qos, m.retain) for m in later.received()] == [(b"gone", qos, True)] * retain
    assert watcher.received() == []


@BOTH
def test_no_will_after_disconnect(gateway, name, version):
    """DISCONNECT deletes the will, and so it stays when the client comes again without one and is lost."""
    watcher = gateway.client(f"{name}w", version)
    watcher.subscribe(name)
    gateway.client(name, version, will=Will(topic=name, payload=b"gone")).disconnect()
    gateway.client(name, version).drop()
    assert watcher.received() == []


@BOTH
def test_will_once(gateway, name, version):
    """A will is published once: it is gone with the connection it came with."""
    watcher = gateway.client(f"{name}w", version)
    watcher.subscribe(name)
    gateway.client(name, version, will=Will(topic=name, payload=b"gone")).drop()
    assert watcher.receive().payload == b"gone"
    gateway.client(name, version, clean_start=False).drop()
    assert watcher.received() == []


@BOTH
def test_empty_will(gateway, name, version):
    """A will may be empty."""
    watcher = gateway.client(f"{name}w", version)
    watcher.subscribe(name)
    gateway.client(name, version, will=Will(topic=name, payload=b"")).drop()
    assert watcher.receive().payload == b""


@BOTH
def test_will_after_a_broken_rule(gateway, name, version):
    """Who is sent off for a malformed packet leaves the will."""
    watcher = gateway.client(f"{name}w", version)
    watcher.subscribe(name)
    wire = gateway.client(name, version, will=Will(topic=name, payload=b"gone"))
    wire.send(b"\0\0")
    wire.ended()
    assert watcher.receive().payload == b"gone"


@BOTH
def test_will_after_keep_alive(gateway, name, version):
    """Who falls silent leaves the will."""
    watcher = gateway.client(f"{name}w", version)
    watcher.subscribe(name)
    gateway.client(name, version, keep_alive_s=1, will=Will(topic=name, payload=b"gone"))
    assert watcher.receive().payload == b"gone"


@BOTH
def test_will_after_takeover(gateway, name, version):
    """A connection that is taken over with a clean session leaves the will."""
    watcher = gateway.client(f"{name}w", version)
    watcher.subscribe(name)
    gateway.client(name, version, will=Will(topic=name, payload=b"gone"))
    gateway.client(name, version)
    assert watcher.receive().payload == b"gone"


@BOTH
def test_will_that_policy_forbids(gateway, name, version):
    """A will on a topic that may not be published to is refused with the CONNECT."""
    wire = gateway.wire(version)
    refused = wire.connect(name, will=Will(topic="test/nopublish", payload=b"x"))
    assert (refused.reason_code, refused.session_present) == (ReasonCode.NOT_AUTHORIZED, False)
    assert wire.ended() == []


def test_will_asked_for(gateway, name):
    """DISCONNECT 0x04 publishes the will."""
    watcher = gateway.client(f"{name}w")
    watcher.subscribe(name)
    gateway.client(name, will=Will(topic=name, payload=b"gone")).disconnect(ReasonCode.DISCONNECT_WITH_WILL_MESSAGE)
    assert watcher.receive().payload == b"gone"


def test_will_keeps_its_properties(gateway, name):
    """What is said with the will is published with it, user properties in their order."""
    said = Properties(
        payload_format_indicator=1,
        message_expiry_interval=100,
        content_type="t/p",
        response_topic="r/t",
        correlation_data=b"\0",
        user_properties=(("b", "1"), ("a", "1"), ("b", "2")),
    )
    watcher = gateway.client(f"{name}w")
    watcher.subscribe(name, qos=1)
    gateway.client(name, will=Will(topic=name, payload=b"gone", qos=1, properties=said)).drop()
    got = watcher.receive().properties
    for field in ("payload_format_indicator", "content_type", "response_topic", "correlation_data", "user_properties"):
        assert getattr(got, field) == getattr(said, field), field
    assert got.message_expiry_interval in range(98, 101)
    assert got.will_delay_interval is None


def delayed(name, delay_s, payload=b"gone"):
    return Will(topic=name, payload=payload, properties=Properties(will_delay_interval=delay_s))


def test_will_delay(gateway, name):
    """The will waits for its delay."""
    watcher = gateway.client(f"{name}w")
    watcher.subscribe(name)
    wire = gateway.client(name, will=delayed(name, 2), properties=Properties(session_expiry_interval=60))
    wire.drop()
    start = time.monotonic()
    assert watcher.take(Publish, 6).payload == b"gone"
    assert 1.9 < time.monotonic() - start < 3.5


def test_will_delay_ends_with_the_session(gateway, name):
    """The session ends before the delay: the will is published then."""
    watcher = gateway.client(f"{name}w")
    watcher.subscribe(name)
    gateway.client(name, will=delayed(name, 60, b"at once")).drop()
    assert watcher.receive().payload == b"at once"
    expiry = Properties(session_expiry_interval=1)
    gateway.client(name, will=delayed(name, 60, b"in a second"), properties=expiry).drop()
    assert watcher.take(Publish, 6).payload == b"in a second"
    expiry = Properties(session_expiry_interval=60)
    gateway.client(name, will=delayed(name, 60, b"cleaned"), properties=expiry).drop()
    gateway.client(name, clean_start=True)
    assert watcher.receive().payload == b"cleaned"


def test_will_delay_of_one_who_comes_back(gateway, name):
    """A client that is back before the delay has passed leaves no will."""
    watcher = gateway.client(f"{name}w")
    watcher.subscribe(name)
    expiry = Properties(session_expiry_interval=60)
    gateway.client(name, will=delayed(name, 1), properties=expiry).drop()
    back = gateway.client(name, clean_start=False, properties=expiry)
    assert back.connack.session_present
    with pytest.raises(TimeoutError):
        watcher.read(2)
    back.disconnect()


def test_will_delay_of_one_who_comes_back_late(gateway, name):
    """A client that is back just when the delay has passed leaves its will, to a session that ends there too."""
    watcher = gateway.client(f"{name}w")
    watcher.subscribe(name)
    for expiry_s, is_kept in ((60, True), (1, False)):
        expiry = Properties(session_expiry_interval=expiry_s)
        gateway.client(name, will=delayed(name, 1), properties=expiry).drop()
        watcher.ping()  # the gateway has seen the end of the connection
        time.sleep(1.02)  # the delay itself
        back = gateway.client(name, clean_start=False, properties=expiry)
        assert back.connack.session_present is is_kept
        assert watcher.receive().payload == b"gone"
        back.disconnect()
    assert watcher.received() == []


def test_will_delay_of_one_taken_over(gateway, name):
    """A takeover that resumes the session is a coming back too."""
    watcher = gateway.client(f"{name}w")
    watcher.subscribe(name)
    expiry = Properties(session_expiry_interval=60)
    gateway.client(name, will=delayed(name, 1), properties=expiry)
    gateway.client(name, clean_start=False, properties=expiry)
    with pytest.raises(TimeoutError):
        watcher.read(2)
