"""Ingest on the embedded store, with the real registry, and what is left of it when the gateway is killed."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import device_parts
import ingest_parts as parts
import pytest
from structlog.testing import capture_logs

from edge_protocol.envelope import Place
from gateway.ports.ingest import STORED, Lane
from gateway.storage import open_storage

GATEWAY = """
import asyncio, sys
import ingest_parts as parts

async def main():
    pipeline = parts.pipeline_on(None, processes=2)
    await pipeline.start()
    print(*pipeline._pool._executor._processes, flush=True)
    await asyncio.sleep(60)

if __name__ == "__main__":
    asyncio.run(main())
"""


async def test_what_is_acknowledged_is_in_the_file(tmp_path):
    """Events acknowledged by the pipeline are read back by the next process that opens the store."""
    url = f"sqlite:///{tmp_path}/bus.db"
    storage = await open_storage(url, min_free_disk_bytes=0)
    site = device_parts.Site(storage.state, device_parts.Clock())
    watching = asyncio.create_task(site.registry.run())
    key = await site.add("dev1")
    await site.connect(device_parts.token(key))
    pipeline = parts.pipeline_on(storage.bus, keys=site.registry)
    await pipeline.start()
    lane = Lane()
    envelopes = [parts.sealed(parts.event(n), place=Place("s1", n, 0), key=key) for n in range(1, 41)]
    arrivals = [parts.arrival(each, received_ms=device_parts.NOW_S * 1000, lane=lane) for each in envelopes]
    assert await parts.publish(pipeline, *arrivals) == [STORED] * 40
    await pipeline.aclose()
    await storage.aclose()
    await watching
    again = await open_storage(url, min_free_disk_bytes=0)
    assert [event.sequence for event in await parts.stored(again.bus)] == list(range(1, 41))
    await again.aclose()


async def test_a_disabled_device_stores_nothing_more():
    """Envelopes of a device that was disabled meanwhile are answered with reseal and not stored."""
    async with device_parts.site() as site:
        key = await site.add("dev1")
        await site.connect(device_parts.token(key))
        storage = await parts.memory()
        pipeline = parts.pipeline_on(storage.bus, keys=site.registry)
        await pipeline.start()
        first, second = (parts.arrival(parts.sealed(parts.event(n), key=key)) for n in (1, 2))
        assert await parts.publish(pipeline, first) == [STORED]
        await site.registry.set_enabled("dev1", enabled=False)
        with capture_logs():
            (receipt,) = await parts.publish(pipeline, second)
        assert (receipt.code, receipt.reseal) == (0x83, True)
        assert len(await parts.stored(storage.bus)) == 1
        await pipeline.aclose()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_the_pool_ends_with_a_gateway_that_was_killed(tmp_path, how):
    """However the gateway ends, the processes that opened its envelopes end too, within seconds."""
    script = tmp_path / "gateway_to_kill.py"
    script.write_text(GATEWAY)
    root = Path(__file__).parents[2]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        script,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{root / 'tests' / 'support'}{os.pathsep}{root}"},
    )
    async with asyncio.timeout(30):
        pids = [int(pid) for pid in (await process.stdout.readline()).split()]
        assert len(pids) == 2
        assert all(map(is_running, pids))
        process.send_signal(how)
        await process.wait()
        while any(map(is_running, pids)):  # noqa: ASYNC110  # other processes: there is nothing to be woken by
            await asyncio.sleep(0.02)
