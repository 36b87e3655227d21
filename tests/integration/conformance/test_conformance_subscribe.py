"""SUBSCRIBE, UNSUBSCRIBE and the topic matching behind them (sections 3.8 to 3.11 and 4.7), black box, both versions."""

import pytest

from gateway.mqtt.codec import (
    Properties,
    Publish,
    ReasonCode,
    Suback,
    Subscribe,
    Subscription,
    Unsuback,
    Unsubscribe,
    Version,
)

BOTH = pytest.mark.parametrize("version", list(Version))
V311 = Version.V311


@BOTH
def test_suback(gateway, name, version):
    """One SUBACK with the identifier of the SUBSCRIBE and a code for each filter, in their order."""
    wire = gateway.client(name, version)
    filters = [(f"{name}/a", 2), ("test/nosubscribe", 1), (f"{name}/b", 0), (f"{name}/#", 1), ("test/nosubscribe", 2)]
    subscriptions = tuple(Subscription(topic_filter=each, qos=qos) for each, qos in filters)
    wire.send(Subscribe(packet_id=4711, subscriptions=subscriptions))
    answer = wire.read()
    assert (type(answer), answer.packet_id) == (Suback, 4711)
    no = ReasonCode.UNSPECIFIED_ERROR if version is V311 else ReasonCode.NOT_AUTHORIZED
    assert answer.reason_codes == (2, no, 0, 1, no)
    wire.ping()
    assert not wire.packets


@BOTH
def test_refused_subscription_gets_nothing(gateway, name, version):
    """A filter that was refused delivers nothing; those beside it do."""
    wire = gateway.client(name, version)
    wire.subscribe("test/nosubscribe", name)
    wire.publish("test/nosubscribe")
    wire.publish(name, b"yes")
    assert wire.payloads() == [b"yes"]


@BOTH
def test_unsuback(gateway, name, version):
    """One UNSUBACK with the identifier of the UNSUBSCRIBE, in 5.0 a code for each filter in their order."""
    wire = gateway.client(name, version)
    wire.subscribe(f"{name}/a", f"{name}/b", f"{name}/+")
    filters = (f"{name}/a", f"{name}/none", f"{name}/b", f"{name}/#")
    wire.send(Unsubscribe(packet_id=65535, topic_filters=filters))
    answer = wire.read()
    assert (type(answer), answer.packet_id) == (Unsuback, 65535)
    assert answer.reason_codes == (() if version is V311 else (0, 0x11, 0, 0x11))
    wire.publish(f"{name}/a")
    assert [message.topic for message in wire.received()] == [f"{name}/a"]  # + was not asked for, # was never there
    wire.unsubscribe(f"{name}/+")
    wire.publish(f"{name}/a")
    assert wire.received() == []


@BOTH
def test_unsubscribed_while_it_is_on_its_way(gateway, name, version):
    """A delivery that has begun is completed after UNSUBSCRIBE; no new one begins."""
    wire = gateway.client(name, version)
    wire.subscribe(name, qos=2)
    wire.publish(name, b"begun", qos=2)
    message = wire.take(Publish)
    wire.unsubscribe(name)
    wire.publish(name, b"new", qos=2)
    wire.acknowledge(message)
    assert wire.received() == []


@BOTH
def test_subscription_is_replaced(gateway, name, version):
    """The same filter again replaces the subscription: one copy, at the new QoS."""
    wire = gateway.client(name, version)
    for qos in (2, 0, 1):
        assert wire.subscribe(f"{name}/+", qos=qos) == (qos,)
        wire.publish(f"{name}/a", qos=2)
        assert [message.qos for message in wire.received()] == [qos]


@BOTH
def test_replacing_shows_retained_again(gateway, name, version):
    """A repeated SUBSCRIBE sends the retained messages again, and loses none that comes meanwhile."""
    wire, other = gateway.client(name, version), gateway.client(f"{name}o", version)
    other.publish(f"{name}/r", b"kept", retain=True)
    for n in range(3):
        wire.subscribe(f"{name}/#", qos=1)
        other.publish(f"{name}/live", b"%d" % n)
        assert sorted(wire.payloads()) == [b"%d" % n, b"kept"]


@BOTH
def test_overlapping_subscriptions(gateway, name, version):
    """One copy at the highest QoS, or one a subscription, each at its QoS."""
    wire = gateway.client(name, version)
    wire.subscribe(f"{name}/#", qos=2)
    wire.subscribe(f"{name}/+", qos=1)
    wire.publish(f"{name}/a", b"overlap", qos=2)
    assert [message.qos for message in wire.received()] in ([2], [2, 1], [1, 2])


def test_subscription_identifiers(gateway, name):
    """A message carries the identifiers of all its subscriptions that have one, and of no other."""
    wire = gateway.client(name)
    wire.subscribe(f"{name}/a", identifier=1)
    wire.subscribe(f"{name}/+", identifier=268_435_455)
    wire.subscribe(f"{name}/#")
    wire.subscribe(f"{name}/b", identifier=2)
    wire.publish(f"{name}/a")
    wire.publish(f"{name}/b/c")
    copies = wire.received()
    found = [number for each in copies for number in each.properties.subscription_identifiers if each.topic[-1] == "a"]
    assert sorted(found) == [1, 268_435_455]
    assert [each.properties.subscription_identifiers for each in copies if each.topic[-1] == "c"] == [()]


def test_subscription_identifier_is_replaced(gateway, name):
    """A SUBSCRIBE without an identifier takes it away, another one changes it; retained messages carry it too."""
    wire = gateway.client(name)
    wire.publish(name, b"kept", retain=True)
    for identifier in (5, 6, None):
        wire.subscribe(name, identifier=identifier)
        wire.publish(name)
        wanted = () if identifier is None else (identifier,)
        assert [message.properties.subscription_identifiers for message in wire.received()] == [wanted] * 2


def test_same_identifier_for_two_filters(gateway, name):
    """One SUBSCRIBE with two filters gives both the identifier."""
    wire = gateway.client(name)
    wire.subscribe(f"{name}/a", f"{name}/b", identifier=9)
    wire.publish(f"{name}/a")
    wire.publish(f"{name}/b")
    assert [message.properties.subscription_identifiers for message in wire.received()] == [(9,), (9,)]


def test_no_local(gateway, name):
    """With No Local a client does not get its own messages; others' it does, and others get its."""
    wire, other = gateway.client(name), gateway.client(f"{name}o")
    wire.subscribe(name, no_local=True)
    other.subscribe(name)
    wire.publish(name, b"mine")
    other.publish(name, b"theirs")
    assert wire.payloads() == [b"theirs"]
    assert other.payloads() == [b"mine", b"theirs"]


@pytest.mark.parametrize("as_published", [False, True])
def test_retain_as_published(gateway, name, as_published):
    """RETAIN of a live message is kept if the subscription says so, else cleared."""
    wire = gateway.client(name)
    wire.subscribe(name, retain_as_published=as_published)
    wire.publish(name, retain=True)
    wire.publish(name, retain=False)
    assert [message.retain for message in wire.received()] == [as_published, False]


MATCHES = [  # filter, topic behind the test's own first level, does it fall under it (section 4.7)
    ("sport/tennis/player1/#", "sport/tennis/player1", True),
    ("sport/tennis/player1/#", "sport/tennis/player1/ranking", True),
    ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", True),
    ("sport/#", "sport", True),
    ("#", "anything/at/all", True),
    ("sport/tennis/+", "sport/tennis/player1", True),
    ("sport/tennis/+", "sport/tennis/player1/ranking", False),
    ("sport/+", "sport", False),
    ("sport/+", "sport/", True),
    ("+/+", "/finance", True),
    ("/+", "/finance", True),
    ("+", "/finance", False),
    ("+/tennis/#", "sport/tennis/x", True),
    ("a/b", "a/b", True),
    ("a/b", "A/B", False),
    ("a/b", "a/b/", False),
    ("a//b", "a//b", True),
    ("a/+/b", "a//b", True),
    ("a b", "a b", True),
    ("a/b", "a/bc", False),
]


@BOTH
@pytest.mark.parametrize("case", MATCHES, ids=lambda case: " : ".join(case[:2]))
def test_matching(gateway, name, version, case):
    """Levels and wildcards as section 4.7 has them."""
    topic_filter, topic, falls_under = case
    wire = gateway.client(name, version)
    wire.subscribe(f"{name}/{topic_filter}")
    wire.publish(f"{name}/{topic}")
    assert [message.topic for message in wire.received()] == [f"{name}/{topic}"] * falls_under


@BOTH
def test_dollar_topics(gateway, name, version):
    """A filter that begins with a wildcard does not meet a topic that begins with `$`; QoS 0 there harms nobody."""
    wire, other = gateway.client(name, version), gateway.client(f"{name}o", version)
    wire.subscribe("#", f"+/{name}")
    other.publish(f"${name}/{name}", qos=0)
    other.publish("$SYS/broker/uptime", qos=0)
    other.publish(f"a/{name}", b"seen", qos=1)
    assert {message.topic for message in wire.received() if name in message.topic} == {f"a/{name}"}


@BOTH
def test_dollar_topics_are_answered(gateway, name, version):
    """A publish to a `$` topic does not cost the connection: it is acknowledged, in 5.0 as refused, and reaches nobody."""
    wire, other = gateway.client(name, version), gateway.client(f"{name}o", version)
    other.subscribe(f"${name}/a", "#")
    for qos in (1, 2):
        answer = wire.publish(f"${name}/a", qos=qos)
        assert answer.reason_code == (0 if version is V311 else ReasonCode.NOT_AUTHORIZED)
    assert not [message for message in other.received() if name in message.topic]


@BOTH
def test_everything(gateway, name, version):
    """The filter `#` is an ordinary one."""
    wire = gateway.client(name, version)
    assert wire.subscribe("#", qos=2) == (2,)
    wire.publish(name, b"here")
    assert b"here" in wire.payloads()


@BOTH
def test_many_filters_in_one_packet(gateway, name, version):
    """A SUBSCRIBE with many filters is as good as many of them."""
    wire = gateway.client(name, version)
    filters = [f"{name}/{n}" for n in range(200)]
    assert wire.subscribe(*filters, qos=1) == (1,) * 200
    wire.publish(f"{name}/199")
    assert len(wire.received()) == 1
    wire.unsubscribe(*filters)
    wire.publish(f"{name}/199")
    assert wire.received() == []


def test_no_answer_is_delayed_by_a_full_window(gateway, name):
    """SUBACK, UNSUBACK and PINGRESP come while the client owes all acknowledgements it may owe."""
    wire = gateway.client(name, properties=Properties(receive_maximum=1))
    wire.subscribe(name, qos=1)
    wire.publish(name)
    wire.publish(name)
    wire.take(Publish)
    wire.subscribe(f"{name}/more")
    wire.unsubscribe(f"{name}/more")
    assert wire.publish(f"{name}/else", qos=2) is not None
    wire.ping()
    assert not [packet for packet in wire.packets if isinstance(packet, Publish)]
