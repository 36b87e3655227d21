"""`gateway device`: the registry of devices."""

from __future__ import annotations

import asyncio
import json as json_text
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from edge_protocol.errors import KeyInvalid
from edge_protocol.keys import load_verify_key
from gateway.cli import client
from gateway.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, example, group, read_pairs
from gateway.cli.output import print_fields, print_json, print_table
from gateway.config import Settings, load

app = group("The registry of devices.")
_PAGE = 500
_COLUMNS = ("id", "role", "enabled", "connected", "keys", "labels", "created_at")

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The device's id.")]


@app.command(
    epilog=example(
        "gateway device add cart-7 --label shop=berlin",
        "gateway device add dev1 --role simple-device --key dev1.pem",
    )
)
def add(
    id: IdArgument,  # noqa: A002  # the interface's word
    *,
    key: Annotated[
        Path | None, typer.Option("--key", metavar="FILE", help="The device's public key, PEM or JWK.")
    ] = None,
    role: Annotated[str, typer.Option("--role", metavar="ROLE", help="A role of the policy.")] = "device",
    label: Annotated[list[str] | None, typer.Option("--label", metavar="NAME=VALUE", help="May be repeated.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """Register a device, print what it needs.

    Without --key that is a one-time enrolment code.
    """
    labels = read_pairs(label or [])
    public = None if key is None else _public_key(key)
    made = client.run(load(config), "device_add", id=id, key=public, role=role, labels=labels)
    print_json(made) if json else _print_device(made)


@app.command("list", epilog=example("gateway device list", "gateway device list --json | jq -r '.[].id'"))
def list_(config: ConfigOption = DEFAULT_CONFIG, json: JsonOption = False) -> None:
    """List all devices."""
    rows = asyncio.run(_all_devices(load(config)))
    if json:
        print_json(rows)
    else:
        print_table(({**row, "keys": len(row["keys"])} for row in rows), _COLUMNS)


@app.command(epilog=example("gateway device show cart-7"))
def show(id: IdArgument, config: ConfigOption = DEFAULT_CONFIG, json: JsonOption = False) -> None:  # noqa: A002  # as add
    """Print a device and what it needs.

    Audience, signing key, addresses.
    """
    found = client.run(load(config), "device_show", id=id)
    print_json(found) if json else _print_device(found)


@app.command(epilog=example("gateway device disable cart-7"))
def disable(id: IdArgument, config: ConfigOption = DEFAULT_CONFIG, json: JsonOption = False) -> None:  # noqa: A002
    """Cut a device off until it is enabled."""
    _print_state(client.run(load(config), "device_disable", id=id), json=json)


@app.command(epilog=example("gateway device enable cart-7"))
def enable(id: IdArgument, config: ConfigOption = DEFAULT_CONFIG, json: JsonOption = False) -> None:  # noqa: A002
    """Let a disabled device connect again."""
    _print_state(client.run(load(config), "device_enable", id=id), json=json)


@app.command(epilog=example("gateway device remove cart-7"))
def remove(id: IdArgument, config: ConfigOption = DEFAULT_CONFIG, json: JsonOption = False) -> None:  # noqa: A002
    """Forget a device, its keys and state.

    Its stored events stay.
    """
    answer = client.run(load(config), "device_remove", id=id)
    print_json(answer) if json else print(f"{id} removed")


def _public_key(file: Path) -> str:
    """Read a key file; of a private key only the public half leaves this process."""
    try:
        return json_text.dumps(load_verify_key(file.read_bytes()).jwk)
    except KeyInvalid as exc:
        raise KeyInvalid(f"{exc}, found {str(file)!r}") from exc


async def _all_devices(settings: Settings) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    async with client.connect(settings) as connection:
        after: str | None = ""
        while after is not None:
            page = await connection.call("device_list", after=after, limit=_PAGE)
            rows += page["devices"]
            after = page["next"]
    return rows


def _print_state(device: Mapping[str, Any], *, json: bool) -> None:
    found = device.get("device", device)
    print_json(device) if json else print(f"{found['id']} {'enabled' if found['enabled'] else 'disabled'}")


def _print_device(answer: Mapping[str, Any]) -> None:
    device, code = answer["device"], answer.get("code")
    unknown = {"keys", "enabled", "created_at", "connected"} if code else {"keys"}  # it is registered when it enrols
    fields = {name: value for name, value in device.items() if name not in unknown}
    fields |= {f"key {n}": key["kid"] + f" ({key['alg']})" for n, key in enumerate(device.get("keys", ()), 1)}
    fields |= {"audience": answer["audience"], "signing_key": json_text.dumps(answer["signing_key"])}
    fields |= {"mqtt": " ".join(answer["mqtt"]), "enrol": answer.get("enrol")}
    if code:
        fields |= {"code": code, "code_expires_at": answer["code_expires_at"]}
    print_fields(fields)
    if code:
        _print_next(device["id"], code, answer)


def _print_next(device: str, code: str, answer: Mapping[str, Any]) -> None:
    print("\non the device:")
    print(f"  edge-agent init {device} --gateway {next(iter(answer['mqtt']), 'mqtts://HOST:8883')}")
    url = answer.get("enrol") or "https://HOST:8443"
    origin = urlsplit(url)
    print(f"  edge-agent enroll {code} --url {origin.scheme}://{origin.netloc}")
