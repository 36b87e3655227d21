"""Closed intervals of integers: what of a stream is stored, what of a log is finished.

Two users: deduplication (which events of a span are new) and dispatch (a floor and the positions finished above it).
Plain arithmetic; it knows no stream, no position and no storage. A list of intervals is always ascending, disjoint and
not adjacent: (1, 4), (6, 9), never (1, 4), (5, 9).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Final, Literal, NamedTuple

Interval = tuple[int, int]

MAX_SEQUENCE: Final = 2**63 - 1  # what every store's signed 64-bit integer holds
MAX_RANGES: Final = 1000  # a stream (wire protocol, section 4)
MAX_STREAMS: Final = 64  # a source (wire protocol, section 4)

_first = itemgetter(0)
_last = itemgetter(1)


def add(intervals: list[Interval], first: int, last: int) -> None:
    """Put first..last into the set, in place, joining what it overlaps or touches."""
    start = bisect_left(intervals, first - 1, key=_last)
    stop = bisect_right(intervals, last + 1, key=_first)
    if start < stop:
        first, last = min(first, intervals[start][0]), max(last, intervals[stop - 1][1])
    intervals[start:stop] = [(first, last)]


def subtract(first: int, last: int, intervals: Sequence[Interval]) -> list[Interval]:
    """Tell the parts of first..last that are not in the set, ascending."""
    parts = []
    for begin, end in intervals[bisect_left(intervals, first, key=_last) :]:
        if begin > last:
            break
        if first < begin:
            parts.append((first, begin - 1))
        first = end + 1
    if first <= last:
        parts.append((first, last))
    return parts


def advance(floor: int, intervals: list[Interval]) -> int:
    """Raise a floor over the intervals that begin at `floor + 1` or before; those leave the set.

    Where not every integer is used (positions of a log), add an event as the interval from behind its predecessor
    to itself: then the floor passes the unused ones.
    """
    stop = bisect_right(intervals, floor + 1, key=_first)
    if stop:
        floor = max(floor, intervals[stop - 1][1])
        del intervals[:stop]
    return floor


def runs(numbers: Iterable[int]) -> list[Interval]:
    """Join ascending numbers to intervals."""
    intervals: list[Interval] = []
    for number in numbers:
        if intervals and intervals[-1][1] == number - 1:
            intervals[-1] = (intervals[-1][0], number)
        else:
            intervals.append((number, number))
    return intervals


class Range(NamedTuple):
    """Consecutive events that are stored or settled; `tail` is the id of the event `last`, "" if it is not stored."""

    first: int
    last: int
    tail: str


@dataclass(frozen=True, slots=True)
class Fit:
    """A span continues its stream.

    Attributes:
        new: The parts of it that are not stored yet, as sequences, ascending; empty for a pure repeat.
        ranges: The stream's ranges with it.
    """

    new: list[Interval]
    ranges: tuple[Range, ...]


@dataclass(frozen=True, slots=True)
class Misfit:
    """A span cannot be of this stream; `rule` as the wire protocol names it."""

    rule: Literal["stream-forked", "too-many-ranges"]
    detail: str


def fit(
    ranges: Sequence[Range], first: int, last: int, *, settled: int, tail: str, id_of: Callable[[int], str]
) -> Fit | Misfit:
    """Compare a span with what its stream holds (wire protocol, section 4).

    Args:
        ranges: Of the stream, ascending.
        first: Sequence of the span's first event.
        last: Sequence of its last event.
        settled: Nothing at or below it will be sent again: counts as stored from now on.
        tail: Id of its last event.
        id_of: Tells the id of another event of the span, by sequence; asked only if a range ends inside the span.
    """
    if not (1 <= first <= last <= MAX_SEQUENCE and 0 <= settled <= MAX_SEQUENCE):
        return Misfit("stream-forked", f"sequences {first} to {last}, settled {settled}: expected 1 to {MAX_SEQUENCE}")
    if ranges and ranges[-1].last == first - 1 and settled <= (ranges[0].last if ranges[0].first == 1 else 0):
        # The usual case: the next events of the stream, and nothing newly settled.
        return Fit([(first, last)], (*ranges[:-1], Range(ranges[-1].first, last, tail)))
    for known in ranges:
        if (
            known.tail
            and first <= known.last <= last
            and known.tail != (tail if known.last == last else id_of(known.last))
        ):
            return Misfit("stream-forked", f"event {known.last} was stored with another id")
    held = [(known.first, known.last) for known in ranges]
    new = subtract(first, last, held)
    add(held, first, last)
    if settled:
        add(held, 1, settled)
    if len(held) > MAX_RANGES:
        return Misfit("too-many-ranges", f"more than {MAX_RANGES} ranges with holes between them")
    tails = {known.last: known.tail for known in ranges} | {last: tail}
    return Fit(new, tuple(Range(begin, end, tails.get(end, "")) for begin, end in held))
