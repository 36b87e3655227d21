"""Does memory grow with what has gone through?

Resident memory of the main process after many events, sealed by the hundred, against after 100,000. `--full` (10 million)
is what issue 4 asks for.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from common.command import Options, main
from common.deployment import deployed
from common.figures import Figure

from gateway.bench import Load, run

EVENTS, FIRST, QUICK, FULL = 100, 100_000, 1_000_000, 10_000_000
PART = 100_000  # events a run: so many are prepared at a time


def measure(options: Options) -> Sequence[Figure]:
    """Measure, once: there is one process, and it lives once."""
    wanted = options.own.through or (FULL if options.full else QUICK)
    with deployed(options.folder / "gateway") as deployment:
        devices = deployment.register(4, "device")

        def send(events: int) -> float:
            load = Load(count=events // EVENTS, events=EVENTS)
            run(deployment.tls, devices, load)
            time.sleep(1)  # what a commit held is given back
            return deployment.resident_bytes() / 2**20

        with options.flaming(deployment.process.pid):
            first = send(FIRST)
            after = [send(PART) for _ in range((wanted - FIRST) // PART)]
    return [
        Figure(
            name=f"resident memory after {wanted:,} events",
            unit="MiB",
            value=after[-1],
            rounds=after,
            floor=first,
            floor_name=f"after {FIRST:,}",
            at_least=1.1,
            aim=1.02,
            less_is_better=True,
        )
    ]


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--through", type=int, default=0, help=f"events ({QUICK:,}; {FULL:,} with --full)")


if __name__ == "__main__":
    main(measure, add=_add, description=__doc__)
