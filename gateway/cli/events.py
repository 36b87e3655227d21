"""`gateway events`: where is my event, what is happening, raise one."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from gateway.cli import client
from gateway.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, example, group, read_data
from gateway.cli.output import plain, print_fields, print_json, print_table
from gateway.config import Settings, load

app = group("Events: where one is, what is happening, raise one.")
_PAGE = 500
_WAIT_S = 5.0  # a tail asks again this often while nothing happens
_DATA_CHARS = 120


@app.command(epilog=example("gateway events show 0199a7c2-5f3e-7b1a-9c44-2a6de0f1b7aa"))
def show(
    id: Annotated[str, typer.Argument(metavar="ID", help="The event's id.")],  # noqa: A002  # the interface's word
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """Tell where an event is.

    Stored when and where, delivered to whom, waiting, dead, or unknown (exit code 1).
    """
    found = client.run(load(config), "events_show", id=id)
    print_json(found) if json else _print_found(found)
    if found["state"] == "unknown":
        raise typer.Exit(1)


@app.command(
    epilog=example(
        "gateway events tail --type 'order_*'",
        "gateway events tail --device cart-7 --from beginning --json",
        "gateway events tail --from 2026-11-23T09:30:00Z --limit 10",
    )
)
def tail(
    *,
    types: Annotated[
        list[str] | None,
        typer.Option(
            "--type",
            metavar="TYPE",
            help="Exact, or with a final *; may be repeated. Default: all but device.connected and device.disconnected.",
        ),
    ] = None,
    device: Annotated[str | None, typer.Option("--device", metavar="ID", help="Only events of this device.")] = None,
    start: Annotated[
        str, typer.Option("--from", metavar="START", help="beginning, end, a time (RFC 3339), or a position.")
    ] = "end",
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="Stop after so many events.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """Print events as they are stored, until Ctrl-C."""
    settings = load(config)
    try:
        asyncio.run(_tail(settings, start, types or [], device, limit, json=json))
    except KeyboardInterrupt:
        sys.stdout.flush()  # Ctrl-C is how a tail ends: no failure


@app.command(
    epilog=example(
        """gateway events publish order_placed '{"order": 7}'""",
        "gateway events publish price_list @prices.json --id prices-2026-11-23",
    )
)
def publish(
    type: Annotated[str, typer.Argument(metavar="TYPE", help="The event's type.")],  # noqa: A002  # the interface's word
    data: Annotated[str | None, typer.Argument(metavar="DATA|-|@FILE", help="JSON; - is stdin.")] = None,
    *,
    id: Annotated[str | None, typer.Option("--id", metavar="ID", help="The event's id; else a new one.")] = None,  # noqa: A002
    subject: Annotated[str | None, typer.Option("--subject", metavar="TEXT", help="What it is about.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """Raise an event, as a cloud service does.

    Prints its id once it is stored.
    """
    value = read_data(data)
    made = client.run(load(config), "events_publish", type=type, data=value, id=id, subject=subject)
    print_json(made) if json else print(made["id"])


async def _tail(
    settings: Settings, start: str, types: list[str], device: str | None, limit: int | None, *, json: bool
) -> None:
    after: str | None = None
    left = limit
    async with client.connect(settings) as connection:
        while left is None or left > 0:
            page = await connection.call(
                "events_read",
                start=start if after is None else None,
                after=after,
                types=types,
                device=device,
                limit=_PAGE if left is None else min(left, _PAGE),
                wait_s=_WAIT_S if connection.is_live else 0,
            )
            _print_events(page["events"], json=json)
            left = None if left is None else left - len(page["events"])
            if page["next"] == after and not connection.is_live:
                print("the gateway is not running: nothing more will come", file=sys.stderr)
                return
            after = page["next"]


def _print_events(events: list[dict[str, Any]], *, json: bool) -> None:
    for event in events:
        print_json(event) if json else _print_event(event)
    sys.stdout.flush()  # somebody is watching, or the next command in the pipe is


def _print_event(event: Mapping[str, Any]) -> None:
    data = event.get("data", event.get("data_base64"))
    text = "" if data is None else plain(data if isinstance(data, str) else _json(data))
    shown = text if len(text) <= _DATA_CHARS else text[: _DATA_CHARS - 3] + "..."
    words = (event.get("time", "-"), event["source"], event["type"], event["id"])
    print(f"{'  '.join(plain(word) for word in words)}  {shown}".rstrip())


def _json(value: Any) -> str:
    import json  # noqa: PLC0415  # the commands above have an option of this name

    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _print_found(found: Mapping[str, Any]) -> None:
    if found["state"] == "unknown":
        print(f"{plain(found['id'])}: unknown: never stored here, or removed by retention")
        return
    for event in found["events"]:
        print_fields({"id": found["id"], "state": found["state"], **_without(event, "handlers")})
        if event["handlers"]:
            print_table(event["handlers"], ("handler", "state", "attempts", "next_at", "cause"))


def _without(value: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: inner for key, inner in value.items() if key != name}
