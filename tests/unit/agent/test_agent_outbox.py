"""The outbox: numbers, bounds, quarantine, several users."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from contextlib import closing

import apsw
import pytest

from edge_agent.errors import OutboxFull, OutboxUnavailable
from edge_agent.home import Home
from edge_agent.outbox import Outbox
from edge_agent.setup import make_home
from edge_agent.store import SCHEMA_VERSION
from edge_agent.window import Span


@pytest.fixture
def path(tmp_path):
    Outbox.create(tmp_path / "outbox.db")
    return tmp_path / "outbox.db"


@pytest.fixture
def outbox(path):
    with closing(Outbox(path, max_bytes=1_000_000)) as opened:
        yield opened


def bodies(count, start=1):
    return [b'{"id":"e%d","type":"t"}' % n for n in range(start, start + count)]


def positions(cut):
    return [row.position for row in cut.rows]


def test_events_are_numbered_from_1_without_gaps(outbox):
    """Positions follow emission; a rolled back emission takes none."""
    outbox.append(bodies(3), now_ms=1)
    with pytest.raises(OutboxFull):
        outbox.append([b"x" * 1_000_000], now_ms=1)
    outbox.append(bodies(2, 4), now_ms=2)
    cut = outbox.cut(1, None, events=100, size=1000)
    assert positions(cut) == [1, 2, 3, 4, 5]
    assert [row.body for row in cut.rows] == bodies(5)
    assert cut.settled == 0


def test_a_number_is_never_used_twice(outbox):
    """Emptying the outbox does not start the count again."""
    outbox.append(bodies(3), now_ms=1)
    outbox.settle([Span(1, 3)])
    outbox.append(bodies(1), now_ms=1)
    assert positions(outbox.cut(1, None, events=9, size=999)) == [4]


@pytest.mark.parametrize(("limit", "fits"), [(99, False), (100, True), (101, True)])
def test_the_bound_on_bytes_is_exact(path, limit, fits):
    """Full means: emission is refused with what to do, nothing is dropped; at n-1, n and n+1."""
    with closing(Outbox(path, max_bytes=limit)) as outbox:
        outbox.append([b"x" * 60], now_ms=1)
        if fits:
            outbox.append([b"y" * 40], now_ms=1)
        else:
            with pytest.raises(OutboxFull, match=r"60 of 99 bytes are taken \(outbox.max_bytes\), 40 more do not fit"):
                outbox.append([b"y" * 40], now_ms=1)
        assert outbox.depth().bytes == (100 if fits else 60)


def test_room_comes_back_with_receipts(path):
    """What is settled or discarded makes room; what is in quarantine takes it."""
    with closing(Outbox(path, max_bytes=50)) as outbox:
        outbox.append(bodies(2), now_ms=1)
        with pytest.raises(OutboxFull):
            outbox.append(bodies(1), now_ms=1)
        outbox.set_aside(Span(1, 1), code=0x99, reason="r", now_ms=5)
        with pytest.raises(OutboxFull):
            outbox.append(bodies(1), now_ms=1)
        outbox.discard(["e1"])
        outbox.append(bodies(1, 3), now_ms=1)
        outbox.settle([Span(1, 9)])
        depth = outbox.depth()
        assert (depth.events, depth.bytes, depth.oldest_ms, depth.quarantined) == (0, 0, None, 0)


@pytest.mark.parametrize(("events", "got", "is_full"), [(1, 1, True), (4, 4, True), (5, 5, True), (6, 5, False)])
def test_a_cut_is_bounded_by_events(outbox, events, got, is_full):
    """At most so many events; a cut that more events would lengthen is not full."""
    outbox.append(bodies(5), now_ms=1)
    cut = outbox.cut(1, None, events=events, size=10_000)
    assert (len(cut.rows), cut.is_full) == (got, is_full)


@pytest.mark.parametrize(("size", "got"), [(1, 1), (43, 1), (44, 2), (45, 2)])
def test_a_cut_is_bounded_by_bytes_but_takes_one_event(outbox, size, got):
    """Two events of 22 bytes: one below 44 bytes, two from 44 on; never none."""
    outbox.append(bodies(2), now_ms=1)
    assert len(outbox.cut(1, None, events=9, size=size).rows) == got


def test_a_cut_ends_before_a_hole_and_the_next_begins_behind_it(outbox):
    """Consecutive events only; `settled` stays below the oldest event."""
    outbox.append(bodies(6), now_ms=1)
    outbox.settle([Span(3, 3)])
    first = outbox.cut(1, None, events=9, size=999)
    assert (positions(first), first.is_full, first.settled) == ([1, 2], True, 0)
    second = outbox.cut(3, None, events=9, size=999)
    assert (positions(second), second.settled) == ([4, 5, 6], 0)
    outbox.settle([first.span])
    assert outbox.cut(1, None, events=9, size=999).settled == 3


def test_quarantine_keeps_event_code_and_reason(outbox):
    """A refused event leaves the outbox with its reason; retried it comes last, under a new number."""
    outbox.append(bodies(3), now_ms=7)
    assert outbox.set_aside(Span(2, 2), code=0x99, reason="bad-schema: x", now_ms=9) == ["e2"]
    (aside,) = outbox.quarantined()
    assert (aside.id, aside.emitted_ms, aside.refused_ms, aside.code, aside.reason, aside.body) == (
        "e2", 7, 9, 0x99, "bad-schema: x", bodies(1, 2)[0],
    )  # fmt: skip
    assert outbox.retry(["nothing"]) == []
    assert outbox.retry() == ["e2"]
    assert positions(outbox.cut(2, None, events=9, size=999)) == [3, 4]
    assert outbox.depth().events == 3
    assert not outbox.quarantined()


def test_a_fork_renumbers_what_waits_from_1(outbox):
    """A new stream has a new id and begins with what waits, as number 1, however large the outbox is."""
    outbox.append(bodies(5), now_ms=1)
    outbox.settle([Span(1, 2)])
    outbox.mark_sent(4)
    old = outbox.stream()
    new = outbox.fork()
    assert new.id != old.id
    cut = outbox.cut(1, None, events=9, size=999)
    assert (cut.span.first - new.base, cut.settled - new.base) == (1, 0)
    assert new.sent == new.base


def test_a_fork_of_an_empty_outbox_begins_at_1(outbox):
    """The next event of the new stream is number 1."""
    outbox.append(bodies(2), now_ms=1)
    outbox.settle([Span(1, 2)])
    stream = outbox.fork()
    outbox.append(bodies(1), now_ms=1)
    assert outbox.cut(1, None, events=9, size=999).span.first - stream.base == 1


def test_the_stream_id_is_made_once(path):
    """Opening and creating again keep stream, numbers and events."""
    with closing(Outbox(path, max_bytes=1000)) as outbox:
        outbox.append(bodies(2), now_ms=1)
        stream = outbox.stream()
    Outbox.create(path)
    with closing(Outbox(path, max_bytes=1000)) as outbox:
        assert outbox.stream() == stream
        assert outbox.depth().events == 2


def test_many_are_settled_in_steps(path):
    """A long range is forgotten in transactions of 10,000 rows; counters stay right."""
    with closing(Outbox(path, max_bytes=10**9, durable=False)) as outbox:
        outbox.append(bodies(25_000), now_ms=1)
        outbox.settle([Span(1, 24_999)])
        assert outbox.depth().events == 1
        assert outbox.depth().bytes == len(bodies(1, 25_000)[0])
        outbox.store.shrink()


def test_several_writers_never_share_a_number(path):
    """Threads with connections of their own: every event is there once, in some order, numbered without a gap."""

    def write(name):
        with closing(Outbox(path, max_bytes=10**9)) as outbox:
            for n in range(50):
                outbox.append([b'{"id":"%s-%d"}' % (name, n)], now_ms=n)

    threads = [threading.Thread(target=write, args=(name,)) for name in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with closing(Outbox(path, max_bytes=10**9)) as outbox:
        cut = outbox.cut(1, None, events=1000, size=10**9)
        assert positions(cut) == list(range(1, 151))
        for name in (b"a", b"b", b"c"):
            own = [row.body for row in cut.rows if row.body.startswith(b'{"id":"' + name)]
            assert own == [b'{"id":"%s-%d"}' % (name, n) for n in range(50)]


def test_another_connection_is_noticed(path, outbox):
    """`data_version` changes when another process emits, and not by looking."""
    before = outbox.store.data_version()
    assert outbox.store.data_version() == before
    with closing(Outbox(path, max_bytes=1000)) as other:
        other.append(bodies(1), now_ms=1)
    assert outbox.store.data_version() != before


def test_a_missing_outbox_is_named(tmp_path):
    """No file is made silently where none is expected."""
    with (
        closing(Outbox(tmp_path / "none.db", max_bytes=1)) as outbox,
        pytest.raises(OutboxUnavailable, match="expected the outbox that `edge-agent init` makes"),
    ):
        outbox.depth()
    assert not (tmp_path / "none.db").exists()


def test_a_newer_outbox_is_refused(path):
    """A file of a later version is not touched."""
    db = apsw.Connection(str(path))
    db.pragma("user_version", SCHEMA_VERSION + 1)
    db.close()
    with closing(Outbox(path, max_bytes=1)) as outbox, pytest.raises(OutboxUnavailable, match="newer edge-agent"):
        outbox.depth()


def test_the_outbox_is_durable(outbox, path):
    """WAL with synchronous FULL for emitters (promise P1); NORMAL only where the daemon writes."""
    outbox.depth()
    assert outbox.store._db.pragma("synchronous") == 2
    assert outbox.store._db.pragma("journal_mode") == "wal"
    with closing(Outbox(path, max_bytes=1, durable=False)) as daemon:
        daemon.depth()
        assert daemon.store._db.pragma("synchronous") == 1


def test_a_disk_error_is_a_refusal_and_the_store_recovers(outbox):
    """An SQLite error inside a transaction refuses the emission, and the next one works on a fresh connection (P4)."""
    outbox.depth()
    connection = outbox.store._db

    def fail():
        with outbox.store.transaction() as db:
            db.execute("INSERT INTO event VALUES (99, 0, x'00')")
            raise apsw.IOError("disk I/O error")

    with pytest.raises(OutboxUnavailable, match="disk I/O error"):
        fail()
    outbox.append(bodies(1), now_ms=1)
    assert positions(outbox.cut(1, None, events=9, size=99)) == [1]
    assert outbox.store._db is not connection


def test_a_full_disk_is_a_refusal(outbox):
    """SQLite finds no room (here: no more pages allowed): the emission is refused, what was there stays."""
    outbox.append(bodies(2), now_ms=1)
    outbox.store._db.pragma("max_page_count", 1)  # raised to what is in use
    with pytest.raises(OutboxFull, match="the disk is full, the event was not taken"):
        outbox.append([b"x" * 900_000], now_ms=1)
    assert outbox.depth().events == 2
    outbox.append(bodies(1, 3), now_ms=1)


EMITTER = """
import sys
from edge_agent import Agent
with Agent.open(sys.argv[1]) as agent:
    while True:
        print(agent.emit("tick", {"n": 1}), flush=True)
"""


def test_kill_9_loses_no_event_that_was_promised(tmp_path):
    """A process that emits in a loop is killed, three times: every id it printed is in the outbox (promise P1)."""
    home = Home(tmp_path / "home")
    make_home(home, "dev1", gateway="", audience="a", ca=None, signing_key=None, alg="EdDSA")
    promised = []
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", EMITTER, str(home.path)], stdout=subprocess.PIPE, text=True)
        promised += [child.stdout.readline().strip() for _ in range(40)]
        child.send_signal(signal.SIGKILL)
        promised += [line.strip() for line in child.stdout if line.endswith("\n")]
        child.stdout.close()
        assert child.wait(10) == -signal.SIGKILL
    with closing(home.outbox(home.settings())) as outbox:
        there = outbox.store.rows("SELECT json_extract(CAST(body AS TEXT), '$.id') FROM event ORDER BY position")
    kept = [row[0] for row in there]
    assert [event for event in kept if event in set(promised)] == promised
    assert len(kept) <= len(promised) + 3
