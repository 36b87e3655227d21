"""Options that several commands share, how their values are read, and how an example stands in a command's help."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from gateway.config import duration

DEFAULT_CONFIG: Final = Path("configs/gateway.toml")

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", metavar="FILE", help="Configuration file; LOCKGATE_... variables override it.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Change nothing; tell what would be done.")]


def group(help_text: str) -> typer.Typer:
    """Make the group of a noun's commands."""
    return typer.Typer(help=help_text, no_args_is_help=True, rich_markup_mode=None)


def example(*lines: str) -> str:
    """Format the examples at the end of a command's help."""
    title = "Example:" if len(lines) == 1 else "Examples:"
    return "\b\n" + "\n".join((title, *(f"  {line}" for line in lines)))


def read_duration(text: str) -> float:
    """Read a duration option, in seconds."""
    try:
        return float(duration(text))
    except ValueError as exc:
        raise typer.BadParameter(f"expected {exc}, found {text!r}") from exc


def read_pairs(texts: list[str]) -> dict[str, str]:
    """Read options of the form k=v."""
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise typer.BadParameter(f"expected NAME=VALUE, found {text!r}", param_hint="--label")
        pairs[name] = value
    return pairs


def read_data(text: str | None) -> Any:
    """Read a DATA argument: JSON text, `-` for stdin, `@FILE` for a file's content."""
    if text is None:
        return None
    if text == "-":
        text = sys.stdin.read()
    elif text.startswith("@"):
        text = Path(text[1:]).read_text()
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as exc:
        raise typer.BadParameter(f"expected JSON ({exc})", param_hint="DATA") from exc


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
