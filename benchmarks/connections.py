"""Idle TLS connections: resident memory of each beyond the first 100, and how fast they connect.

A connect is TLS handshake, token, CONNACK. Against a bare uvloop server with the same certificate that lets everybody in.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import uvloop
from common import peers
from common.command import Options, main
from common.deployment import Deployment, deployed, strangers
from common.figures import Figure, alternate, compare

from gateway.bench import BenchDevice, Load, Target
from gateway.bench.run import connect_all
from gateway.demo.stage import free_port
from gateway.mqtt.codec import Version

HERE = Path(__file__).parent
FIRST = 100


def measure(options: Options) -> Sequence[Figure]:
    """Measure."""
    count = options.own.connections
    memory: dict[str, list[float]] = {"gateway": [], "bare uvloop server": []}
    with deployed(options.folder / "gateway") as deployment:
        devices = deployment.register(FIRST + count, "simple-device")
        port = free_port()
        certificate = [str(deployment.folder / "certs" / name) for name in ("server.pem", "server-key.pem")]
        command = [sys.executable, str(HERE / "common" / "bare_tls.py"), str(port), *certificate]

        def bare() -> float:
            with peers.server(command, port, options.folder / "bare.log"):
                process = next(child for child in psutil.Process().children() if str(port) in child.cmdline())
                target = Target(url=f"mqtts://localhost:{port}", ca=deployment.tls.ca)
                rate, each = _storm(target, strangers(FIRST + count), lambda: process.memory_info().rss, "bare")
            memory["bare uvloop server"].append(each)
            return rate

        def gateway() -> float:
            _restart(deployment)  # memory that a round before freed would hide what this one takes
            with options.flaming(deployment.process.pid):
                rate, each = _storm(deployment.tls, devices, deployment.resident_bytes, "")
            memory["gateway"].append(each)
            return rate

        found = alternate(options.rounds, {"gateway": gateway, "bare uvloop server": bare})
    kib = memory["gateway"]
    name, against = f"resident memory an idle TLS connection ({count} beyond {FIRST})", "bare uvloop server"
    return [
        Figure(
            name=name,
            unit="KiB",
            value=statistics.median(kib),
            rounds=kib,
            at_least=60,
            aim=35,
            less_is_better=True,
        ),
        compare(name, "KiB", memory, "gateway", against),
        compare("connect storm, TLS and token", "connections/s", found, "gateway", against),
    ]


def _restart(deployment: Deployment) -> None:
    deployment.halt()
    deployment.start_gateway()


def _storm(
    target: Target, devices: Sequence[BenchDevice], resident: Callable[[], int], topic: str
) -> tuple[float, float]:
    """Connect the first hundred, then all others at once; connections a second, and KiB each."""
    load = Load(version=Version.V311, topic=topic)

    async def work() -> tuple[float, float]:
        sessions = await connect_all(target, devices[:FIRST], load)
        await asyncio.sleep(0.5)
        before, start = resident(), time.perf_counter()
        sessions += await connect_all(target, devices[FIRST:], load)
        elapsed_s = time.perf_counter() - start
        await asyncio.sleep(1)
        after = resident()
        for session in sessions:
            session.close()
        await asyncio.sleep(0.2)
        more = len(devices) - FIRST
        return more / elapsed_s, (after - before) / more / 1024

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work())


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--connections", type=int, default=1000, help="beyond the first 100 (1000)")


if __name__ == "__main__":
    main(measure, add=_add, description=__doc__)
