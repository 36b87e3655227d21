"""The tree of topics finds exactly what the one matcher matches."""

from hypothesis import given
from hypothesis import strategies as st

from edge_protocol.topics import matches
from gateway.mqtt.topic_tree import TopicTree

LEVELS = st.sampled_from(["a", "b", "", "$s"])
TOPICS = st.lists(LEVELS, min_size=1, max_size=4).map("/".join).filter(bool)
FILTERS = st.tuples(st.lists(LEVELS | st.just("+"), max_size=4), st.booleans()).map(
    lambda parts: "/".join([*parts[0], *(["#"] if parts[1] else [])])
)


@given(st.lists(TOPICS, max_size=20), st.lists(TOPICS, max_size=10), FILTERS.filter(bool))
def test_agrees_with_the_matcher(put, popped, filter_):
    """After any puts and pops, what is under a filter is what matches it, each topic once."""
    tree, expected = TopicTree(), {}
    for topic in put:
        assert tree.put(topic, topic) == expected.get(topic)
        expected[topic] = topic
    for topic in popped:
        assert tree.pop(topic) == expected.pop(topic, None)
    assert sorted(tree.under(filter_)) == sorted(topic for topic in expected if matches(filter_, topic))
    assert all(tree.get(topic) == expected.get(topic) for topic in put)


@given(st.lists(TOPICS, max_size=20))
def test_nothing_is_left(topics):
    """A tree from which all was taken is empty: no node stays behind."""
    tree = TopicTree()
    for topic in topics:
        tree.put(topic, 1)
    for topic in topics:
        tree.pop(topic)
    assert not tree._root.children


def test_deep_topics():
    """A topic of 30,000 levels is found without recursion."""
    tree, deep = TopicTree(), "a/" * 30_000 + "b"
    tree.put(deep, 1)
    assert list(tree.under("#")) == [1]
    assert list(tree.under("a/#")) == [1]
    assert list(tree.under("b/#")) == []
