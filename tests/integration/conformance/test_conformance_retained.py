"""Retained messages (section 3.3.1.3), black box, both versions."""

import time

import pytest

from gateway.mqtt.codec import Properties, Version

BOTH = pytest.mark.parametrize("version", list(Version))
QOS = pytest.mark.parametrize("qos", [0, 1, 2])


@BOTH
@QOS
def test_retained(gateway, name, version, qos):
    """A retained message is shown with RETAIN to later subscribers, at the lower QoS; the last one wins."""
    publisher = gateway.client(name, version)
    publisher.publish(f"{name}/a", b"first", qos=1, retain=True)
    publisher.publish(f"{name}/a", b"last", qos=qos, retain=True)
    publisher.ping()
    for granted in (0, 1, 2):
        later = gateway.client(f"{name}{granted}", version)
        later.subscribe(f"{name}/+", qos=granted)
        assert [(m.topic, m.payload, m.qos, m.retain, m.dup) for m in later.received()] == [
            (f"{name}/a", b"last", min(qos, granted), True, False)
        ]


@BOTH
def test_live_copy_is_not_marked(gateway, name, version):
    """Who is subscribed already gets the message with RETAIN 0."""
    wire = gateway.client(name, version)
    wire.subscribe(name, qos=1)
    wire.publish(name, retain=True)
    assert [message.retain for message in wire.received()] == [False]


@BOTH
def test_each_matching_topic(gateway, name, version):
    """A new subscription shows the retained message of each topic under it, and of no other."""
    publisher, later = gateway.client(name, version), gateway.client(f"{name}l", version)
    for topic in ("a", "b", "b/c", "d/e/f"):
        publisher.publish(f"{name}/{topic}", topic.encode(), retain=True)
    for topic_filter, wanted in (
        ("+", ["a", "b"]),
        ("#", ["a", "b", "b/c", "d/e/f"]),
        ("b/#", ["b", "b/c"]),
        ("+/c", ["b/c"]),
    ):
        later.subscribe(f"{name}/{topic_filter}")
        assert sorted(payload.decode() for payload in later.payloads()) == wanted


@BOTH
@QOS
def test_empty_payload_removes(gateway, name, version, qos):
    """An empty retained message is delivered, removes what was kept, and is not kept."""
    wire = gateway.client(name, version)
    wire.publish(name, b"kept", retain=True)
    wire.subscribe(name)
    assert wire.payloads() == [b"kept"]
    wire.publish(name, b"", qos=qos, retain=True)
    wire.ping()
    assert wire.payloads() == [b""]
    later = gateway.client(f"{name}l", version)
    later.subscribe(name)
    assert later.received() == []


@BOTH
@pytest.mark.parametrize("payload", [b"other", b""])
def test_unretained_changes_nothing(gateway, name, version, payload):
    """Without RETAIN, an empty payload too, what is kept stays."""
    wire = gateway.client(name, version)
    wire.publish(name, b"kept", retain=True)
    wire.publish(name, payload, retain=False)
    wire.subscribe(name)
    assert wire.payloads() == [b"kept"]


@BOTH
def test_outlives_the_session(gateway, name, version):
    """Retained messages are no part of a session: they stay when the publisher is gone."""
    wire = gateway.client(name, version)
    wire.publish(name, b"kept", retain=True)
    wire.disconnect()
    later = gateway.client(name, version)
    later.subscribe(name)
    assert later.payloads() == [b"kept"]


@pytest.mark.parametrize(("handling", "counts"), [(0, [1, 1]), (1, [1, 0]), (2, [0, 0])])
def test_retain_handling(gateway, name, handling, counts):
    """0: at every SUBSCRIBE; 1: only if the subscription is new; 2: never."""
    wire = gateway.client(name)
    wire.publish(name, b"kept", retain=True)
    found = []
    for _ in counts:
        wire.subscribe(name, retain_handling=handling)
        found.append(len(wire.received()))
    assert found == counts
    wire.unsubscribe(name)
    wire.subscribe(name, retain_handling=handling)
    assert len(wire.received()) == counts[0]


def test_retained_as_published(gateway, name):
    """A retained message shown to a new subscription has RETAIN 1, whatever Retain As Published says."""
    wire = gateway.client(name)
    wire.publish(name, b"kept", retain=True)
    for as_published in (False, True):
        wire.subscribe(name, retain_as_published=as_published)
        assert [message.retain for message in wire.received()] == [True]


def test_retained_message_keeps_its_properties(gateway, name):
    """What was published with the message is shown with it; its expiry counts down, and ends it."""
    wire = gateway.client(name)
    said = Properties(content_type="a/b", user_properties=(("k", "2"), ("k", "1")), message_expiry_interval=2)
    wire.publish(name, b"kept", retain=True, properties=said)
    wire.subscribe(name)
    (shown,) = wire.received()
    assert (shown.properties.content_type, shown.properties.user_properties) == ("a/b", (("k", "2"), ("k", "1")))
    assert shown.properties.message_expiry_interval in {1, 2}
    deadline = time.monotonic() + 5
    while wire.subscribe(name) and wire.received():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_no_alias_is_kept(gateway, name):
    """A topic alias belongs to the connection: a retained message is kept under its name."""
    wire = gateway.client(name)
    wire.publish(name, b"first", properties=Properties(topic_alias=1))
    wire.publish("", b"kept", retain=True, properties=Properties(topic_alias=1))
    later = gateway.client(f"{name}l")
    later.subscribe(name)
    assert [(m.topic, m.payload, m.properties.topic_alias) for m in later.received()] == [(name, b"kept", None)]


@BOTH
def test_shared_subscriptions_are_shown_none(gateway, name, version):
    """A shared subscription gets no retained messages when it is made."""
    wire = gateway.client(name, version)
    wire.publish(f"{name}/a", b"kept", retain=True)
    wire.subscribe(f"$share/{name}/{name}/#", qos=1)
    assert wire.received() == []


@BOTH
def test_the_gateways_own_messages(gateway, name, version):
    """The key set is shown to who asks for it by name, not to a filter that begins with a wildcard."""
    wire = gateway.client(name, version)
    wire.subscribe("+/+", "#", "+/keys")
    assert [message.topic for message in wire.received() if message.topic.startswith("gateway/")] == []
    wire.subscribe("gateway/+")
    assert [message.topic for message in wire.received()] == ["gateway/keys"]
    wire.publish("gateway/keys", b"", qos=0, retain=True)  # what suites do to clean up
    wire.subscribe("gateway/keys")
    assert [bool(message.payload) for message in wire.received()] == [True]
