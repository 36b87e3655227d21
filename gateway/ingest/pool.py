"""The process pool that opens envelopes: HPKE holds the GIL, so threads would not do (architecture, "Why" 4).

The fork server starts before any socket exists, so no process inherits one. A process that is killed breaks its whole
pool (concurrent.futures cannot replace one): the pool is built anew and every chunk it held is submitted again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Final

import structlog

from gateway.ingest import worker
from gateway.ingest.opener import Job, Terms, open_chunk
from gateway.ingest.openings import Opening
from gateway.ingest.stats import IngestStats

log = structlog.get_logger()

MAX_PROCESSES: Final = 4
MAX_ATTEMPTS: Final = 5
"""A chunk that was in the pool at so many breaks is given back unopened: it may be what breaks it."""

Done = Callable[[list[Opening] | None], None]


@dataclass(slots=True)
class _Ticket:
    """A chunk on its way through the pool."""

    terms: Terms
    jobs: Sequence[Job]
    done: Done
    attempts: int = 0


def default_processes() -> int:
    """As many as there are cores, at most 4: beyond that the loop thread is what is slow."""
    return min(MAX_PROCESSES, len(os.sched_getaffinity(0)))


class OpenerPool:
    """Opens chunks in processes; used from one event loop's thread."""

    def __init__(self, processes: int, stats: IngestStats) -> None:
        self.processes = processes
        self.in_flight = 0
        self._stats = stats
        self._loop = asyncio.get_running_loop()
        self._executor = self._build()

    async def start(self) -> None:
        """Start every process and wait until each has answered."""
        executor = self._executor
        warm = [asyncio.wrap_future(executor.submit(worker.ready)) for _ in range(self.processes)]
        await asyncio.gather(*warm)

    def submit(self, terms: Terms, jobs: Sequence[Job], done: Done) -> None:
        """Open a chunk; never blocks.

        `done` is called once, on the loop's thread, with one opening for each job, or with None if the pool broke
        again and again.
        """
        self.in_flight += 1
        self._send(_Ticket(terms, jobs, done))

    async def aclose(self) -> None:
        """End the processes, once they have finished what they hold."""
        await asyncio.to_thread(self._executor.shutdown)

    def _build(self) -> ProcessPoolExecutor:
        context = get_context("forkserver")
        context.set_forkserver_preload([worker.__name__])
        return ProcessPoolExecutor(self.processes, mp_context=context, initializer=worker.begin)

    def _send(self, ticket: _Ticket) -> None:
        ticket.attempts += 1
        try:
            future = self._executor.submit(open_chunk, ticket.terms, ticket.jobs)
        except BrokenProcessPool:  # it broke while idle
            self._rebuild(self._executor)
            future = self._executor.submit(open_chunk, ticket.terms, ticket.jobs)
        executor = self._executor
        future.add_done_callback(
            lambda done: self._loop.call_soon_threadsafe(self._finished, ticket, executor, done),
        )

    def _finished(self, ticket: _Ticket, executor: ProcessPoolExecutor, future: Future[list[Opening]]) -> None:
        error = future.exception()
        if isinstance(error, BrokenProcessPool):
            self._rebuild(executor)
            if ticket.attempts < MAX_ATTEMPTS:
                self._send(ticket)
                return
        if error is not None:
            log.error("opening_failed", publishes=len(ticket.jobs), attempts=ticket.attempts, error=repr(error))
        self.in_flight -= 1
        ticket.done(None if error is not None else future.result())

    def _rebuild(self, broken: ProcessPoolExecutor) -> None:
        """Replace a broken pool, once for all the chunks that tell of it."""
        if broken is not self._executor:
            return
        self._stats.pool_rebuilds += 1
        log.warning("opener_pool_rebuilt", processes=self.processes, times=self._stats.pool_rebuilds)
        broken.shutdown(wait=False)
        self._executor = self._build()
