"""`gateway handlers`: how far delivery to each cloud service is."""

from __future__ import annotations

from gateway.cli import client
from gateway.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, example, group
from gateway.cli.output import print_json, print_table
from gateway.config import load

app = group("How far delivery to each cloud service is.")
_COLUMNS = ("name", "state", "lag", "waiting", "blocked", "dead", "rate_per_s", "delivered", "failed", "url", "cause")


@app.callback()
def _noun() -> None:
    """Stay a group: more verbs belong here."""


@app.command("list", epilog=example("gateway handlers list", "gateway handlers list --json | jq '.[].lag'"))
def list_(config: ConfigOption = DEFAULT_CONFIG, json: JsonOption = False) -> None:
    """List handlers, and durable MQTT subscriptions, with lag, rate and failures."""
    rows = client.run(load(config), "handlers_list")
    print_json(rows) if json else print_table(rows, _COLUMNS)
