"""When to connect again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.backoff import FIRST_S, MAX_S, UNTOLD_S, Pace, delay_s

jitters = st.floats(0, 1, exclude_max=True)


@given(st.integers(0, 10_000), jitters)
def test_a_delay_is_between_nothing_and_the_ceiling(failures, jitter):
    """Full jitter: never below 0, never above the ceiling, which never passes the maximum."""
    delay = delay_s(failures, jitter)
    assert 0 <= delay <= min(MAX_S, FIRST_S * 2 ** min(failures, 30))


@given(st.integers(0, 100), jitters)
def test_ceilings_only_grow(failures, jitter):
    """The same luck waits at least as long after one more failure."""
    assert delay_s(failures + 1, jitter) >= delay_s(failures, jitter)


def test_the_ceiling_doubles_up_to_the_maximum():
    """1, 2, 4 ... seconds, at n-1, n and n+1 of the last doubling."""
    ceilings = [delay_s(n, 0.5) * 2 for n in range(9)]
    assert ceilings == [1, 2, 4, 8, 16, 32, 64, 120, 120]


@given(st.lists(jitters, min_size=1, max_size=20))
def test_failures_add_up_until_there_is_progress(lucks):
    """Every wait counts as a failure; only progress ends the row."""
    pace = Pace()
    for n, luck in enumerate(lucks):
        assert pace.failures == n
        pace.next_s(luck)
    pace.progressed()
    assert pace.next_s(0.999) < FIRST_S


@given(st.integers(0, 10_000), jitters, st.integers(0, 30))
def test_retry_after_is_never_shortened(told, jitter, failures):
    """What the gateway said is waited for, and not much longer, however many failures there were."""
    pace = Pace()
    pace.failures = failures
    assert told <= pace.next_s(jitter, told_s=told) <= told + FIRST_S


@given(jitters, st.integers(0, 30))
def test_an_untold_refusal_waits_half_a_minute(jitter, failures):
    """A refusal that could say nothing: 30 s with jitter at least."""
    pace = Pace()
    pace.failures = failures
    assert UNTOLD_S <= pace.next_s(jitter, untold=True) <= MAX_S
