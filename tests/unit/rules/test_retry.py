"""gateway.rules.retry and gateway.rules.breaker: delays and the life of a target that is down."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.rules.breaker import Breaker, Health
from gateway.rules.retry import GiveUp, PausePolicy, RetryPolicy, next_probe, next_try

POLICY = RetryPolicy(max_attempts=10, first_s=1.0, max_s=300.0)


@pytest.mark.parametrize(("attempt", "bound_s"), [(1, 1.0), (2, 2.0), (3, 4.0), (9, 256.0)])
def test_delay_doubles(attempt: int, bound_s: float) -> None:
    """The bound doubles with each failure, and jitter takes a share of it."""
    assert next_try(POLICY, attempt, jitter=0.5) == bound_s / 2


def test_delay_is_capped() -> None:
    """The bound never exceeds max_s, however many attempts there were."""
    policy = RetryPolicy(max_attempts=10_000, first_s=1.0, max_s=300.0)
    assert next_try(policy, 9, jitter=0.5) == 128.0
    assert next_try(policy, 10, jitter=0.5) == 150.0
    assert next_try(policy, 9_999, jitter=0.5) == 150.0


@pytest.mark.parametrize(("attempt", "ends"), [(9, False), (10, True), (11, True)])
def test_gives_up_at_max_attempts(attempt: int, ends: bool) -> None:
    """The attempt that uses up max_attempts is the last."""
    outcome = next_try(POLICY, attempt, jitter=0.5)
    assert isinstance(outcome, GiveUp) == ends
    if ends:
        assert outcome.reason == f"failed {attempt} of 10 attempts"


def test_retry_after_is_a_minimum_and_capped() -> None:
    """Retry-After lengthens a delay, never shortens it, and not beyond its cap."""
    assert next_try(POLICY, 1, jitter=0.5, retry_after_s=20) == 20
    assert next_try(POLICY, 9, jitter=0.5, retry_after_s=20) == 128.0
    assert next_try(POLICY, 1, jitter=0.5, retry_after_s=1e9) == 3600.0
    assert next_probe(PausePolicy(), 1, jitter=0.5, retry_after_s=1e9) == 3600.0


@given(st.integers(1, 10**6), st.floats(0, 1, exclude_max=True), st.none() | st.floats(0, 1e12))
def test_delays_stay_in_bounds(attempt: int, jitter: float, retry_after_s: float | None) -> None:
    """No delay is negative or longer than the larger cap."""
    delay_s = next_try(RetryPolicy(max_attempts=10**7), attempt, jitter=jitter, retry_after_s=retry_after_s)
    assert 0 <= delay_s <= 3600.0
    assert 0 <= next_probe(PausePolicy(), attempt, jitter=jitter, retry_after_s=retry_after_s) <= 3600.0


def _down(breaker: Breaker, now_s: float, *, probe: bool = False, retry_after_s: float | None = None) -> None:
    breaker.absent("refused", probe=probe, now_s=now_s, jitter=0.5, retry_after_s=retry_after_s)


def test_breaker_probes_with_one_delivery() -> None:
    """After the pause one delivery may start; its success lets all start."""
    breaker = Breaker(PausePolicy(first_s=1.0, max_s=30.0))
    assert not breaker.begin()
    _down(breaker, 100.0)
    assert not breaker.allows(100.4)
    assert breaker.allows(100.5)
    assert breaker.begin()
    assert breaker.health is Health.PROBING
    assert not breaker.allows(1000.0)
    breaker.answered(probe=True)
    assert breaker.allows(100.5)


def test_breaker_pauses_longer_after_each_probe() -> None:
    """Each probe that finds the target down doubles the pause; an answer starts over."""
    breaker = Breaker(PausePolicy(first_s=1.0, max_s=30.0))
    _down(breaker, 0.0)
    pauses = []
    for _ in range(7):
        breaker.begin()
        _down(breaker, 0.0, probe=True)
        pauses.append(breaker.probe_s)
    assert pauses == [1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]
    assert breaker.since_s == 0.0
    breaker.begin()
    breaker.answered(probe=True)
    _down(breaker, 50.0)
    assert (breaker.since_s, breaker.probe_s) == (50.0, 50.5)


def test_stragglers_do_not_move_the_breaker() -> None:
    """Deliveries that started before the outage neither end it nor lengthen it, but by their Retry-After."""
    breaker = Breaker(PausePolicy(first_s=1.0, max_s=30.0))
    _down(breaker, 0.0)
    _down(breaker, 0.1)
    breaker.answered(probe=False)
    assert (breaker.health, breaker.probe_s) == (Health.DOWN, 0.5)
    _down(breaker, 0.1, retry_after_s=7)
    assert breaker.probe_s == 7.1
