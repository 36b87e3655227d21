"""Interval arithmetic against a plain set of integers."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.rules.ranges import MAX_RANGES, MAX_SEQUENCE, Fit, Misfit, Range, add, advance, fit, runs, subtract

NUMBERS = st.sets(st.integers(1, 60))
PAIR = st.tuples(st.integers(1, 60), st.integers(0, 20)).map(lambda pair: (pair[0], pair[0] + pair[1]))


def members(intervals):
    return {number for first, last in intervals for number in range(first, last + 1)}


def is_normal(intervals):
    apart = all(left[1] + 1 < right[0] for left, right in pairwise(intervals))
    return apart and all(first <= last for first, last in intervals)


@given(NUMBERS, PAIR)
def test_adding_is_the_union(numbers, pair):
    """The set holds what it held and the interval, and stays ascending, disjoint and not adjacent."""
    intervals = runs(sorted(numbers))
    add(intervals, *pair)
    assert members(intervals) == numbers | members([pair])
    assert is_normal(intervals)


@given(NUMBERS, PAIR)
def test_subtracting_leaves_what_is_not_in_the_set(numbers, pair):
    """The parts are exactly the interval without the set, as few as possible."""
    parts = subtract(*pair, runs(sorted(numbers)))
    assert members(parts) == members([pair]) - numbers
    assert is_normal(parts)


@given(st.integers(0, 70), NUMBERS)
def test_advancing_passes_what_is_finished(floor, numbers):
    """The floor rises to just below the first number above it that is missing; the rest stays."""
    intervals = runs(sorted(numbers))
    expected = floor
    while expected + 1 in numbers:
        expected += 1
    assert advance(floor, intervals) == expected
    assert members(intervals) == {number for number in numbers if number > expected}


@given(NUMBERS)
def test_runs_join_neighbours(numbers):
    """Every number is in one run, and runs are as long as can be."""
    assert members(runs(sorted(numbers))) == numbers
    assert is_normal(runs(sorted(numbers)))


SPAN = st.tuples(st.integers(1, 40), st.integers(0, 9), st.integers(0, 25))


def id_of(sequence):
    return f"id{sequence}"


@given(st.lists(SPAN, max_size=15))
def test_a_stream_is_what_was_stored_or_settled(spans):
    """After any spans of one honest stream, its ranges are the union of all of them and of what is settled."""
    ranges, known = (), set()
    for first, more, settled in spans:
        last = first + more
        result = fit(ranges, first, last, settled=settled, tail=id_of(last), id_of=id_of)
        assert isinstance(result, Fit)
        assert members(result.new) == members([(first, last)]) - known
        known |= members([(first, last), (1, settled)])
        ranges = result.ranges
        assert members((known_range.first, known_range.last) for known_range in ranges) == known
        assert all(known_range.tail in ("", id_of(known_range.last)) for known_range in ranges)


KNOWN = (Range(1, 5, "id5"), Range(10, 12, ""))


@pytest.mark.parametrize(
    ("first", "last", "tail", "forked"),
    [
        (1, 5, "id5", False),
        (1, 5, "x", True),
        (6, 6, "x", False),
        (5, 9, "x", True),  # id_of says other ids than those stored
        (1, 4, "x", False),  # nothing to compare: the end of the range is not in the span
        (11, 13, "x", False),  # the end was settled, not stored
    ],
)
def test_the_id_at_the_end_of_a_range_tells_a_fork(first, last, tail, forked):
    """A span that holds the last event of a range must hold it under the same id."""
    result = fit(KNOWN, first, last, settled=0, tail=tail, id_of=lambda sequence: f"other{sequence}")
    assert isinstance(result, Misfit) is forked
    if forked:
        assert result == Misfit("stream-forked", "event 5 was stored with another id")


@pytest.mark.parametrize(("count", "fits"), [(MAX_RANGES - 1, True), (MAX_RANGES, True), (MAX_RANGES + 1, False)])
def test_ranges_are_limited(count, fits):
    """The last range that is allowed is taken; one more is not, but one that closes a hole is."""
    ranges = tuple(Range(2 * n, 2 * n, "") for n in range(1, count))
    result = fit(ranges, 2 * count, 2 * count, settled=0, tail="t", id_of=id_of)
    assert isinstance(result, Fit) is fits
    assert fits or result == Misfit("too-many-ranges", "more than 1000 ranges with holes between them")
    assert isinstance(fit(ranges, 3, 3, settled=0, tail="t", id_of=id_of), Fit)


@pytest.mark.parametrize(
    ("first", "last", "settled", "fits"),
    [
        (0, 1, 0, False),
        (1, 1, 0, True),
        (1, 0, 0, False),
        (MAX_SEQUENCE, MAX_SEQUENCE, 0, True),
        (MAX_SEQUENCE, MAX_SEQUENCE + 1, 0, False),
        (1, 1, MAX_SEQUENCE, True),
        (1, 1, MAX_SEQUENCE + 1, False),
        (1, 1, -1, False),
    ],
)
def test_sequences_fit_into_64_bits(first, last, settled, fits):
    """Numbers that no store can hold are not of any stream."""
    assert isinstance(fit((), first, last, settled=settled, tail="t", id_of=id_of), Fit) is fits
