"""The bell between whoever emits and the daemon."""

from __future__ import annotations

import select
from pathlib import Path

import pytest

from edge_agent.bell import Bell, ring


def _has_rung(bell: Bell) -> bool:
    return bool(select.select([bell], [], [], 0)[0])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.bell"


def test_a_ring_is_heard_once(path):
    """A ring makes the bell readable until it is cleared."""
    bell = Bell(path)
    assert not _has_rung(bell)
    ring(path)
    assert _has_rung(bell)
    bell.clear()
    assert not _has_rung(bell)
    bell.close()


def test_rings_that_nobody_hears_cost_nothing(path):
    """Without a bell, without a listener, and with a full pipe, ringing neither waits nor fails."""
    ring(path)
    assert not path.exists()
    bell = Bell(path)
    for _ in range(70_000):  # a pipe holds 65,536 bytes
        ring(path)
    bell.clear()
    assert not _has_rung(bell)
    bell.close()
    ring(path)


def test_the_next_daemon_uses_the_same_pipe(path):
    """A daemon that starts after a crash listens on the pipe that is there, for its user only."""
    first = Bell(path)
    second = Bell(path)
    assert path.stat().st_mode & 0o777 == 0o600
    first.close()
    ring(path)
    assert _has_rung(second)
    second.close()
