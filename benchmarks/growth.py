"""Does plain ingest cost more beside idle connections, with many devices registered, with many handlers?

The same load on gateways in turn: one alone, one with idle TLS connections, one with devices that never come, one with a
handler that wants other events, one with ten such. To read what is stored costs something; that ten read, should not cost
more than that one does. How much is stored is `backlog`'s question.
"""

from __future__ import annotations

import argparse
import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import uvloop
from common.command import Options, main
from common.deployment import Deployment, deployed
from common.figures import Figure, alternate, compare

from gateway.bench import BenchDevice, Load, run
from gateway.bench.run import connect_all
from gateway.mqtt.codec import Version

CONNECTIONS, HANDLERS = 4, 10
ALONE = "alone"


def measure(options: Options) -> Sequence[Figure]:
    """Measure."""
    connected, known = options.own.idle, options.own.registered
    idle, registered = f"{connected:,} idle connections", f"{known:,} devices registered"
    handler, handlers = "1 handler", f"{HANDLERS} handlers"
    tables = [f'name = "other-{n}"\ntypes = ["other-{n}"]\nurl = "http://127.0.0.1:9/"' for n in range(HANDLERS)]
    with ExitStack() as running:
        stages = {
            ALONE: running.enter_context(deployed(options.folder / "alone")),
            idle: running.enter_context(deployed(options.folder / "idle")),
            registered: running.enter_context(deployed(options.folder / "registered")),
            handler: running.enter_context(deployed(options.folder / "handler", tables[0])),
            handlers: running.enter_context(deployed(options.folder / "handlers", *tables)),
        }
        devices = {name: stage.register(CONNECTIONS, "simple-device") for name, stage in stages.items()}
        stages[registered].register(known, "simple-device")
        running.enter_context(_idle(stages[idle], stages[idle].register(connected, "simple-device")))
        found = alternate(
            options.rounds, {name: partial(_ingested, options, stage, devices[name]) for name, stage in stages.items()}
        )
    pairs = ((idle, ALONE), (registered, ALONE), (handler, ALONE), (handlers, handler))
    return [compare(f"plain ingest with {name}", "publishes/s", found, name, against) for name, against in pairs]


@contextmanager
def _idle(deployment: Deployment, devices: Sequence[BenchDevice]) -> Iterator[None]:
    """Keep devices connected from a thread of its own."""
    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    work = connect_all(deployment.tls, devices, Load(version=Version.V311))
    sessions = asyncio.run_coroutine_threadsafe(work, loop).result(60)
    try:
        yield
    finally:
        for session in sessions:
            loop.call_soon_threadsafe(session.close)
        loop.call_soon_threadsafe(loop.call_later, 0.5, loop.stop)
        thread.join()
        loop.close()


def _ingested(options: Options, deployment: Deployment, devices: Sequence[BenchDevice]) -> float:
    with options.flaming(deployment.process.pid):
        return run(deployment.plain, devices, Load(seconds=options.seconds, version=Version.V311)).rate


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--idle", type=int, default=1000, help="connections that publish nothing (1000)")
    parser.add_argument("--registered", type=int, default=5000, help="devices that are never seen (5000)")


if __name__ == "__main__":
    main(measure, add=_add, description=__doc__)
