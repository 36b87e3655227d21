"""Topics: the examples of MQTT 4.7, the covering of filters against brute force, and the table of section 3."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_protocol.errors import TopicInvalid
from edge_protocol.topics import (
    MAX_TOPIC_BYTES,
    Kind,
    Place,
    covers,
    events_topic,
    matches,
    place_of,
    split_share,
    token_topic,
    topic_filter,
    topic_name,
)


@pytest.mark.parametrize(
    ("filter_", "topic", "expected"),
    [
        ("sport/tennis/player1/#", "sport/tennis/player1", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/ranking", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", True),
        ("sport/#", "sport", True),
        ("#", "sport/tennis", True),
        ("sport/tennis/+", "sport/tennis/player1", True),
        ("sport/tennis/+", "sport/tennis/player1/ranking", False),
        ("sport/+", "sport", False),
        ("sport/+", "sport/", True),
        ("+/+", "/finance", True),
        ("/+", "/finance", True),
        ("+", "/finance", False),
        ("+/tennis/#", "sport/tennis", True),
        ("#", "$SYS/x", False),
        ("+/monitor/Clients", "$SYS/monitor/Clients", False),
        ("$SYS/#", "$SYS/monitor/Clients", True),
        ("$SYS/monitor/+", "$SYS/monitor/Clients", True),
        ("a/#", "a/$x", True),
        ("a/+", "a/$x", True),
        ("ACCOUNTS", "Accounts", False),
        ("a/b", "/a/b", False),
        ("a", "a/", False),
        ("a//b", "a/b", False),
        ("a/+/b", "a//b", True),
        ("e\u0301", "\u00e9", False),
    ],
)
def test_the_examples_of_mqtt_4_7(filter_, topic, expected):
    """Matching follows MQTT 5.0, section 4.7, to the letter, and never normalises."""
    assert matches(topic_filter(filter_), topic_name(topic)) is expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "topic of 0 bytes: expected 1 to 65535"),
        ("a\0b", "topic: expected no NUL character"),
        ("a\ud800", "topic: expected no surrogates"),
        ("sport/tennis#", "expected '#' alone in the last level"),
        ("sport/tennis/#/ranking", "expected '#' alone in the last level"),
        ("sport+", "expected '+' alone in its level"),
        ("a/+b", "expected '+' alone in its level"),
        ("a/##", "expected '#' alone in the last level"),
        ("++", "expected '+' alone in its level"),
    ],
)
def test_bad_filters(text, message):
    """A filter with a misplaced wildcard, NUL, surrogate or no character is refused."""
    with pytest.raises(TopicInvalid) as caught:
        topic_filter(text)
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["a/+", "#", "a#", "a+b"])
def test_names_have_no_wildcards(text):
    """A topic name with a wildcard anywhere is refused."""
    with pytest.raises(TopicInvalid, match=r"expected no wildcard \[MQTT-3.3.2-2\]"):
        topic_name(text)


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_topic_length_is_counted_in_bytes(more):
    """65535 UTF-8 bytes are allowed, not characters."""
    text = "\u00e9" * (MAX_TOPIC_BYTES // 2) + "a" * (1 + more)
    if more <= 0:
        assert (topic_name(text), topic_filter(text)) == (text, text)
    else:
        with pytest.raises(TopicInvalid, match=r"topic of 65536 bytes: expected 1 to 65535"):
            topic_name(text)


NAME_LEVELS = ("", "a", "b", "$a", "c")
UNIVERSE = [
    topic_name("/".join(t)) for n in range(1, 5) for t in itertools.product(NAME_LEVELS, repeat=n) if t != ("",)
]
filters = (
    st.tuples(st.lists(st.sampled_from(("", "a", "b", "$a", "+")), max_size=3), st.sampled_from(("", "a", "+", "#")))
    .map(lambda parts: "/".join([*parts[0], parts[1]]))
    .filter(bool)
    .map(topic_filter)
)


@given(filters, filters)
def test_covers_agrees_with_brute_force(pattern, filter_):
    """A pattern covers a filter exactly if every topic of a small universe under the filter is under the pattern."""
    expected = all(matches(pattern, topic) for topic in UNIVERSE if matches(filter_, topic))
    assert covers(pattern, filter_) is expected


def test_covers_of_all_short_filters():
    """The same for every pair of filters of up to two levels, none left to chance."""
    levels = ("", "a", "$a", "+", "#")
    short = [f for n in (1, 2) for f in itertools.product(levels, repeat=n) if f != ("",) and "#" not in f[:-1]]
    short = [topic_filter("/".join(f)) for f in short]
    under = {f: {topic for topic in UNIVERSE if matches(f, topic)} for f in short}
    for pattern, filter_ in itertools.product(short, short):
        assert covers(pattern, filter_) is (under[filter_] <= under[pattern]), (pattern, filter_)


@pytest.mark.parametrize(
    ("text", "group", "inner"),
    [
        ("$share/g/a/+", "g", "a/+"),
        ("$share/g//a", "g", "/a"),
        ("$share/g/#", "g", "#"),
        ("a/b", None, "a/b"),
        ("$shared/g/a", None, "$shared/g/a"),
        ("$SHARE/g/a", None, "$SHARE/g/a"),
        ("/$share/g/a", None, "/$share/g/a"),
    ],
)
def test_split_share(text, group, inner):
    """A shared filter is split into group and filter; others are left whole."""
    assert split_share(text) == (group, inner)


@pytest.mark.parametrize(
    "text", ["$share", "$share/", "$share/g", "$share/g/", "$share//a", "$share/+/a", "$share/g#/a", "$share/#"]
)
def test_bad_shares(text):
    """No group, no filter, or a wildcard in the group is refused [MQTT-4.8.2-1, -2]."""
    with pytest.raises(TopicInvalid, match=r"expected \$share/GROUP/FILTER \[MQTT-4.8.2-1\]"):
        split_share(text)


def test_a_share_of_a_bad_filter_is_refused():
    """The filter behind the group obeys the same rules as any."""
    with pytest.raises(TopicInvalid, match="'#' alone in the last level"):
        split_share("$share/g/a/#/b")


@pytest.mark.parametrize(
    ("topic", "place", "is_up"),
    [
        ("devices/d1/events", Place(Kind.EVENTS, "d1"), True),
        ("devices/d1/events/cart", Place(Kind.EVENTS, "d1", event_type="cart"), True),
        ("devices/d1/events/cart/up_dated/X-1", Place(Kind.EVENTS, "d1", event_type="cart.up_dated.X-1"), True),
        ("devices/d1/state", Place(Kind.STATE, "d1"), True),
        ("devices/d1/token", Place(Kind.TOKEN, "d1"), True),
        ("gateway/token", Place(Kind.TOKEN), True),
        ("devices/d1/commands/reboot", Place(Kind.COMMAND, "d1", name="reboot"), True),
        ("devices/d1/commands/reboot/response", Place(Kind.RESPONSE, "d1", name="reboot"), True),
        ("devices/d1/config", Place(Kind.CONFIG, "d1"), False),
        ("devices/d1/receipts", Place(Kind.RECEIPTS, "d1"), False),
        ("gateway/keys", Place(Kind.KEYS), False),
        ("other", Place(Kind.ORDINARY), True),
        ("/devices/d1/events", Place(Kind.ORDINARY), True),
        ("Devices/d1/events", Place(Kind.ORDINARY), True),
        ("gateways/x", Place(Kind.ORDINARY), True),
        ("$SYS/x", Place(Kind.ORDINARY), True),
    ],
)
def test_every_row_of_section_3(topic, place, is_up):
    """Each topic of the table has its place, and everything elsewhere is ordinary."""
    assert place_of(topic_name(topic)) == place
    assert place.kind.is_up is is_up


@pytest.mark.parametrize(
    ("topic", "message"),
    [
        ("devices", "expected devices/ID/events and the like"),
        ("devices/", "expected devices/ID/events and the like"),
        ("devices/d1", "expected devices/ID/events and the like"),
        ("devices/d1/", "under devices/ID/ there are events, events/TYPE, state"),
        ("devices//events", "device id '': expected 1 to 128"),
        ("devices/.d/events", "device id '.d': expected 1 to 128"),
        ("devices/d 1/events", "device id 'd 1': expected 1 to 128"),
        ("devices/d1/events/", "under devices/ID/ there are"),
        ("devices/d1/events//a", "under devices/ID/ there are"),
        ("devices/d1/events/a/", "under devices/ID/ there are"),
        ("devices/d1/events/a.b", "under devices/ID/ there are"),
        ("devices/d1/events/\u00e9", "under devices/ID/ there are"),
        ("devices/d1/events/" + "a" * 256, "under devices/ID/ there are"),
        ("devices/d1/Events", "under devices/ID/ there are"),
        ("devices/d1/state/x", "under devices/ID/ there are"),
        ("devices/d1/token/x", "under devices/ID/ there are"),
        ("devices/d1/config/x", "under devices/ID/ there are"),
        ("devices/d1/commands", "under devices/ID/ there are"),
        ("devices/d1/commands/", "under devices/ID/ there are"),
        ("devices/d1/commands//response", "under devices/ID/ there are"),
        ("devices/d1/commands/a/b", "under devices/ID/ there are"),
        ("devices/d1/commands/a/response/x", "under devices/ID/ there are"),
        ("gateway", "under gateway/ there are only gateway/keys and gateway/token"),
        ("gateway/", "under gateway/ there are only gateway/keys and gateway/token"),
        ("gateway/keys/x", "under gateway/ there are only gateway/keys and gateway/token"),
        ("gateway/other", "under gateway/ there are only gateway/keys and gateway/token"),
    ],
)
def test_nothing_else_exists(topic, message):
    """Under `devices/` and `gateway/` there is what the table names and nothing else."""
    with pytest.raises(TopicInvalid) as caught:
        place_of(topic_name(topic))
    assert message in str(caught.value)


def test_topics_are_built_as_they_are_read():
    """A topic built for a device is read back as its place."""
    assert place_of(events_topic("d1")) == Place(Kind.EVENTS, "d1")
    assert events_topic("d1", "cart.updated") == "devices/d1/events/cart/updated"
    assert place_of(events_topic("d1", "cart.updated")).event_type == "cart.updated"
    assert place_of(token_topic("d1")) == Place(Kind.TOKEN, "d1")
