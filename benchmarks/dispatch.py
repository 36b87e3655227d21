"""Dispatch of stored events by a running gateway: to a local HTTP sink one by one and in batches, and to a Python handler.

HTTP is compared with the same aiohttp client that posts bare, as many at a time, to the same sink.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import aiohttp
import uvloop
from common import peers
from common.command import Options, main
from common.deployment import Deployment
from common.figures import Figure, alternate, compare
from common.filling import fill

from edge_protocol.events import BATCH_TYPE
from gateway.bench import Target
from gateway.demo.stage import free_port

HERE = Path(__file__).parent
PATH = f"{HERE}{os.pathsep}{HERE.parent}"  # of the gateway: our handlers, and the tree that is measured
CONCURRENCY = 16
BATCH = 100
HTTP_A_SECOND, BATCHED_A_SECOND, PYTHON_A_SECOND = 5000, 30_000, 30_000
DEVICES = 64


def measure(options: Options) -> Sequence[Figure]:
    """Measure."""
    posts, calls = int(HTTP_A_SECOND * options.seconds), int(PYTHON_A_SECOND * options.seconds)
    batched = int(BATCHED_A_SECOND * options.seconds) // BATCH * BATCH
    with _sink(options.folder) as sink:
        port = sink.address[1]
        http = _stage(options.folder / "http", f'url = "http://127.0.0.1:{port}/"')
        batches = _stage(options.folder / "batches", f'batch = {BATCH}\nurl = "http://127.0.0.1:{port}/"')
        python = _stage(options.folder / "python", 'url = "python:common.sinks:count"', calls)
        found = alternate(
            options.rounds,
            {
                "gateway": lambda: _delivered(options, http, posts, port),
                "same client, bare": lambda: _bare(port, posts, *_single()),
                "batches": lambda: _delivered(options, batches, batched, port),
                "same client, bare batches": lambda: _bare(port, batched // BATCH, *_batch()) * BATCH,
                "python": lambda: _called(python, calls),
            },
        )
    rounds = found["python"]
    return [
        compare(
            "dispatch to HTTP, one by one", "events/s", found, "gateway", "same client, bare", at_least=0.5, aim=0.8
        ),
        compare(f"dispatch to HTTP, batches of {BATCH}", "events/s", found, "batches", "same client, bare batches"),
        Figure(
            name="dispatch to a Python handler",
            unit="events/s",
            value=sorted(rounds)[len(rounds) // 2],
            rounds=rounds,
            at_least=30_000,
            aim=100_000,
        ),
    ]


def _sink(folder: Path) -> AbstractContextManager[Target]:
    port = free_port()
    return peers.server([sys.executable, str(HERE / "common" / "http_sink.py"), str(port)], port, folder / "sink.log")


def _stage(folder: Path, url: str, count: int = 0) -> Deployment:
    """A gateway with one handler, started once so that the handler's place is the beginning of what comes."""
    handler = f'name = "sink"\ntypes = ["stored"]\nconcurrency = {CONCURRENCY}\n{url}'
    seen = {"BENCH_SINK": str(folder / "sink.json"), "BENCH_COUNT": str(count)}
    deployment = Deployment(folder, handler, PYTHONPATH=PATH, **seen)
    deployment.start_gateway()
    deployment.halt()
    return deployment


def _delivered(options: Options, deployment: Deployment, count: int, port: int) -> float:
    """Events a second between the first tenth and the last event of a backlog."""
    fill(deployment.settings, count, devices=DEVICES)
    before = _answered(port)
    deployment.start_gateway()
    try:
        with options.flaming(deployment.process.pid):
            first, since = _await(port, before + count // 10)
            last, until = _await(port, before + count)
    finally:
        deployment.halt()
    return (last - first) / (until - since)


def _await(port: int, wanted: int) -> tuple[int, float]:
    deadline = time.monotonic() + 120
    while (seen := _answered(port)) < wanted:
        if time.monotonic() > deadline:
            raise SystemExit(f"only {seen} of {wanted} events were delivered")
        time.sleep(0.002)
    return seen, time.perf_counter()


def _answered(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
        return int(answer.read())


def _single() -> tuple[Mapping[str, str], bytes]:
    """Headers and body of the size of one event's."""
    headers = {f"ce-{name}": "0123456789abcdef0123456789" for name in ("id", "source", "type", "stream", "sequence")}
    headers |= {"Content-Type": "application/json", "Idempotency-Key": "0123456789abcdef0123456789"}
    return headers, json.dumps({"value": "x" * 150}).encode()


def _batch() -> tuple[Mapping[str, str], bytes]:
    """Headers and body of the size of a full batch's."""
    event = dict.fromkeys(("id", "source", "type", "stream", "sequence"), "0123456789abcdef0123456789")
    event |= {"specversion": "1.0", "data": {"value": "x" * 150}}
    return {"Content-Type": BATCH_TYPE, "Idempotency-Key": "0" * 77}, json.dumps([event] * BATCH).encode()


def _bare(port: int, count: int, headers: Mapping[str, str], body: bytes) -> float:
    """Requests a second of the same client, as many at a time."""

    async def work() -> float:
        left = iter(range(count))
        connector = aiohttp.TCPConnector(limit=CONCURRENCY)
        async with aiohttp.ClientSession(connector=connector) as session:

            async def post() -> None:
                for _ in left:
                    async with session.post(f"http://127.0.0.1:{port}/", data=body, headers=headers) as answer:
                        await answer.read()

            start = time.perf_counter()
            await asyncio.gather(*(post() for _ in range(CONCURRENCY)))
            return count / (time.perf_counter() - start)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work())


def _called(deployment: Deployment, count: int) -> float:
    file = Path(deployment.environ["BENCH_SINK"])
    file.unlink(missing_ok=True)
    fill(deployment.settings, count, devices=DEVICES)
    deployment.start_gateway()
    try:
        deployment.wait_for("handler", file.exists)
    finally:
        deployment.halt()
    return count / float(json.loads(file.read_text())["seconds"])


if __name__ == "__main__":
    main(measure, description=__doc__)
