"""Sealed ingest over TLS in the default suite, 1, 10 and 100 events an envelope.

The floor: envelopes of the same kind opened bare in two processes. Also the processor time of the whole gateway for an
envelope, against the opener's own.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from common.command import Options, main
from common.deployment import Deployment, deployed
from common.figures import Figure, alternate, compare
from common.opening import opened_bare

from gateway.bench import BenchDevice, Load, run

CONNECTIONS, WINDOW = 4, 64
BATCHES = {1: 3000, 10: 2500, 100: 1000}
"""Events an envelope, and envelopes for each second of measuring."""


def measure(options: Options) -> Sequence[Figure]:
    """Measure."""
    figures: list[Figure] = []
    with deployed(options.folder / "gateway") as deployment:
        devices = deployment.register(CONNECTIONS, "device")
        for events, a_second in BATCHES.items():
            load = Load(count=int(a_second * options.seconds), window=WINDOW, events=events)
            figures += _measure(options, deployment, devices, load)
    return figures


def _measure(options: Options, deployment: Deployment, devices: Sequence[BenchDevice], load: Load) -> Sequence[Figure]:
    cpu: dict[str, list[float]] = {"gateway": [], "opener's own": []}
    count = load.count or 0

    def gateway() -> float:
        at = 0.0

        def start() -> None:
            nonlocal at
            at = deployment.cpu_s()

        with options.flaming(deployment.process.pid):
            result = run(deployment.tls, devices, load, on_start=start)
        cpu["gateway"].append((deployment.cpu_s() - at) / count * 1e6)
        return result.rate * load.events

    def floor() -> float:
        found = opened_bare(devices[0], load, count)
        cpu["opener's own"].append(found.cpu_us)
        return found.rate * load.events

    found = alternate(options.rounds, {"gateway": gateway, "opened bare, 2 processes": floor})
    name = f"sealed ingest with TLS, {load.events} event{'s' * (load.events > 1)} an envelope"
    bounds = {"at_least": 0.4, "aim": 0.6} if load.events == 1 else {}
    figures = [compare(name, "events/s", found, "gateway", "opened bare, 2 processes", **bounds)]
    bounds = {"at_least": 2.0, "aim": 1.4} if load.events == 1 else {}
    name = f"gateway CPU an envelope of {load.events}"
    figures.append(compare(name, "us", cpu, "gateway", "opener's own", less_is_better=True, **bounds))
    if load.events == 100:
        rounds = found["gateway"]
        name = "sealed ingest with TLS, 100 events an envelope"
        value = statistics.median(rounds)
        figures.append(Figure(name=name, unit="events/s", value=value, rounds=rounds, at_least=100_000, aim=250_000))
    return figures


if __name__ == "__main__":
    main(measure, description=__doc__)
