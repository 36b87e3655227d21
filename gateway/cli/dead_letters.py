"""`gateway dead-letters`: events that could not be delivered, with their cause."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from gateway.cli import client
from gateway.cli.options import DEFAULT_CONFIG, ConfigOption, DryRunOption, JsonOption, example, group
from gateway.cli.output import print_fields, print_json, print_table
from gateway.config import Settings, load

app = group("Events that could not be delivered.")
_PAGE = 500
_COLUMNS = ("id", "type", "source", "event_id", "attempts", "since", "cause")

HandlerOption = Annotated[str | None, typer.Option("--handler", metavar="NAME", help="Of this handler only.")]
AllOfHandlerOption = Annotated[str | None, typer.Option("--handler", metavar="NAME", help="All of this handler.")]
IdsArgument = Annotated[list[str] | None, typer.Argument(metavar="ID", help="As `list` shows them.")]


@app.command("list", epilog=example("gateway dead-letters list --handler orders"))
def list_(handler: HandlerOption = None, config: ConfigOption = DEFAULT_CONFIG, json: JsonOption = False) -> None:
    """List them with cause and attempts."""
    rows = asyncio.run(_all(load(config), handler))
    print_json(rows) if json else print_table(rows, _COLUMNS)


@app.command(epilog=example("gateway dead-letters show orders:41984"))
def show(
    id: Annotated[str, typer.Argument(metavar="ID", help="As `list` shows it.")],  # noqa: A002  # the interface's word
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """Print one dead letter with its event."""
    found = client.run(load(config), "dead_letters_show", id=id)
    print_json(found) if json else print_fields(found)


@app.command(
    epilog=example("gateway dead-letters replay orders:41984", "gateway dead-letters replay --handler orders --dry-run")
)
def replay(
    ids: IdsArgument = None,
    handler: AllOfHandlerOption = None,
    dry_run: DryRunOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """Deliver dead letters again.

    To their own handler only, under the same idempotency key.
    """
    done = _resolve("dead_letters_replay", load(config), ids, handler, dry_run=dry_run)
    _print_done("replay", done, dry_run=dry_run, json=json)


@app.command(
    epilog=example(
        "gateway dead-letters discard orders:41984", "gateway dead-letters discard --handler orders --dry-run"
    )
)
def discard(
    ids: IdsArgument = None,
    handler: AllOfHandlerOption = None,
    dry_run: DryRunOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """Forget dead letters for good."""
    done = _resolve("dead_letters_discard", load(config), ids, handler, dry_run=dry_run)
    _print_done("discard", done, dry_run=dry_run, json=json)


async def _all(settings: Settings, handler: str | None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    after: str | None = None
    async with client.connect(settings) as connection:
        while True:
            page = await connection.call("dead_letters_list", handler=handler, after=after, limit=_PAGE)
            rows += page["dead_letters"]
            after = page["next"]
            if after is None:
                return rows


def _resolve(name: str, settings: Settings, ids: list[str] | None, handler: str | None, *, dry_run: bool) -> Any:
    if not ids and handler is None:
        raise typer.BadParameter("expected an ID, or --handler NAME for all of one handler", param_hint="ID")
    return client.run(settings, name, handler=handler, ids=ids or [], dry_run=dry_run)


def _print_done(verb: str, done: Mapping[str, Any], *, dry_run: bool, json: bool) -> None:
    if json:
        print_json(done)
        return
    for id_ in done["ids"]:
        print(id_)
    letters = "dead letter" if done["count"] == 1 else "dead letters"
    did = f"would {verb}" if dry_run else f"{verb}ed"
    print(f"{did} {done['count']} {letters}", file=sys.stderr)
