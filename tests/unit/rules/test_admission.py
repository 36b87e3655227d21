"""Token buckets by peer."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.rules.admission import Attempts


def test_a_burst_then_the_rate():
    """The burst is let in at once; then one attempt each 1 / rate seconds, and the wait is told."""
    attempts = Attempts(per_s=0.5, burst=3)
    assert [attempts.take("a", 0) for _ in range(4)] == [0, 0, 0, 2]
    assert attempts.take("a", 1) == 1
    assert attempts.take("a", 2) == 0
    assert attempts.take("b", 2) == 0


@given(times=st.lists(st.floats(0, 1000), max_size=60))
def test_never_more_than_burst_and_rate(times):
    """However attempts are spread, also by a clock that goes back, no more are let in than burst + rate * time."""
    attempts = Attempts(per_s=0.1, burst=5)
    let_in = sum(attempts.take("a", at) == 0 for at in sorted(times))
    assert let_in <= 5 + 0.1 * (max(times, default=0) - min(times, default=0)) + 1e-6


def test_peers_are_bounded():
    """The peer heard from longest ago makes room: memory does not grow with the number of addresses."""
    attempts = Attempts(per_s=0.1, burst=1, peers=2)
    for peer in ("a", "b", "c"):
        attempts.take(peer, 0)
    assert len(attempts._left) == 2
    assert attempts.take("c", 0) > 0
    assert attempts.take("a", 0) == 0
