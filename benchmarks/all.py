"""Runs every benchmark, one after the other, and prints one table.

`--json FILE` keeps everything, `--results FILE` writes the table as Markdown (`make bench`: benchmarks/RESULTS.md).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common.figures import Figure, print_figures
from common.results import write_results

HERE = Path(__file__).parent
NAMES = ("ingest_plain", "ingest_sealed", "latency", "connections", "dispatch", "backlog", "growth", "memory", "outbox")
_SHOWN = ("name", "value", "unit", "rounds", "floor", "floor_name", "at_least", "aim", "less_is_better")


def main() -> int:
    """Run them; 1 if a benchmark failed, whatever it measured otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", default="", metavar="FILE", help="write all figures to a file")
    parser.add_argument("--results", default="", metavar="FILE", help="write the table as Markdown")
    parser.add_argument("--only", nargs="*", default=NAMES, choices=NAMES, metavar="NAME", help="some of them")
    asked, others = parser.parse_known_args()
    done = {name: _run(name, others) for name in asked.only}
    figures = [figure for document in done.values() if document for figure in document["figures"]]
    print_figures([Figure(**{name: figure[name] for name in _SHOWN}) for figure in figures])
    if asked.json:
        Path(asked.json).write_text(json.dumps(done, indent=1) + "\n")
    if asked.results:
        ran = {name: document for name, document in done.items() if document}
        write_results(Path(asked.results), ran, f"python benchmarks/all.py {' '.join(others)}".rstrip())
    return 0 if all(done.values()) else 1


def _run(name: str, others: list[str]) -> dict[str, Any] | None:
    start = time.monotonic()
    print(f"{name} ...", file=sys.stderr, end=" ", flush=True)
    command = [sys.executable, str(HERE / f"{name}.py"), "--json", *others]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    print(f"{time.monotonic() - start:.0f} s", file=sys.stderr)
    if ended.returncode:
        return None
    document: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return document


if __name__ == "__main__":
    sys.exit(main())
