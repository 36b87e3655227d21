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


@app.command(epilog=example('gateway token revoke "$(cat token)"', "gateway token revoke --all"))
def revoke(
    id: Annotated[str | None, typer.Argument(metavar="ID", help="The token's id (jti), or the token.")] = None,  # noqa: A002  # the interface's word
    *,
    all_: Annotated[bool, typer.Option("--all", help="All tokens that were ever created.")] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """Accept a token no more, and cut off whom it let in.

    Their sessions end, with queues, subscriptions and wills.
    """
    if (id is None) != all_:
        raise typer.BadParameter("expected an ID, or --all", param_hint="ID")
    operation, arguments = ("token_revoke_all", {}) if id is None else ("token_revoke", {"id": id})
    answer = client.run(load(config), operation, **arguments)
    print_json(answer) if json else print("all tokens revoked" if id is None else f"{answer['id']} revoked")
