"""`gateway serve`, `gateway stats`, `gateway demo`: the process itself."""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.cli import client, logs
from gateway.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, example, read_duration
from gateway.cli.output import flatten, print_fields, print_json
from gateway.config import load


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command(epilog=example("gateway serve -c configs/gateway.toml"))(serve)
    app.command(epilog=example("gateway stats", "gateway stats --json | jq .bus.events"))(stats)
    app.command(epilog=example("gateway demo --for 20s --events 2000"))(demo)


def serve(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Run the gateway, until SIGTERM or Ctrl-C; SIGHUP loads the certificates again."""
    settings = load(config)
    logs.configure(settings.log)
    from gateway.service import serve as run_gateway  # noqa: PLC0415  # the whole gateway: only where it is needed

    run_gateway(settings)


def stats(config: ConfigOption = DEFAULT_CONFIG, json: JsonOption = False) -> None:
    """Print counters, and what is stored."""
    value = client.run(load(config), "stats")
    print_json(value) if json else print_fields(flatten(value))


def demo(
    seconds: Annotated[
        str | None,
        typer.Option("--for", metavar="DURATION", help="Run this long, such as 20s; else until all is done."),
    ] = None,
    events: Annotated[int, typer.Option("--events", metavar="N", min=1, help="Events to send.")] = 2000,
) -> None:
    """Show the whole system on this machine.

    Real agents, the gateway, three cloud services and an intruder. Fails if anything is lost.
    """
    seconds_s = None if seconds is None else read_duration(seconds)
    from gateway.demo import run  # noqa: PLC0415  # needs the extra `demo`

    raise typer.Exit(run(seconds_s, events))
