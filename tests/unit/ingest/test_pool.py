"""The process pool that opens envelopes."""

import asyncio
import os
import signal

import ingest_parts as parts
from structlog.testing import capture_logs

from edge_protocol.envelope import AgeLimits
from edge_protocol.payload import Limits
from gateway.ingest.opener import Job, Summary, Terms
from gateway.ingest.pool import MAX_ATTEMPTS, MAX_PROCESSES, OpenerPool, default_processes
from gateway.ingest.stats import IngestStats
from gateway.ports.ingest import STORED

TERMS = Terms(parts.AUDIENCE, (), Limits(), AgeLimits())


class Deadly:
    """Ends the process that unpickles it, as a fault in native code would."""

    def __reduce__(self):
        return os._exit, (1,)


async def opened(pool, terms, jobs):
    answer = asyncio.get_running_loop().create_future()
    pool.submit(terms, jobs, answer.set_result)
    async with asyncio.timeout(60):
        return await answer


async def test_what_always_kills_is_given_back():
    """A chunk that ends every process it comes to is given back unopened; the pool then serves the next one."""
    stats = IngestStats()
    pool = OpenerPool(1, stats)
    await pool.start()
    with capture_logs() as logs:
        assert await opened(pool, Deadly(), [None]) is None
    assert stats.pool_rebuilds == MAX_ATTEMPTS
    assert [entry["event"] for entry in logs] == ["opener_pool_rebuilt"] * MAX_ATTEMPTS + ["opening_failed"]
    (summary,) = await opened(pool, TERMS, [Job(parts.event(), "dev1", parts.NOW_MS, "")])
    assert isinstance(summary, Summary)
    assert pool.in_flight == 0
    await pool.aclose()


async def test_a_pipeline_answers_what_could_not_be_opened(pipeline):
    """Publishes that the pool gave back are answered with 0x83, and the lane stops: the sender repeats them."""
    terms = pipeline._terms
    pipeline._terms = Deadly()
    with capture_logs():
        (receipt,) = await parts.publish(pipeline, parts.arrival(parts.sealed()))
    assert receipt.code == 0x83
    assert receipt.reason == "opener-unavailable: the payload could not be opened now, send it again"
    pipeline._terms = terms
    assert await parts.publish(pipeline, parts.arrival(parts.sealed())) == [STORED]


async def test_ctrl_c_does_not_end_the_pool(pipeline):
    """SIGINT reaches the whole process group; the pool goes on until the gateway has finished what it took."""
    for pid in pipeline._pool._executor._processes:
        os.kill(pid, signal.SIGINT)
    assert await parts.publish(pipeline, parts.arrival(parts.sealed())) == [STORED]
    assert pipeline.stats.pool_rebuilds == 0


async def test_all_processes_are_warm_after_start():
    """`start` returns once every process has been started, so that none inherits a socket opened later."""
    pool = OpenerPool(2, IngestStats())
    await pool.start()
    assert len(pool._executor._processes) == 2
    await pool.aclose()


def test_the_default_is_bounded():
    """As many processes as cores this process may use, at most four."""
    assert 1 <= default_processes() == min(MAX_PROCESSES, len(os.sched_getaffinity(0)))
