"""Failing disks, power cuts and killed processes: what was acknowledged stays, exactly once; nothing is half there.

By default a sample of all places where a call can fail; `SOAK` multiplies it up to every single one.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from contextlib import suppress
from itertools import count
from pathlib import Path

import apsw
import pytest
from batches import ids_in, plain_batch, read_all, span_batch
from diskfault import FaultyDisk, eio, eio_sync, enospc
from soak import SOAK

from gateway.errors import BusFull, BusUnavailable, Unavailable
from gateway.ports.bus import Stored
from gateway.ports.state import ABSENT
from gateway.storage import open_storage


class Ledger:
    """What was sent, and what was acknowledged."""

    def __init__(self):
        self.acknowledged = []
        self.sent = []
        self.states = {}

    async def append(self, bus, batches):
        self.sent += batches
        for outcome, batch in zip(await bus.append(batches), batches, strict=True):
            assert isinstance(outcome, Stored)
            self.acknowledged.append(batch)


def ids_of(batch):
    span = batch.span
    return [f"{span.stream}-{n}" for n in range(span.first, span.first + batch.count)] if span else list(batch.ids)


async def work(url, ledger, rounds):
    """Open, append from several callers at once, close, open again, append: errors end a caller's turn."""
    for round_ in rounds:
        try:
            store = await open_storage(url, min_free_disk_bytes=0)
        except BusUnavailable:
            continue
        for step in range(3):
            first = 1 + (3 * round_ + step) * 4
            calls = [
                ledger.append(
                    store.bus, [span_batch(first, first + 3, stream="s"), plain_batch(f"p{first}", f"q{first}")]
                ),
                ledger.append(store.bus, [span_batch(first, first + 3, stream="t", source="/devices/e", pad=3000)]),
                put(store.state, ledger, f"k{first}"),
            ]
            for answer in await asyncio.gather(*calls, return_exceptions=True):
                assert answer is None or isinstance(answer, Unavailable), repr(answer)
        await store.aclose()


async def put(state, ledger, key):
    await state.put(key, b"v", expect=ABSENT)
    ledger.states[key] = b"v"


async def check(path, ledger):
    """Open with the real disk: all that was acknowledged is there once; repeating everything adds what is missing."""
    store = await open_storage(f"sqlite:///{path}", min_free_disk_bytes=0)
    rows = {(row.source, row.stream, row.first) for row in await read_all(store.bus)}
    ids = await ids_in(store.bus)
    assert len(ids) == len(set(ids)), "an event is stored twice"
    missing = {id_ for batch in ledger.acknowledged for id_ in ids_of(batch)} - set(ids)
    assert not missing, f"acknowledged, and lost: {sorted(missing)}"
    for batch in ledger.sent:
        present = [id_ in ids for id_ in ids_of(batch)]
        assert all(present) or not any(present), f"half of a batch is stored: {batch}"
    for key, value in ledger.states.items():
        assert (await state_of(store, key)) == value
    for batch in ledger.sent:
        (outcome,) = await store.bus.append([batch])
        assert outcome.duplicates in (0, batch.count)
    await store.bus.append([span_batch(1, 1, stream="after")])
    again = await ids_in(store.bus)
    assert sorted(again) == sorted({id_ for batch in ledger.sent for id_ in ids_of(batch)} | {"after-1"})
    await store.aclose()
    return rows


async def state_of(store, key):
    entry = await store.state.get(key)
    return entry.value if entry else None


async def run_with_fault(directory, nth, make_error, *, forever, seed):
    """One run of the workload with a fault and a power cut; tells how many calls the disk saw."""
    path = directory / f"{nth}-{make_error.__name__}-{forever}.db"
    disk = FaultyDisk("faulty")
    ledger = Ledger()
    disk.fail(nth, make_error, forever=forever)
    await work(f"sqlite:///{path}?vfs=faulty", ledger, range(2))
    calls = disk.calls
    if not forever and seed is None:  # cut the power in the middle of a third round instead of after a clean close
        store = await open_storage(f"sqlite:///{path}?vfs=faulty", min_free_disk_bytes=0)
        await ledger.append(store.bus, [span_batch(100, 103, stream="u")])
        disk.crash(seed)
        await store.aclose()
    else:
        disk.crash(seed)
    disk.unregister()
    await check(path, ledger)
    return calls


@pytest.mark.soak
@pytest.mark.parametrize("forever", [False, True], ids=["once", "from-then-on"])
@pytest.mark.parametrize("make_error", [eio, eio_sync, enospc])
async def test_a_call_that_fails_loses_and_doubles_nothing(tmp_path, make_error, forever):
    """Whichever write, sync or truncation fails, and however: the promises hold after a power cut."""
    stride = max(1, (7 if forever else 4) // SOAK)
    total = await run_with_fault(tmp_path, 1 << 30, make_error, forever=forever, seed=None)
    for nth in range(1 + random.randrange(stride), total + 1, stride):
        seed = None if nth % 2 else nth
        await run_with_fault(tmp_path, nth, make_error, forever=forever, seed=seed)


@pytest.mark.soak
async def test_a_power_cut_at_any_moment_loses_and_doubles_nothing(tmp_path):
    """The power goes at the nth call, with none, some or all of the unsynced pages on the disk."""
    for nth in range(random.randrange(1, 12), 220, max(1, 11 // SOAK)):
        path = tmp_path / f"{nth}.db"
        disk = FaultyDisk("faulty")
        ledger = Ledger()
        cut_at(disk, nth, seed=nth if nth % 3 else None)
        await work(f"sqlite:///{path}?vfs=faulty", ledger, range(2))
        disk.unregister()
        await check(path, ledger)


def cut_at(disk, nth, seed):
    def crash():
        disk.crash(seed)
        return eio()

    disk.fail(nth, crash)


async def test_a_failed_fsync_is_not_believed_later(tmp_path):
    """The kernel forgets pages whose fsync failed: an acknowledgement after that rests on pages written anew (P4)."""
    for nth in count(1):
        disk = FaultyDisk("faulty")
        path = tmp_path / f"{nth}.db"
        store = await open_storage(f"sqlite:///{path}?vfs=faulty", min_free_disk_bytes=0)
        ledger = Ledger()
        await ledger.append(store.bus, [span_batch(1, 3)])
        start = len(disk.log)
        disk.fail(nth, eio_sync)
        refused = False
        for _ in range(2):  # the repetition is answered with success only if it is on the disk
            try:
                await ledger.append(store.bus, [span_batch(4, 6)])
            except BusUnavailable:
                refused = True
        calls = disk.log[start:]
        disk.crash()
        await store.aclose()
        disk.unregister()
        await check(path, ledger)
        if not refused:
            assert len(calls) >= 3
            return


async def test_a_full_disk_is_told_from_a_broken_one(tmp_path):
    """ENOSPC is BusFull for appends and clears by itself; EIO is BusUnavailable."""
    disk = FaultyDisk("faulty")
    store = await open_storage(f"sqlite:///{tmp_path}/bus.db?vfs=faulty", min_free_disk_bytes=0)
    disk.fail(1, enospc, forever=True)
    with pytest.raises(BusFull, match="the disk is full"):
        await store.bus.append([span_batch(1, 1)])
    with pytest.raises(BusUnavailable):
        await store.state.put("k", b"", expect=None)
    disk.heal()
    await append_until_stored(store.bus)
    disk.fail(1, eio)
    with pytest.raises(BusUnavailable, match="the store failed: injected IOError"):
        await store.bus.append([span_batch(2, 2)])
    await append_until_stored(store.bus)
    await store.aclose()
    disk.unregister()


async def append_until_stored(bus):
    async with asyncio.timeout(10):
        while True:
            try:
                return await bus.append([span_batch(1, 1)])
            except Unavailable:
                await asyncio.sleep(0.02)


async def test_calls_fail_fast_while_the_disk_is_gone_and_work_when_it_is_back(tmp_path):
    """Until the file can be opened again nobody waits; then appends go on without a restart, reads too."""
    disk = FaultyDisk("faulty")
    store = await open_storage(f"sqlite:///{tmp_path}/bus.db?vfs=faulty", min_free_disk_bytes=0)
    await store.bus.append([span_batch(1, 1)])
    disk.fail(1, eio, forever=True)
    for _ in range(20):
        with pytest.raises(BusUnavailable):
            await asyncio.wait_for(store.bus.append([span_batch(2, 2)]), 1)
    disk.heal()
    await append_until_stored(store.bus)
    await store.bus.append([span_batch(2, 2)])
    assert await ids_in(store.bus) == ["s-1", "s-2"]
    await store.aclose()
    disk.unregister()


async def test_a_failing_checkpoint_loses_nothing(tmp_path):
    """An error while the log is copied at the close leaves everything in the log for the next start."""
    disk = FaultyDisk("faulty")
    path = tmp_path / "bus.db"
    ledger = Ledger()
    store = await open_storage(f"sqlite:///{path}?vfs=faulty", min_free_disk_bytes=0)
    await ledger.append(store.bus, [span_batch(1, 500)])
    disk.fail(3, eio, forever=True)
    await store.aclose()
    disk.crash(seed=1)
    disk.unregister()
    await check(path, ledger)


CHILD = """
import asyncio, sys
from batches import plain_batch, span_batch
from gateway.storage import open_storage

async def main(url, first):
    store = await open_storage(url, min_free_disk_bytes=0)
    async def one(stream, n):
        await store.bus.append([span_batch(n, n, stream=stream), plain_batch(f"p-{stream}-{n}")])
        print(f"{stream}-{n}", f"p-{stream}-{n}", flush=True)
    while True:
        await asyncio.gather(*(one(stream, first) for stream in "abcdef"))
        first += 1

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


def run_and_kill(url, first):
    """Start a process that appends, kill it after a while; tells what it had acknowledged."""
    root = Path(__file__).parents[3]
    environment = os.environ | {"PYTHONPATH": f"{root}:{root / 'tests' / 'support'}"}
    command = [sys.executable, "-c", CHILD, url, str(first)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
        lines = "".join(child.stdout.readline() for _ in range(random.randrange(1, 400)))
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.read()
    return lines[: lines.rfind("\n") + 1].split()


@pytest.mark.soak
async def test_a_killed_process_loses_and_doubles_nothing(tmp_path):
    """SIGKILL at a random moment, again and again: what it had acknowledged is there, in order, once."""
    url = f"sqlite:///{tmp_path}/bus.db"
    acknowledged = []
    for round_ in range(3 * SOAK):
        acknowledged += await asyncio.to_thread(run_and_kill, url, 1 + round_ * 100_000)
    store = await open_storage(url, min_free_disk_bytes=0)
    ids = await ids_in(store.bus)
    assert len(ids) == len(set(ids))
    assert set(acknowledged) <= set(ids)
    await store.aclose()


async def test_the_shim_itself_forgets_what_was_not_synced(tmp_path):
    """Were the log not synced at a commit, these tests would notice: NORMAL loses what FULL keeps."""
    for level, kept in (("NORMAL", 0), ("FULL", 1)):
        disk = FaultyDisk("faulty")
        path = str(tmp_path / f"{level}.db")
        connection = apsw.Connection(path, vfs="faulty")
        connection.pragma("journal_mode", "wal")
        connection.execute("CREATE TABLE t (x)")
        connection.pragma("wal_checkpoint", "TRUNCATE")
        connection.pragma("synchronous", level)
        connection.execute("INSERT INTO t VALUES (1)")
        disk.crash()
        with pytest.raises(apsw.Error):
            connection.execute("INSERT INTO t VALUES (2)")
        with suppress(apsw.Error):
            connection.close(True)
        disk.unregister()
        after = apsw.Connection(path)
        assert after.execute("SELECT count(*) FROM t").fetchone() == (kept,)
        after.close()
