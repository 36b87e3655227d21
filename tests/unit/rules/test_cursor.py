"""gateway.rules.cursor: floor and finished intervals, against a plain set."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from gateway.rules.cursor import Cursor


def test_floor_moves_over_what_is_finished() -> None:
    """The floor stands before the first open position; what is finished above it is in intervals."""
    cursor = Cursor(0)
    for position in (1024, 1025, 2048):
        cursor.open(position)
    cursor.reach(3072)
    assert (cursor.floor, cursor.done()) == (0, ((2049, 3072),))
    cursor.finish(1025)
    assert (cursor.floor, cursor.done()) == (0, ((1025, 1025), (2049, 3072)))
    cursor.finish(1024)
    assert (cursor.floor, cursor.done()) == (1025, ((2049, 3072),))
    cursor.finish(2048)
    assert (cursor.floor, cursor.done()) == (3072, ())


def test_rows_that_follow_each_other_leave_no_interval() -> None:
    """Positions that do not exist between two rows are not told as finished."""
    cursor = Cursor(0)
    for row in range(1, 100):
        cursor.open(row << 10)
    assert cursor.done() == ()


def test_intervals_of_the_last_run_are_kept_until_read_again() -> None:
    """What was finished before a restart stays finished though it has not been read again."""
    cursor = Cursor(10, ((12, 14), (20, 30)))
    cursor.open(11)
    assert [cursor.is_done(n) for n in (10, 11, 12, 14, 15, 20, 31)] == [True, True, True, True, False, True, False]
    assert (cursor.floor, cursor.done()) == (10, ((12, 14), (20, 30)))
    cursor.reach(14)
    cursor.open(15)
    cursor.finish(11)
    assert (cursor.floor, cursor.done()) == (14, ((20, 30),))


@given(st.data())
def test_agrees_with_a_set(data: st.DataObject) -> None:
    """Over restarts, floor and intervals tell exactly the positions that are finished."""
    rows = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=12))
    log = [(row << 10) + n for row, count in enumerate(rows, 1) for n in range(count)]
    finished: set[int] = set()
    floor, done = 0, ()
    for _ in range(data.draw(st.integers(1, 4))):
        cursor = Cursor(floor, done)
        opened = []
        for position in log[: data.draw(st.integers(0, len(log)))]:
            if position <= floor:
                continue
            if cursor.is_done(position):
                cursor.reach(position)
            else:
                cursor.open(position)
                opened.append(position)
        for position in data.draw(st.permutations(opened))[: data.draw(st.integers(0, len(opened)))]:
            cursor.finish(position)
            finished.add(position)
        floor, done = cursor.floor, cursor.done()
        told = {p for p in log if p <= floor or any(a <= p <= b for a, b in done)}
        assert told == finished
        assert all(a <= b for a, b in done)
        assert all(b + 1 < c for (_, b), (c, _) in pairwise(done))
        assert not done or done[0][0] > floor
