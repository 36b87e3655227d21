"""The connection's life as a table, counts and deadlines; then a model of two ends that walk it at random."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.rules.rate import TokenBucket
from gateway.rules.session import (
    MOVES,
    Input,
    Lifecycle,
    ReceiveWindow,
    State,
    Violation,
    keep_alive_deadline_s,
    keep_alive_to_use,
)

PACKETS = [each for each in Input if each <= Input.AUTH]


def at(state, *, may_auth=False):
    life = Lifecycle()
    life.state, life.may_auth = state, may_auth
    return life


@pytest.mark.parametrize("packet", [each for each in PACKETS if each is not Input.CONNECT])
def test_first_packet_is_connect(packet):
    """Anything before CONNECT is a protocol error [MQTT-3.1.0-1]."""
    with pytest.raises(Violation) as caught:
        at(State.AWAITING_CONNECT).take(packet)
    assert caught.value.code == 0x82
    assert "MQTT-3.1.0-1" in caught.value.reason or "servers only" in caught.value.reason


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (Input.CONNECT, "second CONNECT on a connection [MQTT-3.1.0-2]"),
        (Input.CONNACK, "CONNACK is sent by servers only (section 2.1.2)"),
        (Input.SUBACK, "SUBACK is sent by servers only (section 2.1.2)"),
        (Input.UNSUBACK, "UNSUBACK is sent by servers only (section 2.1.2)"),
        (Input.PINGRESP, "PINGRESP is sent by servers only (section 2.1.2)"),
        (Input.AUTH, "AUTH without an authentication method in CONNECT [MQTT-4.12.0-7]"),
    ],
)
def test_what_may_not_come_when_connected(packet, reason):
    """A refused packet names its rule, and leaves the state as it was."""
    life = at(State.CONNECTED)
    with pytest.raises(Violation) as caught:
        life.take(packet)
    assert (caught.value.code, caught.value.reason) == (0x82, reason)
    assert life.state is State.CONNECTED


def test_auth_needs_its_method():
    """AUTH may come where CONNECT named the method; while it is decided on, packets wait."""
    life = at(State.CONNECTED, may_auth=True)
    life.take(Input.AUTH)
    assert life.state is State.RENEWING
    assert life.state.holds_packets
    assert life.state.is_open
    life.take(Input.RENEWED)
    assert life.state is State.CONNECTED


def test_every_state_can_be_lost_and_no_other_way_leads_back():
    """From each state the socket can vanish; closing leads nowhere but to closed."""
    for state in State:
        life = at(state)
        life.take(Input.LOST)
        assert life.state is State.CLOSED
    assert {moved for (state, _), moved in MOVES.items() if state in {State.CLOSING, State.CLOSED}} == {State.CLOSED}


def test_end_happens_once():
    """The first end counts; while closing, and afterwards, there is nothing to end."""
    life = Lifecycle()
    assert life.end()
    assert not life.end()
    life.take(Input.LOST)
    assert not life.end()


@given(steps=st.lists(st.sampled_from(list(Input)), max_size=40), may_auth=st.booleans())
def test_random_walks(steps, may_auth):
    """Whatever comes in whatever order: open only after CONNECT and acceptance, refusals change nothing."""
    life, accepted = Lifecycle(), False
    life.may_auth = may_auth
    for step in steps:
        before = life.state
        try:
            life.take(step)
        except Violation:
            assert life.state is before
            continue
        accepted |= step is Input.ACCEPTED
        assert not life.state.is_open or accepted
        assert not (before is State.CLOSED and life.state is not State.CLOSED)
        if step in PACKETS and step is not Input.CONNECT:
            assert before is State.CONNECTED


@pytest.mark.parametrize("maximum", [1, 2, 65535])
def test_receive_window(maximum):
    """As many publishes as announced may wait; one more is 0x93; an acknowledgement makes room."""
    window = ReceiveWindow(maximum)
    for _ in range(maximum):
        window.open()
    with pytest.raises(Violation, match=f"more than {maximum} unacknowledged PUBLISH packets") as caught:
        window.open()
    assert caught.value.code == 0x93
    window.close()
    window.open()


@pytest.mark.parametrize(("asked", "used"), [(0, 60), (59, 59), (60, 60), (61, 60)])
def test_keep_alive_cap(asked, used):
    """A client that asks for more than the cap, or for none, gets the cap."""
    assert keep_alive_to_use(asked, 60) == used


def test_keep_alive_deadline():
    """A client is given up after one and a half intervals [MQTT-3.1.2-22]."""
    assert keep_alive_deadline_s(100.0, 10) == 115.0


def test_token_bucket():
    """A burst is free, debt is told in seconds, time pays it back up to the burst."""
    bucket = TokenBucket(10, 2.0, 0.0)
    assert bucket.take(20, 0.0) == 0
    assert bucket.take(5, 0.0) == 0.5
    assert bucket.take(0, 0.5) == 0
    assert bucket.take(20, 100.0) == 0
    assert bucket.take(1, 100.0) == 0.1


@pytest.mark.parametrize(("amount", "is_there"), [(19, True), (20, True), (21, False)])
def test_token_bucket_that_says_no(amount, is_there):
    """What is not there is not taken: the next one finds as much as before."""
    bucket = TokenBucket(10, 2.0, 0.0)
    assert bucket.take_if_there(amount, 0.0) == is_there
    assert bucket.take_if_there(20 - amount * is_there, 0.0)
    assert not bucket.take_if_there(1, 0.05)
    assert bucket.take_if_there(1, 0.1)


@given(st.lists(st.tuples(st.floats(0, 3), st.floats(0, 50)), max_size=50))
def test_token_bucket_keeps_its_rate(steps):
    """Who waits as told never takes more than burst + rate x time, but for the last take."""
    bucket, now_s, taken = TokenBucket(10, 1.0, 0.0), 0.0, 0.0
    for pause_s, amount in steps:
        now_s += pause_s
        assert taken <= 10 + 10 * now_s + 1e-6
        now_s += bucket.take(amount, now_s)
        taken += amount
