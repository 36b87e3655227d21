"""The floor of sealed ingest: the same envelopes, opened bare in processes, with nothing before or after it."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from edge_protocol.envelope import AgeLimits, open_envelope
from edge_protocol.envelope_keys import OpenKey, Suite, new_open_key
from edge_protocol.payload import Limits
from gateway.bench import BenchDevice, Load
from gateway.bench.packets import Stream, envelopes

AUDIENCE, DEVICE = "bench", "bench-floor"


class Floor(NamedTuple):
    """What opening alone reaches.

    Attributes:
        rate: Envelopes a second, in all processes together.
        cpu_us: Processor time of one envelope.
    """

    rate: float
    cpu_us: float


def opened_bare(device: BenchDevice, load: Load, count: int, processes: int = 2) -> Floor:
    """Open `count` envelopes bare, as fast as these processes can."""
    open_key = new_open_key(load.suite)
    device = BenchDevice(id=DEVICE, pem=device.pem, audience=AUDIENCE, signing_key={})
    made = list(envelopes(device, load, count, open_key.public, Stream("floor", 0)))
    context = multiprocessing.get_context("spawn")
    workers = []
    for n in range(processes):
        ours, theirs = context.Pipe()
        given = (theirs, made[n::processes], (int(open_key.suite), open_key.raw), device.pem)
        process = context.Process(target=_work, args=given, daemon=True)
        process.start()
        workers.append((process, ours))
    for _, pipe in workers:
        pipe.recv()
    start = time.perf_counter()
    for _, pipe in workers:
        pipe.send("go")
    cpu_s = sum(pipe.recv() for _, pipe in workers)
    elapsed_s = time.perf_counter() - start
    for process, _ in workers:
        process.join()
    return Floor(count / elapsed_s, cpu_s / count * 1e6)


def _work(pipe: Connection[Any, Any], given: Sequence[bytes], key: tuple[int, bytes], pem: str) -> None:
    open_key = OpenKey(Suite(key[0]), key[1])
    verify_key = BenchDevice(id=DEVICE, pem=pem, audience=AUDIENCE, signing_key={}).key().public
    open_keys, verify_keys = {open_key.kid: open_key}, {verify_key.kid: verify_key}
    limits, ages = Limits(), AgeLimits()

    def work(data: bytes) -> None:
        open_envelope(
            data,
            audience=AUDIENCE,
            device=DEVICE,
            open_key=open_keys.get,
            signing_key=verify_keys.get,
            limits=limits,
            ages=ages,
            now_s=time.time(),
        )

    work(given[0])
    pipe.send("ready")
    pipe.recv()
    cpu_at = time.process_time()
    for data in given:
        work(data)
    pipe.send(time.process_time() - cpu_at)
