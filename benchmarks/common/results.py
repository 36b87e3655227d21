"""Writes RESULTS.md: machine, versions, commands and the table are made anew; what people wrote below them stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

KEPT = "## What bounds it"
_HEAD = "| measure | measured | spread | against | ratio | at least | aim | |\n|---|---|---|---|---|---|---|---|"


def write_results(file: Path, done: Mapping[str, Mapping[str, Any]], command: str) -> None:
    """Write the results of benchmarks, as they print them with `--json`."""
    before = file.read_text() if file.exists() else ""
    kept = before[before.index(KEPT) :] if KEPT in before else f"{KEPT}\n"
    machine = next(iter(done.values()))["machine"]
    loads = " ".join(
        f"{name} {run['machine']['load'][0]}-{run['machine']['load_after'][0]}" for name, run in done.items()
    )
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    lines = [
        "# Results",
        "",
        "Medians of alternating rounds; every ratio is of values from the same run. `make bench` writes this file anew,",
        f'down to "{KEPT.removeprefix("## ")}".',
        "",
        f"- when: {machine['when']}",
        f"- machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB, {machine['system']}",
        f"- versions: Python {machine['python']}, {packages}",
        f"- command: `{command}`",
        f"- load average before and after each: {loads} (above 2 the machine was shared, and rates are lower bounds)",
        "",
        _HEAD,
        *(_row(figure) for run in done.values() for figure in run["figures"]),
        "",
        kept,
    ]
    file.write_text("\n".join(lines).rstrip() + "\n")


def _row(figure: Mapping[str, Any]) -> str:
    rounds: Sequence[float] = figure["rounds"]
    spread = f"{_number(min(rounds))} .. {_number(max(rounds))}" if len(rounds) > 1 else ""
    against = "" if figure["floor"] is None else f"{figure['floor_name']}: {_number(figure['floor'])}"
    ratio = "" if figure["ratio"] is None else f"{figure['ratio']:.2f} x"
    unit = " x" if figure["ratio"] is not None else ""
    bounds = ("" if bound is None else f"{_number(bound)}{unit}" for bound in (figure["at_least"], figure["aim"]))
    verdict = f"**{figure['verdict']}**" if figure["verdict"] == "MISSED" else figure["verdict"]
    cells = (figure["name"], f"{_number(figure['value'])} {figure['unit']}", spread, against, ratio, *bounds, verdict)
    return f"| {' | '.join(cells)} |"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
