"""A load, in this process or shared by several.

Several processes are started fresh (spawn), each with its share of the devices; all wait until the last one is ready.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import uvloop

from gateway.bench.fleet import BenchDevice
from gateway.bench.load import BenchFailed, Load, Target
from gateway.bench.run import Result, run_share


def run(
    target: Target, devices: Sequence[BenchDevice], load: Load, *, on_start: Callable[[], None] = lambda: None
) -> Result:
    """Run a load; blocks until it is over.

    Args:
        target: Where to.
        devices: Who sends.
        load: What.
        on_start: Called when all is prepared and the clock starts.

    Raises:
        BenchFailed: A device was refused or lost.
    """
    processes = min(load.processes, len(devices))
    if load.qos not in {0, 1} or load.window < 1:
        raise BenchFailed("expected QoS 0 or 1, and a window of at least 1")
    if processes > 1:
        return _run_in_processes(target, devices, load, processes, on_start)

    async def gate() -> None:
        on_start()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run_share(target, devices, load, gate))


def _run_in_processes(
    target: Target, devices: Sequence[BenchDevice], load: Load, processes: int, on_start: Callable[[], None]
) -> Result:
    context = multiprocessing.get_context("spawn")
    workers = []
    for n in range(processes):
        ours, theirs = context.Pipe()
        share = devices[n::processes]
        part = len(share) / len(devices)
        shared = replace(
            load,
            processes=1,
            count=None if load.publishes is None else max(1, round(load.publishes * part)),
            rate=None if load.rate is None else load.rate * part,
        )
        process = context.Process(target=_work, args=(theirs, target, share, shared), daemon=True)
        process.start()
        theirs.close()
        workers.append((process, ours))
    try:
        for _, pipe in workers:
            _receive(pipe)
        on_start()
        for _, pipe in workers:
            pipe.send("go")
        total = Result(processes=processes)
        for _, pipe in workers:
            total.add(_receive(pipe))
        return total
    finally:
        for process, _ in workers:
            process.terminate()
            process.join()


def _receive(pipe: Connection[Any, Any]) -> Any:
    try:
        said = pipe.recv()
    except EOFError as exc:
        raise BenchFailed("a process of the generator ended") from exc
    if isinstance(said, BenchFailed):
        raise said
    return said


def _work(pipe: Connection[Any, Any], target: Target, devices: Sequence[BenchDevice], load: Load) -> None:
    """What each process does: tell that it is ready, wait for the others, tell what it measured."""

    async def gate() -> None:
        pipe.send("ready")
        await asyncio.to_thread(pipe.recv)

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            pipe.send(runner.run(run_share(target, devices, load, gate)))
    except BenchFailed as exc:
        pipe.send(exc)
