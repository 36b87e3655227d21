"""gateway.rules.sharing: fair turns, one member a device, and which events a topic filter can meet."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_protocol.topics import TopicFilter, events_topic, matches
from gateway.rules.selection import Selection
from gateway.rules.sharing import by_preference, event_filter, least_loaded, share_id


@dataclass
class Load:
    name: str
    is_away: bool = False
    owed: int = 0


def test_a_share_is_named_by_its_name_and_filter() -> None:
    """Two shared subscriptions never have one id, and ids are short and always the same: they are on disk."""
    assert share_id("work", TopicFilter("chat/#")).hex() == "83cd151a50e21bb99a9b3589d2f13486"
    ids = {share_id(name, TopicFilter(filter_)) for name in ("a", "ab", "s" * 60_000) for filter_ in ("b/c", "c", "#")}
    assert (len(ids), {len(each) for each in ids}) == (9, {16})


def test_the_least_loaded_is_connected_then_idle_then_rested() -> None:
    """Being there counts most, then what is owed, then whose turn is longest ago; nobody is chosen of nobody."""
    away, busy, chosen, recent = Load("a", is_away=True), Load("b", owed=1), Load("c"), Load("d")
    assert least_loaded([away, busy, chosen, recent]) is chosen
    assert least_loaded([away, busy, Load("e", owed=1)]) is busy
    assert least_loaded([Load("f", owed=2), busy]) is busy
    assert least_loaded([away, Load("g", is_away=True)]) is away
    assert least_loaded([]) is None


def test_devices_are_spread_and_stay() -> None:
    """Each of three members gets about a third of the devices; when one goes, only its devices move."""
    names = ["s (i)/1", "s (i)/2", "s (i)/3"]
    chosen = {f"dev{n}": by_preference(f"dev{n}", zip(names, names, strict=True))[0] for n in range(3000)}
    assert all(850 < count < 1150 for count in Counter(chosen.values()).values())
    for device, name in chosen.items():
        left = by_preference(device, [(each, each) for each in names[:2]])[0]
        assert left == name or name == names[2]


@pytest.mark.parametrize(
    ("filter_", "devices", "types"),
    [
        ("devices/+/events/#", ("*",), ()),
        ("devices/d1/events/#", ("d1",), ()),
        ("devices/+/events/order/placed", ("*",), ("order.placed",)),
        ("devices/+/events/order/#", ("*",), ("order", "order.*")),
        ("devices/+/events/order/+", ("*",), ("order.*",)),
        ("devices/+/events/+/placed", ("*",), ()),
        ("devices/d1/#", ("d1",), ()),
        ("+/d1/+/a", ("d1",), ("a",)),
        ("devices/#", ("*",), ()),
        ("#", ("*",), ()),
    ],
)
def test_filters_of_events(filter_: str, devices: tuple[str, ...], types: tuple[str, ...]) -> None:
    """A filter that events can fall under selects their devices and types; never those of services."""
    found = event_filter(TopicFilter(filter_))
    assert found is not None
    assert (found.devices, found.types) == (devices, types)
    selection = Selection(devices=found.devices, types=found.types)
    assert not selection.wants_source("/services/s", {})


@pytest.mark.parametrize(
    "filter_", ["devices/+/events", "devices/+", "devices", "devices/+/commands/#", "gateway/#", "+/+/state", "a/#"]
)
def test_filters_of_no_event(filter_: str) -> None:
    """What no event can fall under is not one."""
    assert event_filter(TopicFilter(filter_)) is None


_level = st.sampled_from(["a", "b", "+", "d1", "devices", "events"])
_filters = st.builds(
    lambda levels, tail: "/".join([*levels, *tail]) or "#", st.lists(_level, max_size=6), st.sampled_from([[], ["#"]])
)


@given(_filters, st.sampled_from(["d1", "a"]), st.lists(st.sampled_from(["a", "b", "d1"]), min_size=1, max_size=3))
def test_no_event_is_missed(filter_: str, device: str, type_: list[str]) -> None:
    """An event whose topic matches a filter is selected by it."""
    name = ".".join(type_)
    if matches(TopicFilter(filter_), events_topic(device, name)):
        found = event_filter(TopicFilter(filter_))
        assert found is not None
        selection = Selection(devices=found.devices, types=found.types)
        assert selection.wants_type(name)
        assert selection.wants_source(f"/devices/{device}", {})
