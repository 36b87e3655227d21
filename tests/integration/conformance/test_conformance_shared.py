"""Shared subscriptions (section 4.8.2), black box; 3.1.1 clients are offered them too."""

import pytest

from gateway.mqtt.codec import Properties, Puback, Publish, Pubrec, Pubrel, ReasonCode, Version

BOTH = pytest.mark.parametrize("version", list(Version))


def members(gateway, name, count, version=Version.V5, qos=2, **options):
    """So many members of one share, subscribed."""
    wires = [gateway.client(f"{name}{n}", version, **options) for n in range(count)]
    for wire in wires:
        assert wire.subscribe(f"$share/{name}/{name}/#", qos=qos) == (qos,)
    return wires


@BOTH
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_each_message_goes_to_one(gateway, name, version, qos):
    """Every message reaches exactly one member, and every member gets some."""
    wires = members(gateway, name, 3, version)
    other = gateway.client(f"{name}o", version)
    for n in range(60):
        other.publish(f"{name}/a", b"%d" % n, qos=qos)
    other.ping()
    found = [wire.payloads() for wire in wires]
    assert sorted((payload for each in found for payload in each), key=int) == [b"%d" % n for n in range(60)]
    assert all(found)


@BOTH
def test_beside_ordinary_subscriptions(gateway, name, version):
    """Who subscribes plainly gets every message besides; a member that does both gets both."""
    first, second = members(gateway, name, 2, version)
    plain, other = gateway.client(f"{name}p", version), gateway.client(f"{name}o", version)
    plain.subscribe(f"{name}/#")
    first.subscribe(f"{name}/#", qos=1)
    for n in range(10):
        other.publish(f"{name}/a", b"%d" % n)
    assert len(plain.received()) == 10
    assert len(first.received()) + len(second.received()) == 20


@BOTH
def test_groups_are_apart(gateway, name, version):
    """Two share names on one filter each get every message; the same name on another filter is another share."""
    wires = [gateway.client(f"{name}{n}", version) for n in range(3)]
    for wire, group, topic_filter in zip(wires, ("g", "h", "g"), ("#", "#", "+"), strict=True):
        wire.subscribe(f"$share/{group}/{name}/{topic_filter}", qos=1)
    other = gateway.client(f"{name}o", version)
    for n in range(5):
        other.publish(f"{name}/a", b"%d" % n)
    assert [len(wire.received()) for wire in wires] == [5, 5, 5]


@BOTH
def test_granted_qos(gateway, name, version):
    """A member gets messages at the QoS that was granted to it."""
    (member,) = members(gateway, name, 1, version, qos=1)
    gateway.client(f"{name}o", version).publish(f"{name}/a", qos=2)
    assert [message.qos for message in member.received()] == [1]


@BOTH
def test_unsubscribed_member(gateway, name, version):
    """Who leaves gets nothing more; the others get all."""
    first, second = members(gateway, name, 2, version)
    assert list(first.unsubscribe(f"$share/{name}/{name}/#")) == ([] if version is Version.V311 else [0])
    other = gateway.client(f"{name}o", version)
    for n in range(6):
        other.publish(f"{name}/a", b"%d" % n)
    assert first.received() == []
    assert len(second.received()) == 6


@BOTH
def test_member_that_is_gone(gateway, name, version):
    """A member whose session has ended is passed over, and what it owed at QoS 1 goes to another."""
    first, second = members(gateway, name, 2, version, qos=1)
    other = gateway.client(f"{name}o", version)
    for n in range(10):
        other.publish(f"{name}/a", b"%d" % n)
    first.take(Publish)
    first.drop()
    other.publish(f"{name}/a", b"10")
    assert sorted(second.payloads(), key=int) == [b"%d" % n for n in range(11)]


def test_refused_by_a_member(gateway, name):
    """A message that a member refuses is discarded: no other member gets it."""
    first, second = members(gateway, name, 2)
    other = gateway.client(f"{name}o")
    for n in range(4):
        other.publish(f"{name}/a", b"%d" % n, qos=1 + n % 2)
    refused = 0
    for wire in (first, second):
        wire.ping()
        while wire.packets:
            message = wire.packets.popleft()
            if isinstance(message, Publish):
                kind = Puback if message.qos == 1 else Pubrec
                wire.send(kind(packet_id=message.packet_id, reason_code=ReasonCode.QUOTA_EXCEEDED))
                refused += 1
    assert refused == 4
    assert first.received() == second.received() == []


def test_qos_2_of_a_member_that_comes_back(gateway, name):
    """A QoS 2 delivery that has begun is completed to the same member when it reconnects."""
    lasting = Properties(session_expiry_interval=600)
    (first,) = members(gateway, name, 1, properties=lasting)
    gateway.client(f"{name}o").publish(f"{name}/a", b"m", qos=2)
    message = first.take(Publish)
    first.send(Pubrec(packet_id=message.packet_id))
    first.take(Pubrel)
    first.drop()
    second = gateway.client(f"{name}s")
    second.subscribe(f"$share/{name}/{name}/#", qos=2)
    first = gateway.client(f"{name}0", clean_start=False, properties=lasting)
    assert first.take(Pubrel).packet_id == message.packet_id
    assert second.received() == []


def test_qos_2_of_a_member_that_does_not(gateway, name):
    """A QoS 2 delivery that has begun goes to nobody else when the member's session ends."""
    first, second = members(gateway, name, 2)
    other = gateway.client(f"{name}o")
    while not first.packets:
        other.publish(f"{name}/a", b"m", qos=2)
        first.ping()
    seen = len(second.received())
    message = first.take(Publish)
    first.send(Pubrec(packet_id=message.packet_id))
    first.take(Pubrel)
    first.drop()
    assert second.received() == []
    assert seen in {0, 1}


def test_identifier_of_a_shared_subscription(gateway, name):
    """Shared subscriptions carry their Subscription Identifier."""
    wire = gateway.client(name)
    wire.subscribe(f"$share/{name}/{name}", qos=1, identifier=77)
    wire.publish(name)
    assert [message.properties.subscription_identifiers for message in wire.received()] == [(77,)]


@BOTH
def test_shared_names_are_checked_like_filters(gateway, name, version):
    """The filter behind the share name is what policy is asked about."""
    wire = gateway.client(name, version)
    assert wire.subscribe("$share/g/test/nosubscribe")[0] >= 0x80
