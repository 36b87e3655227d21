"""Plain QoS 1 publishes, 256 bytes, 4 connections with 64 in flight, against brokers.

Then CloudEvents, whose ids are compared with those of the deduplication window; then 128 connections with one in flight, where no
publish can share its way with another (docs/adr/0008-runs.md).

The gateway stores before PUBACK, policy and sessions on, without TLS. Its peers: Mosquitto in memory, NATS JetStream that
syncs every append, amqtt; and what the load generator reaches against a server that acknowledges blindly.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path

from common import peers
from common.command import Options, main
from common.deployment import deployed, strangers
from common.figures import Figure, alternate, compare
from common.jetstream import publish_rate

from gateway.bench import Load, Target, run
from gateway.demo.stage import free_port
from gateway.mqtt.codec import Publish, Version, encode

CONNECTIONS, WINDOW, SIZE, TOPIC = 4, 64, 256, "bench/plain"
MANY = 128
A_SECOND = 60_000  # CloudEvents prepared for each second of measuring
BLIND = Path(__file__).parent / "common" / "blind.py"


def measure(options: Options) -> Sequence[Figure]:
    """Measure."""
    with ExitStack() as running:
        deployment = running.enter_context(deployed(options.folder / "gateway"))
        devices = deployment.register(MANY, "simple-device")
        brokers = {
            "Mosquitto in memory": running.enter_context(peers.mosquitto(options.folder)),
            "amqtt": running.enter_context(peers.amqtt(options.folder)),
            "generator's ceiling": running.enter_context(_blind(options.folder)),
        }
        nats = running.enter_context(peers.nats(options.folder))
        cpu: list[float] = []

        def gateway() -> float:
            before = deployment.cpu_s()
            with options.flaming(deployment.process.pid):
                result = run(deployment.plain, devices[:CONNECTIONS], _load(options))
            cpu.append((deployment.cpu_s() - before) / result.acknowledged * 1e6)
            return result.rate

        contenders: dict[str, Callable[[], float]] = {
            "gateway": gateway,
            **{name: partial(_broker, options, target) for name, target in brokers.items()},
            "gateway, CloudEvents": lambda: run(deployment.plain, devices[:CONNECTIONS], _events(options)).rate,
            "gateway, singles": lambda: run(deployment.plain, devices, _load(options, window=1)).rate,
            "Mosquitto, singles": lambda: (
                run(brokers["Mosquitto in memory"], strangers(MANY), _load(options, TOPIC, window=1)).rate
            ),
            "NATS, every append synced": lambda: publish_rate(
                nats, connections=CONNECTIONS, size=SIZE, seconds=options.seconds
            ),
        }
        found = alternate(options.rounds, contenders)
    unit, name = "publishes/s", "plain QoS 1 ingest, stored before PUBACK"
    return [
        compare(name, unit, found, "gateway", "Mosquitto in memory", at_least=0.8, aim=1.5),
        compare(name, unit, found, "gateway", "NATS, every append synced", at_least=8, aim=20),
        compare(name, unit, found, "gateway", "amqtt"),
        Figure(name="gateway CPU a publish, all threads", unit="us", value=statistics.median(cpu), rounds=cpu),
        compare("plain QoS 1 ingest, a CloudEvent each", unit, found, "gateway, CloudEvents", "Mosquitto in memory"),
        compare(f"plain QoS 1 ingest, {MANY} connections x 1", unit, found, "gateway, singles", "Mosquitto, singles"),
        compare("load generator against a blind server", unit, found, "generator's ceiling", "gateway"),
    ]


def _load(options: Options, topic: str = "", window: int = WINDOW) -> Load:
    return Load(seconds=options.seconds, window=window, size=SIZE, version=Version.V311, topic=topic)


def _events(options: Options) -> Load:
    return Load(count=int(A_SECOND * options.seconds), window=WINDOW, size=SIZE, version=Version.V311, structured=True)


def _broker(options: Options, target: Target) -> float:
    return run(target, strangers(CONNECTIONS), _load(options, TOPIC)).rate


def _blind(folder: Path) -> AbstractContextManager[Target]:
    port = free_port()
    size = len(encode(Publish(topic=TOPIC, payload=b"x" * SIZE, qos=1, packet_id=1), Version.V311))
    command = [sys.executable, str(BLIND), str(port), str(size), str(WINDOW)]
    return peers.server(command, port, folder / "blind.log")


if __name__ == "__main__":
    main(measure, description=__doc__)
