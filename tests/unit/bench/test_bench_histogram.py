"""The generator's histogram keeps every duration to within 0.8 %, and adds up."""

import math

from hypothesis import given
from hypothesis import strategies as st

from gateway.bench.histogram import Histogram

DURATIONS = st.lists(st.integers(0, 1 << 40), min_size=1, max_size=200)


def filled(durations):
    histogram = Histogram()
    for duration in durations:
        histogram.record(duration)
    return histogram


def exact(durations, share):
    return sorted(durations)[max(0, math.ceil(share * len(durations)) - 1)]


@given(DURATIONS, st.sampled_from((0.01, 0.5, 0.9, 0.99, 1.0)))
def test_a_percentile_is_never_below_the_true_one_and_at_most_a_128th_above_it(durations, share):
    """A percentile is the true one, rounded up by less than a step of its bucket."""
    durations = [min(duration, (1 << 40) - 1) for duration in durations]
    true = exact(durations, share)
    assert true <= filled(durations).at(share) <= true + true // 128


@given(DURATIONS, DURATIONS)
def test_two_histograms_add_up_to_the_one_of_all(first, second):
    """What several processes counted is the same as if one had."""
    both = filled(first)
    both.add(filled(second))
    together = filled(first + second)
    assert (both.counts, both.max_ns, both.total) == (together.counts, together.max_ns, len(first) + len(second))


def test_a_count_weighs_and_an_empty_histogram_says_zero():
    """`count` records one duration many times; of nothing every percentile is 0."""
    assert Histogram().at(0.99) == 0
    histogram = Histogram()
    histogram.record(1000, 99)
    histogram.record(5000)
    assert (histogram.total, histogram.at(0.98), histogram.at(1.0)) == (100, 1003, 5000)


def test_what_is_out_of_range_is_counted_at_its_end():
    """A negative duration counts as 0, one beyond 18 minutes as 18 minutes."""
    histogram = filled([-5, 1 << 50])
    assert (histogram.at(0.5), histogram.at(1.0), histogram.total) == (0, (1 << 40) - 1, 2)
