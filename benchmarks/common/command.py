"""What every benchmark's command line has in common, and what it prints about the machine."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from common.figures import Figure, print_figures
from common.flame import record

PACKAGES = ("lockgate", "uvloop", "cryptography", "msgspec", "apsw", "aiohttp")


@dataclass
class Options:
    """What was asked for.

    Attributes:
        rounds: Times each contender is measured.
        seconds: Of one measurement, about.
        full: The numbers of the issue, where they take long; else smaller ones.
        flame: File for a flame graph of the gateway under load; "" for none.
        folder: A temporary folder, on a disk.
        own: Options of this benchmark alone.
    """

    rounds: int
    seconds: float
    full: bool
    flame: str
    folder: Path
    own: argparse.Namespace = field(default_factory=argparse.Namespace)

    @contextmanager
    def flaming(self, pid: int) -> Iterator[None]:
        """Record a flame graph while the block runs, if one was asked for; the first such block gets it."""
        file, self.flame = self.flame, ""
        if not file:
            yield
            return
        with record(pid, file):
            yield


def main(
    benchmark: Callable[[Options], Sequence[Figure]],
    *,
    add: Callable[[argparse.ArgumentParser], None] = lambda _parser: None,
    description: str | None = None,
) -> None:
    """Run a benchmark as a command."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--rounds", type=int, default=5, help="times each contender is measured (5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one measurement, about (2)")
    parser.add_argument("--full", action="store_true", help="the full numbers, where they take long")
    parser.add_argument("--flame", default="", metavar="FILE", help="write a flame graph (SVG) of the gateway")
    parser.add_argument("--folder", default=None, help="make temporary files here; it must be on a disk")
    add(parser)
    asked = parser.parse_args()
    before = machine()
    with tempfile.TemporaryDirectory(prefix="lockgate-bench-", dir=asked.folder, ignore_cleanup_errors=True) as folder:
        given = (asked.rounds, asked.seconds, asked.full, asked.flame)
        figures = benchmark(Options(*given, Path(folder), asked))
    around = before | {"load_after": machine()["load"]}
    if asked.json:
        print(json.dumps({"machine": around, "figures": [figure.document() for figure in figures]}))
    else:
        print_figures(figures)
        print(f"load average before {around['load']}, after {around['load_after']}", file=sys.stderr)


def machine() -> dict[str, Any]:
    """What it was measured on."""
    return {
        "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "load": [round(load, 2) for load in os.getloadavg()],
    }


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "?")
