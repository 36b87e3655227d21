"""`gateway init`: a new gateway's configuration, certificates, identity and state folder; never over anything."""

from __future__ import annotations

import secrets
import shlex
import socket
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from gateway.cli.certificates import write_certificates, write_file
from gateway.cli.options import DEFAULT_CONFIG, example
from gateway.errors import Conflict, GatewayError

_TEMPLATE_AUDIENCE: Final = "lockgate-example"
_HERE: Final = Path(__file__).parent
_TEMPLATE: Final = "gateway.example.toml"
_TEMPLATES: Final = (_HERE / _TEMPLATE, _HERE.parents[1] / "configs" / _TEMPLATE)  # in the wheel; in a clone


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command("init", epilog=example("gateway init", "gateway init /srv/lockgate --host gateway.example.com"))(init)


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where; made if it does not exist.")] = Path(),
    host: Annotated[
        list[str] | None,
        typer.Option("--host", metavar="NAME", help="Name or address devices use; may be repeated."),
    ] = None,
) -> None:
    """Make configs/gateway.toml, certs/, state/.

    Never overwrites anything; prints the next two commands.
    """
    config = folder / DEFAULT_CONFIG
    if config.exists():
        raise Conflict(f"{config} exists, nothing was changed: give another DIR, or move it away")
    template = _template()
    make_files(folder, host or [])
    audience = f"lockgate-{secrets.token_hex(3)}"
    config.parent.mkdir(parents=True, exist_ok=True)
    write_file(
        config, template.replace(_TEMPLATE_AUDIENCE, audience).encode(), 0o600
    )  # secrets of handlers go here; last: without it, begin again
    option = "" if folder == Path() else f" -c {shlex.quote(str(config))}"
    print(f"gateway serve{option}")
    print(f"gateway device add dev1{option}")


def make_files(folder: Path, hosts: list[str]) -> None:
    """Make certs/ and state/ with what is missing in them; what exists is kept.

    Raises:
        Conflict: Half a pair of certificate and key exists.
    """
    from gateway.devices.identity import create_identity  # noqa: PLC0415  # the gateway's parts: only where needed

    certs, state = folder / "certs", folder / "state"
    certs.mkdir(parents=True, exist_ok=True)
    write_certificates(certs, [*_own_names(), *hosts], now=datetime.now(UTC))
    state.mkdir(mode=0o700, exist_ok=True)
    try:
        create_identity(state)
    except Conflict as exc:  # an earlier run that was cut short, or whose configuration was moved away
        print(f"kept: {exc}", file=sys.stderr)


def _own_names() -> list[str]:
    name = socket.gethostname()
    return [name] if name.isascii() else []


def _template() -> str:
    for file in _TEMPLATES:
        if file.exists():
            return file.read_text()
    raise GatewayError(f"expected the template {_TEMPLATES[0]}; the installation is damaged")
