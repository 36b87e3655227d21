"""`gateway token`: tokens for operators and services, signed by the gateway itself."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from gateway.cli import client
from gateway.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, example, group, read_duration
from gateway.cli.output import print_json
from gateway.config import load

app = group("Tokens for operators and services.")


@app.callback()
def _noun() -> None:
    """Stay a group: more verbs belong here."""


@app.command(
    epilog=example(
        "gateway token create --role operator --ttl 8h",
        'TOKEN="$(gateway token create --role service --name orders)"',
    )
)
def create(
    role: Annotated[str, typer.Option("--role", metavar="ROLE", help="A role of the policy that is not a device's.")],
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Whom it is for; else a random name.")
    ] = None,
    ttl: Annotated[str, typer.Option("--ttl", metavar="DURATION", help="How long it is valid.")] = "8h",
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """Print a token (a JWT) for an operator or a service."""
    made = client.run(load(config), "token_create", role=role, name=name, ttl_s=read_duration(ttl))
    if json:
        print_json(made)
        return
    print(made["token"])
    print(f"for {made['sub']}, until {made['expires_at']}", file=sys.stderr)
