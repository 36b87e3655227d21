"""The outbox on a disk that fails and a machine that loses power (promises P1 and P4)."""

from __future__ import annotations

from contextlib import closing, suppress

import pytest
from diskfault import FaultyDisk, eio, eio_sync, enospc

from edge_agent.errors import AgentError, OutboxFull, OutboxUnavailable
from edge_agent.outbox import Outbox


def emit(outbox, name, promised):
    outbox.append([b'{"id":"%s","type":"t"}' % name, b"x" * 3000], now_ms=1)
    promised.append(name)


def emit_some(path, vfs, promised, first, count):
    """Emit as an application would: an error is an event that was not taken."""
    errors = []
    with closing(Outbox(path, max_bytes=10**9, vfs=vfs)) as outbox:
        for n in range(first, first + count):
            try:
                emit(outbox, b"e%d" % n, promised)
            except AgentError as exc:
                errors.append(exc)
    return errors


def names(path):
    with closing(Outbox(path, max_bytes=10**9)) as outbox:
        found = []
        position = 1
        while (cut := outbox.cut(position, None, events=1000, size=10**9)) is not None:
            found += [row.body for row in cut.rows]
            position = cut.span.last + 1
        depth = outbox.depth()
        assert depth.events == len(found)
        assert depth.bytes == sum(map(len, found))
        assert outbox.stream().last >= position - 1
    return [body.split(b'"')[3] for body in found if body.startswith(b"{")]


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_a_power_cut_loses_nothing_that_was_promised(tmp_path, seed):
    """Whatever part of the unsynced writes the disk kept: every emission that returned is there, in order."""
    disk = FaultyDisk(f"agent-cut-{seed}")
    path, promised = tmp_path / "outbox.db", []
    Outbox.create(path, vfs=disk._name)
    with closing(Outbox(path, max_bytes=10**9, vfs=disk._name)) as outbox:
        for n in range(30):
            emit(outbox, b"e%d" % n, promised)
        disk.crash(seed)
    assert names(path) == promised


@pytest.mark.parametrize("make_error", [eio, eio_sync, enospc])
def test_every_call_of_the_disk_may_fail(tmp_path, make_error):
    """The nth write or sync fails, for every n: what was promised survives a power cut; the next emission works."""
    for nth in range(1, 40, 2):
        disk = FaultyDisk(f"agent-{make_error.__name__}-{nth}")
        path, promised = tmp_path / f"{nth}.db", []
        Outbox.create(path, vfs=disk._name)
        disk.fail(nth, make_error)
        errors = emit_some(path, disk._name, promised, 0, 4)
        assert all(isinstance(error, (OutboxFull, OutboxUnavailable)) for error in errors)
        disk.heal()
        assert not emit_some(path, disk._name, promised, 4, 2)
        disk.crash()
        found = names(path)
        assert [name for name in found if name in promised] == promised, nth
        assert len(found) == len(set(found))


def test_a_disk_that_stays_full_refuses_and_recovers(tmp_path):
    """ENOSPC for as long as it lasts: every emission is refused as full; when there is room again it goes on."""
    disk = FaultyDisk("agent-full")
    path, promised = tmp_path / "outbox.db", []
    Outbox.create(path, vfs=disk._name)
    with closing(Outbox(path, max_bytes=10**9, vfs=disk._name)) as outbox:
        emit(outbox, b"before", promised)
        disk.fail(1, enospc, forever=True)
        for _ in range(3):
            with pytest.raises(OutboxFull, match="the disk is full, the event was not taken"):
                emit(outbox, b"lost", promised)
        disk.heal()
        emit(outbox, b"after", promised)
    with suppress(OSError):
        disk.crash()
    assert names(path) == [b"before", b"after"]


def test_the_power_cut_of_these_tests_bites(tmp_path):
    """The control: with `synchronous=NORMAL`, as the daemon writes receipts, the same power cut does lose commits."""
    disk = FaultyDisk("agent-normal")
    path = tmp_path / "outbox.db"
    Outbox.create(path, vfs=disk._name)
    with closing(Outbox(path, max_bytes=10**9, vfs=disk._name, durable=False)) as outbox:
        emit(outbox, b"e", [])
        disk.crash()
    assert names(path) == []
