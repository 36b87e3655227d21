"""The tree of filters answers what the one matcher defines."""

from hypothesis import given
from hypothesis import strategies as st

from edge_protocol.events import Event
from edge_protocol.topics import matches
from gateway.mqtt.messages import Message
from gateway.mqtt.router import Router, Subscribed
from gateway.mqtt.trie import Trie

level = st.sampled_from(["", "a", "b", "$x", "+"])
filters = st.tuples(st.lists(level, min_size=1, max_size=4), st.booleans()).map(
    lambda parts: "/".join(parts[0] + (["#"] if parts[1] else []))
) | st.just("#")
topics = st.lists(st.sampled_from(["", "a", "b", "c", "$x"]), min_size=1, max_size=5).map("/".join)


@given(st.lists(filters, max_size=12), st.lists(filters, max_size=12), st.lists(topics, max_size=6))
def test_trie_is_the_matcher(added, removed, asked):
    """Every filter that matches is found, none other; removed ones are gone and leave no node behind."""
    trie = Trie()
    for filter_ in added:
        trie.put(filter_, filter_, 1)
    for filter_ in removed:
        assert (trie.remove(filter_, filter_) is not None) == (filter_ in added)
        added = [each for each in added if each != filter_]
    for topic in asked:
        found = sorted(key for key, _ in trie.matching(topic))
        assert found == sorted(each for each in set(added) if matches(each, topic))
    for filter_ in set(added):
        trie.remove(filter_, filter_)
    assert trie._root.children == {}


class Sink:
    def __init__(self):
        self.got = []

    def offer(self, message, qos, identifiers, *, retain):
        self.got.append((message.topic, qos, identifiers, retain))
        return True


def test_overlapping_subscriptions_deliver_once():
    """A message under several filters of one session comes once, at the highest QoS, with all identifiers."""
    router, sink = Router(), Sink()
    router.subscribe("a/#", sink, Subscribed(qos=0, identifier=1))
    router.subscribe("a/+", sink, Subscribed(qos=1, identifier=2))
    assert router.route(Message("a/b", b"", qos=1)) == 1
    assert [(topic, qos, sorted(ids)) for topic, qos, ids, _ in sink.got] == [("a/b", 1, [1, 2])]


def test_retained():
    """The newest message of a topic is kept; an empty one removes it."""
    router, sink = Router(), Sink()
    router.publish_retained("gateway/keys", b"1")
    router.show_retained("gateway/+", sink, Subscribed(qos=0))
    router.publish_retained("gateway/keys", b"")
    router.show_retained("gateway/+", sink, Subscribed(qos=0))
    assert sink.got == [("gateway/keys", 0, (), True)]


def test_who_wants_events():
    """Whether events must be read for subscribers is known exactly."""
    router, sink = Router(), Sink()
    for filter_, wants in [
        ("devices/d/commands/+", False),
        ("gateway/keys", False),
        ("devices/+", False),
        ("devices/+/events", False),  # events have a type behind it
        ("devices/+/events/#", True),
        ("devices/#", True),
        ("#", True),
        ("+/d/+/x", True),
        ("other/#", False),
    ]:
        assert router.subscribe(filter_, sink, Subscribed())
        assert not router.subscribe(filter_, sink, Subscribed(qos=1))
        assert router.wants_events is wants, filter_
        assert router.unsubscribe(filter_, sink)
        assert not router.unsubscribe(filter_, sink)
        assert not router.wants_events


def test_events_of_services_are_not_shown():
    """A service's event has no device, so no topic."""
    router, sink = Router(), Sink()
    router.subscribe("#", sink, Subscribed(qos=1))
    assert router.publish_event(Event(id="1", source="/services/s", type="t")) == 0
    assert router.publish_event(Event(id="1", source="/devices/d", type="a.b")) == 1
    assert sink.got == [("devices/d/events/a/b", 1, (), False)]
