"""`gateway handlers`: how far delivery to each cloud service is."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from gateway.cli import client
from gateway.cli.options import DEFAULT_CONFIG, ConfigOption, DryRunOption, JsonOption, example, group
from gateway.cli.output import print_json, print_table
from gateway.config import load

app = group("How far delivery to each cloud service is.")
_COLUMNS = ("name", "state", "lag", "waiting", "blocked", "dead", "rate_per_s", "delivered", "failed", "url", "cause")


@app.command("list", epilog=example("gateway handlers list", "gateway handlers list --json | jq '.[].lag'"))
def list_(config: ConfigOption = DEFAULT_CONFIG, json: JsonOption = False) -> None:
    """List handlers, and durable MQTT subscriptions, with lag, rate and failures."""
    rows = client.run(load(config), "handlers_list")
    print_json(rows) if json else print_table(rows, _COLUMNS)


@app.command(
    epilog=example(
        "gateway handlers remove mqtt:service/billing:devices/+/events/# --dry-run",
        "gateway handlers remove old-orders",
    )
)
def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `list` shows it.")],
    *,
    dry_run: DryRunOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """Forget a handler that nobody will go on with.

    One that is not configured any more, or the durable subscription of MQTT clients that are gone: with its place in the
    log and its dead letters. Sessions that hold it end.
    """
    lost = client.run(load(config), "handlers_remove", name=name, dry_run=dry_run)
    if json:
        print_json(lost)
        return
    print_table([lost], ("name", "lag", "waiting", "blocked", "dead", "sessions"))
    print("would be removed" if dry_run else "removed", file=sys.stderr)
