"""Plain ingest with millions of events stored, against an empty store.

The same load on two gateways in turn; one holds a row an event. `--full` (20 million, about 6 GB) is what issue 4 asks for.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from common.command import Options, main
from common.deployment import Deployment, deployed
from common.figures import Figure, alternate, compare
from common.filling import fill

from gateway.bench import BenchDevice, Load, run
from gateway.mqtt.codec import Version

QUICK, FULL = 2_000_000, 20_000_000
KEEP = '{ age = "7d", size = "60GiB" }'


def measure(options: Options) -> Sequence[Figure]:
    """Measure."""
    count = options.own.stored or (FULL if options.full else QUICK)
    keep = {"LOCKGATE_BUS__RETENTION": KEEP}
    with deployed(options.folder / "full", **keep) as full, deployed(options.folder / "empty", **keep) as empty:
        full.halt()
        print(f"storing {count:,} events", file=sys.stderr)
        fill(full.settings, count, devices=1000)
        full.start_gateway()
        size = (full.settings.state / "bus.db").stat().st_size
        stages = {"stored": full, "empty": empty}
        devices = {name: stage.register(4, "simple-device") for name, stage in stages.items()}
        found = alternate(
            options.rounds,
            {name: partial(_ingested, options, stages[name], devices[name]) for name in stages},
        )
    return [
        compare(
            f"plain ingest with {count:,} events stored",
            "publishes/s",
            found,
            "stored",
            "empty",
            at_least=0.85,
            aim=0.97,
            notes={"store_bytes": size},
        )
    ]


def _ingested(options: Options, deployment: Deployment, devices: Sequence[BenchDevice]) -> float:
    with options.flaming(deployment.process.pid):
        return run(deployment.plain, devices, Load(seconds=options.seconds, version=Version.V311)).rate


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stored", type=int, default=0, help=f"events stored ({QUICK:,}; {FULL:,} with --full)")


if __name__ == "__main__":
    main(measure, add=_add, description=__doc__)
