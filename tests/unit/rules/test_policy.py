"""Topic policy: deny by default, `{device}`, denials, what no policy can allow."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_protocol.errors import TopicInvalid
from edge_protocol.topics import matches
from gateway.rules.policy import NOTHING, Permissions, Policy, PolicyRule

DEVICE = PolicyRule(
    role="device",
    publish=("devices/{device}/events/#", "devices/{device}/state"),
    subscribe=("devices/{device}/commands/+", "gateway/keys"),
)
OPERATOR = PolicyRule(role="operator", subscribe=("devices/+/events/#", "devices/+/state"))
POLICY = Policy([DEVICE, OPERATOR, PolicyRule(role="all", publish=("#",), subscribe=("#",), emit=("*",))])


def test_deny_by_default():
    """What no rule names, and an unknown role, are not allowed."""
    assert POLICY.permissions(["nobody"], "dev1") == NOTHING == POLICY.permissions([], None)
    dev1 = POLICY.permissions(["device"], "dev1")
    assert not dev1.may_publish("elsewhere")
    assert not dev1.may_subscribe("elsewhere")
    assert not dev1.may_receive("elsewhere")
    assert not dev1.may_raise("x")


@pytest.mark.parametrize(
    ("topic", "allowed"),
    [
        ("devices/dev1/events", True),
        ("devices/dev1/events/a/b", True),
        ("devices/dev1/state", True),
        ("devices/dev2/state", False),
        ("devices/dev2/events", False),
        ("devices/dev1/commands/x", False),
        ("/devices/dev1/state", False),
        ("devices/dev1/state/", False),
    ],
)
def test_device_publishes_its_own(topic, allowed):
    """`{device}` stands for the connected device's id, as a whole level."""
    assert POLICY.permissions(["device"], "dev1").may_publish(topic) is allowed


@pytest.mark.parametrize(
    "topic",
    [
        "gateway/keys",
        "gateway/token",
        "gateway/x",
        "gateway",
        "devices",
        "devices/dev1",
        "devices/dev1/x",
        "devices/dev1/config",
        "devices/dev1/receipts",
        "devices/dev1/token",
        "devices/#/events",
        "devices/a b/state",
        "devices/dev1/events/a.b",
        "devices/dev1/events/",
    ],
)
def test_what_no_policy_can_allow(topic):
    """Reserved and unknown topics under `devices/` and `gateway/` are never publishable."""
    assert not POLICY.permissions(["all"], "dev1").may_publish(topic)


@pytest.mark.parametrize("topic", ["$SYS/x", "$share/g/x"])
def test_wildcards_do_not_reach_dollar_topics(topic):
    """`#` allows nothing that begins with `$`: neither publish, nor subscribe, nor delivery."""
    everything = POLICY.permissions(["all"], None)
    assert not everything.may_publish(topic)
    assert not everything.may_receive(topic)
    assert not everything.may_subscribe("$SYS/#")


@pytest.mark.parametrize("bad", ["#", "+", "a/b", "", "$SYS", "a\0", "ä", "-a", "x" * 129])
def test_identity_never_becomes_a_pattern(bad):
    """CVE-2017-7650: an id that is not one topic level is refused, not substituted."""
    with pytest.raises(TopicInvalid, match="expected 1 to 128 of"):
        POLICY.permissions(["device"], bad)


def test_rules_with_device_never_match_others():
    """A principal that is no device gets nothing from a rule with `{device}`; its plain denials stay."""
    mixed = PolicyRule(role="mixed", publish=("devices/{device}/events/#", "lab/#"), deny_publish=("lab/x",))
    policy = Policy([mixed, PolicyRule(role="lab", publish=("lab/#",))])
    assert not policy.permissions(["mixed"], None).may_publish("lab/y")
    both = policy.permissions(["mixed", "lab"], None)
    assert both.may_publish("lab/y")
    assert not both.may_publish("lab/x")
    assert policy.permissions(["mixed"], "dev1").may_publish("lab/y")


def test_denials_win_over_every_role():
    """Several roles add up, allows and denies alike."""
    policy = Policy(
        [PolicyRule(role="a", publish=("x/#",)), PolicyRule(role="b", publish=("y",), deny_publish=("x/1",))]
    )
    both = policy.permissions(["a", "b"], None)
    assert [both.may_publish(topic) for topic in ("x/0", "x/1", "y")] == [True, False, True]
    assert policy.permissions(["a"], None).may_publish("x/1")


@pytest.mark.parametrize(
    ("filter_", "allowed"),
    [
        ("devices/+/events/#", True),
        ("devices/dev1/events/x", True),
        ("devices/+/events", True),
        ("devices/#", False),
        ("devices/+/#", False),
        ("#", False),
        ("+/+/state", False),
        ("$share/g/devices/+/events/#", True),
        ("$share/g/devices/#", False),
        ("$share/g", False),
        ("$share//devices/+/events/#", False),
        ("$share/+/devices/+/events/#", False),
        ("devices/+/ev#", False),
        ("", False),
    ],
)
def test_subscribing_must_be_covered(filter_, allowed):
    """An allow pattern must cover the whole filter, also behind `$share/GROUP/`; what is no filter is refused."""
    assert POLICY.permissions(["operator"], None).may_subscribe(filter_) is allowed


def test_denied_in_part():
    """A deny pattern refuses the filters it covers, and holds back the deliveries it matches."""
    rule = PolicyRule(role="r", subscribe=("a/#",), deny_subscribe=("a/secret/#",))
    permissions = Policy([rule]).permissions(["r"], None)
    assert permissions.may_subscribe("a/#")
    assert not permissions.may_subscribe("a/secret/+")
    assert permissions.may_receive("a/b")
    assert not permissions.may_receive("a/secret/b")


def test_carrier_topic():
    """`events` carries any type: open where some type may pass, and each event is asked for alone."""
    rules = [
        PolicyRule(role="one", publish=("devices/{device}/events/temperature",), require_envelope=False),
        PolicyRule(role="none", publish=("devices/{device}/state",)),
        PolicyRule(role="denied", publish=("devices/{device}/events/#",), deny_publish=("devices/+/events/#",)),
        PolicyRule(role="part", publish=("devices/{device}/events/#",), deny_publish=("devices/+/events/door/#",)),
    ]
    of = {rule.role: Policy(rules).permissions([rule.role], "dev1") for rule in rules}
    may_carry = {role: each.may_publish("devices/dev1/events") for role, each in of.items()}
    assert may_carry == {"one": True, "none": False, "denied": False, "part": True}
    assert not of["one"].may_publish("devices/dev2/events")
    assert of["one"].may_emit("dev1", "temperature")
    assert not of["one"].may_emit("dev1", "humidity")
    assert not of["one"].may_emit("dev2", "temperature")
    assert not of["part"].may_emit("dev1", "door.opened")
    assert of["part"].may_emit("dev1", "window.opened")


def test_require_envelope():
    """It is required by default for roles with `{device}`, and by any role of several."""
    plain = PolicyRule(role="simple", publish=("devices/{device}/events/#",), require_envelope=False)
    policy = Policy([DEVICE, OPERATOR, plain])
    wanted = {role: policy.permissions([role], "dev1").require_envelope for role in ("device", "operator", "simple")}
    assert wanted == {"device": True, "operator": False, "simple": False}
    assert policy.permissions(["device", "simple"], "dev1").require_envelope


def test_emit():
    """Event types a service may raise are exact or begin as a pattern with a final `*`."""
    permissions = Policy([PolicyRule(role="s", emit=("order_*", "cart.updated"))]).permissions(["s"], None)
    types = ("order_placed", "order_", "order", "cart.updated", "cart.updated2")
    assert [permissions.may_raise(each) for each in types] == [True, True, False, True, False]


def test_lowest_rate_rules():
    """Of several roles the lowest rate and burst rule; no rate is no bound."""
    policy = Policy(
        [
            PolicyRule(role="a", events_per_s=10, burst=3),
            PolicyRule(role="b", events_per_s=5, bytes_per_s=7, burst=4),
            PolicyRule(role="c"),
        ]
    )
    both = policy.permissions(["a", "b"], None)
    assert (both.events_per_s, both.bytes_per_s, both.burst) == (5, 7, 3)
    assert policy.permissions(["c"], None).events_per_s is None


def test_changes_can_be_noticed():
    """Permissions are equal, and hash alike, exactly if they allow the same; questions asked change nothing."""
    first, second = (POLICY.permissions(["device"], "dev1") for _ in range(2))
    first.may_publish("devices/dev1/state")
    assert first == second
    assert hash(first) == hash(second)
    assert first != POLICY.permissions(["device"], "dev2")
    assert first != Permissions()


def test_answers_are_remembered_within_bounds():
    """A client that asks about ever new topics makes the cache no larger than its bound."""
    permissions = POLICY.permissions(["device"], "dev1")
    for n in range(2000):
        assert permissions.may_publish(f"devices/dev1/events/t{n}")
        assert not permissions.may_receive(f"x/{n}")
    assert max(len(permissions._publish), len(permissions._receive)) <= 512
    long = "x/" + "y" * 300
    assert not permissions.may_publish(long)
    assert long not in permissions._publish


@pytest.mark.parametrize(
    ("field", "pattern", "message"),
    [
        ("publish", "devices/x{device}/events", "expected {device} as a whole level"),
        ("subscribe", "devices/{id}/events", "expected {device} as a whole level"),
        ("publish", "a/#/b", "expected '#' alone in the last level"),
        ("deny_publish", "a+", "expected '+' alone in its level"),
        ("deny_subscribe", "", "expected 1 to 65535"),
        ("subscribe", "$share/g/a", "which is stripped first"),
        ("emit", "a*b", "expected a type, exact or with a final"),
        ("emit", "", "expected a type, exact or with a final"),
    ],
)
def test_bad_rules(field, pattern, message):
    """A rule that cannot mean what was meant is refused with the pattern and what was expected."""
    with pytest.raises(ValueError, match=r"pattern|event type|topic") as caught:
        PolicyRule(role="r", **{field: (pattern,)})
    assert message in str(caught.value)


@pytest.mark.parametrize("rate", [0, -1, float("nan")])
def test_bad_rates(rate):
    """A rate is above 0."""
    with pytest.raises(ValueError, match="expected a number above 0"):
        PolicyRule(role="r", events_per_s=rate)


levels = st.lists(st.sampled_from(["a", "b", "+", "$x"]), min_size=1, max_size=4).map("/".join)
filters = st.one_of(levels, levels.map(lambda text: f"{text}/#"), st.just("#"))
topics = st.lists(st.sampled_from(["a", "b", "c", "$x"]), min_size=1, max_size=4).map("/".join)


@given(allow=filters, deny=filters, topic=topics, wanted=filters)
def test_delivery_is_never_wider_than_the_policy(allow, deny, topic, wanted):
    """What is received matches an allow and no deny pattern; a subscription that is granted is covered."""
    rule = PolicyRule(role="r", subscribe=(allow,), deny_subscribe=(deny,))
    permissions = Policy([rule]).permissions(["r"], None)
    assert permissions.may_receive(topic) == (matches(allow, topic) and not matches(deny, topic))
    if permissions.may_subscribe(wanted) and matches(wanted, topic):
        assert matches(allow, topic)
