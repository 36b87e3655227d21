"""How results are printed: JSON for programs, aligned plain text for people.

Texts that devices chose may hold anything: to people they are shown without control characters, so that no device can
speak to an operator's terminal.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def print_json(value: Any) -> None:
    """Print a value on one line, ASCII only."""
    print(json.dumps(value, separators=(",", ":")))


def print_table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Print rows under a head of their columns, aligned; numbers to the right."""
    table = [[name.replace("_", " ").upper() for name in columns]]
    body = [[row.get(name) for name in columns] for row in rows]
    table += [[plain(value) for value in row] for row in body]
    is_number = [bool(body) and all(_is_number(row[n]) for row in body) for n in range(len(columns))]
    widths = [max(len(row[n]) for row in table) for n in range(len(columns))]
    for row in table:
        cells = (
            cell.rjust(w) if right else cell.ljust(w) for cell, w, right in zip(row, widths, is_number, strict=True)
        )
        print("  ".join(cells).rstrip())


def print_fields(fields: Mapping[str, Any]) -> None:
    """Print one thing, a field a line, aligned."""
    width = max(map(len, fields), default=0)
    for name, value in fields.items():
        print(f"{name.ljust(width)}  {plain(value)}".rstrip())


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested objects into one, with dotted names."""
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        flat |= flatten(inner, f"{prefix}{name}.") if isinstance(inner, Mapping) else {f"{prefix}{name}": inner}
    return flat


def plain(value: Any) -> str:
    """Show a value of JSON's kinds to people."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping) and not any(isinstance(inner, (Mapping, list)) for inner in value.values()):
        return ",".join(f"{plain(name)}={plain(inner)}" for name, inner in value.items()) or "-"
    text = value if isinstance(value, str) else json.dumps(value)
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
