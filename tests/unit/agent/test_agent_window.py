"""The window and its moves, and what answers ask."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.answers import Answer, Verdict, verdict
from edge_agent.errors import AgentError
from edge_agent.window import MOVES, Batch, Cause, Span, State, Window, move

LONG = 10**6


def batch(first, last, *, suspect=False):
    return Batch(Span(first, last), suspect, 0.0)


@pytest.mark.parametrize(("state", "cause"), [(state, cause) for state in State for cause in Cause])
def test_the_table_is_all_there_is(state, cause):
    """A move is in the table, or it is refused by name."""
    if (state, cause) in MOVES:
        assert move(state, cause) is MOVES[state, cause]
    else:
        with pytest.raises(AgentError, match=f"an event that is {state.name} cannot be {cause.name}"):
            move(state, cause)


def test_done_is_the_end():
    """Nothing leaves DONE: a forgotten event cannot come back."""
    assert not [state for state, _ in MOVES if state is State.DONE]


@given(st.integers(1, LONG), st.integers(1, LONG))
def test_halves_are_the_whole(first, more):
    """Two halves cover a span exactly, and neither is empty."""
    span = Span(first, first + more)
    left, right = span.halves()
    assert (left.first, right.last, left.last + 1) == (span.first, span.last, right.first)
    assert left.first <= left.last
    assert right.first <= right.last


@pytest.mark.parametrize(("in_flight", "wants"), [(0, True), (1, True), (2, True), (3, False), (4, False)])
def test_the_window_has_a_size(in_flight, wants):
    """At n-1 there is room, at n and n+1 there is none."""
    window = Window()
    for n in range(1, in_flight + 1):
        window.sent(n, batch(n, n))
    assert (window.want(3) is not None) is wants


def test_suspects_go_first_and_alone():
    """Halves of a refused batch go before anything new, one at a time."""
    window = Window()
    window.sent(1, batch(1, 4))
    window.sent(2, batch(5, 8))
    window.answered(1, Cause.HALVED)
    want = window.want(16)
    assert want == (1, 2, True)
    window.sent(3, batch(1, 2, suspect=True))
    assert window.want(16) is None
    window.answered(3, Cause.STORED)
    assert window.want(16) == (3, 4, True)
    window.sent(4, batch(3, 4, suspect=True))
    window.answered(4, Cause.STORED)
    assert window.want(16) == (9, None, False)


def test_a_lost_connection_begins_again_at_the_oldest():
    """Everything unanswered is pending again, in order, suspects in their place."""
    window = Window()
    window.sent(1, batch(1, 4))
    window.sent(2, batch(5, 8))
    window.answered(2, Cause.HALVED)
    window.lost()
    assert window.want(16) == (1, 4, False)
    window.sent(1, batch(1, 4))
    assert window.want(16) == (5, 6, True)


def test_an_answer_to_an_unknown_packet_is_nothing():
    """A packet that is not in flight changes nothing."""
    window = Window()
    assert window.answered(7, Cause.STORED) is None


@settings(max_examples=300, deadline=None)
@given(
    total=st.integers(1, 40),
    bad=st.sets(st.integers(1, 40), max_size=4),
    most=st.integers(1, 8),
    size=st.integers(1, 4),
    seed=st.integers(0, 2**32),
)
def test_every_event_ends_once_and_in_order_but_for_refusals(total, bad, most, size, seed):
    """Whatever is refused, lost or stored: every event ends stored or alone in quarantine, none is sent past its end.

    Model: an outbox of positions, a server that refuses batches with a bad event, connections that break.
    """
    chance = random.Random(seed)
    bad = {event for event in bad if event <= total}
    pending, stored, aside, window = set(range(1, total + 1)), [], [], Window()
    for packet in range(1, 2000):
        if not pending:
            break
        step = chance.choices(("send", "answer", "break"), (10, 10, 1))[0] if window.in_flight else "send"
        if step == "send" and (want := window.want(size)) is not None:
            run = _cut(pending, want, most)
            if run is None:
                window.pass_over(want)
            else:
                window.sent(packet, Batch(run, want.is_suspect, 0.0))
        elif step == "answer":
            first, there = next(iter(window.in_flight.items()))
            events = set(range(there.span.first, there.span.last + 1))
            if events & bad and len(events) > 1:
                window.answered(first, Cause.HALVED)
                continue
            window.answered(first, Cause.REFUSED if events & bad else Cause.STORED)
            (aside if events & bad else stored).extend(sorted(events))
            pending -= events
        elif step == "break":
            window.lost()
    assert not pending
    assert sorted(stored) == sorted(set(range(1, total + 1)) - bad)
    assert sorted(aside) == sorted(bad)
    if not bad or size == 1:
        assert stored == sorted(stored)


def _cut(pending, want, most):
    last = want.last or LONG
    there = sorted(p for p in pending if want.first <= p <= last)
    if not there:
        return None
    end = there[0]
    while end + 1 in pending and end + 1 <= last and end - there[0] + 1 < most:
        end += 1
    return Span(there[0], end)


@pytest.mark.parametrize(
    ("answer", "events", "types", "expected"),
    [
        (Answer(0x00), 9, 1, Verdict.FORGET),
        (Answer(0x10), 9, 1, Verdict.RECONNECT),
        (Answer(0x80), 9, 1, Verdict.RECONNECT),
        (Answer(0x83), 9, 1, Verdict.RECONNECT),
        (Answer(0x83, reseal=True), 9, 1, Verdict.RESEAL),
        (Answer(0x97), 1, 1, Verdict.RECONNECT),
        (Answer(0x87), 9, 1, Verdict.SET_ASIDE),
        (Answer(0x87), 9, 2, Verdict.HALVE),
        (Answer(0x90), 9, 2, Verdict.SET_ASIDE),
        (Answer(0x99, "bad-schema: x"), 1, 1, Verdict.SET_ASIDE),
        (Answer(0x99, "bad-schema: x"), 2, 1, Verdict.HALVE),
        (Answer(0x99), 2, 1, Verdict.HALVE),
        (Answer(0x99, "stream-forked: x"), 9, 1, Verdict.FORK),
        (Answer(0x99, "stream-forked"), 1, 1, Verdict.FORK),
        (Answer(0x99, "too-many-ranges: x"), 1, 1, Verdict.FORK),
        (Answer(0x99, "too-many-streams: x"), 1, 1, Verdict.RECONNECT),
    ],
)
def test_answers_are_the_table_of_section_6(answer, events, types, expected):
    """Each reason code asks what wire protocol, section 6, says."""
    assert verdict(answer, events=events, types=types) is expected
