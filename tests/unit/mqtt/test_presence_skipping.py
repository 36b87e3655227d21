"""Presence while the bus is away: what is dropped when a device comes and goes too often."""

from __future__ import annotations

from gateway.mqtt.presence import _Change, _skip_one


def _changes(*names: str) -> list[_Change]:
    """`+a`: connection a began; `-a`: it ended."""
    return [_Change(name[1], 0.0, "", None if name[0] == "+" else "gone") for name in names]


def _names(changes: list[_Change]) -> list[str]:
    return [("+" if change.reason is None else "-") + str(change.connection) for change in changes]


def test_only_connections_that_came_and_went_are_skipped():
    """The end of a connection whose beginning was told is kept: else it would be remembered for ever (a leak once)."""
    waiting = _changes("-a", "+b", "-b", "+c", "-c")
    assert _skip_one(waiting)
    assert _names(waiting) == ["-a", "+c", "-c"]


def test_a_takeover_keeps_the_one_that_is_connected():
    """Interleaved beginnings and ends: the oldest complete pair goes, whoever is still there stays."""
    waiting = _changes("+b", "-a", "+c", "-b", "+d")
    assert _skip_one(waiting)
    assert _names(waiting) == ["-a", "+c", "+d"]


def test_without_a_pair_nothing_is_dropped():
    """There is nothing to skip then."""
    waiting = _changes("-a", "+b")
    assert not _skip_one(waiting)
    assert _names(waiting) == ["-a", "+b"]
