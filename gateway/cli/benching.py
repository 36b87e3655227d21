"""What `gateway bench` does: finds the gateway, registers devices or plays those of a file, runs the load, prints."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import typer

from edge_protocol.envelope_keys import Suite
from gateway.bench import (
    BenchDevice,
    BenchFailed,
    Load,
    Result,
    Target,
    as_document,
    print_result,
    read_fleet,
    register,
    remove,
    run,
    write_fleet,
)
from gateway.cli import client
from gateway.cli.output import print_json
from gateway.config import Settings, load
from gateway.errors import GatewayError
from gateway.mqtt.codec import Version

_SUITES: Final = {"xwing": Suite.XWING_AES256, "x25519": Suite.X25519_AES128, "p256": Suite.P256_AES128}
_EVERYWHERE: Final = {"0.0.0.0": "localhost", "::": "localhost"}  # noqa: S104  # what a listener may be bound to


@dataclass(frozen=True, kw_only=True)
class Where:
    """Which gateway is loaded, and by whom.

    Attributes:
        config: Of the local gateway.
        url: Of another one; None: as configured.
        ca: Certificates to trust; None: beside the server's.
        devices: A file of devices; None: so many `clients` with this `role`, which exist only meanwhile.
    """

    config: Path
    url: str | None
    ca: Path | None
    devices: Path | None
    clients: int
    role: str


def load_of(*, suite: str, mqtt: str, **options: Any) -> Load:
    """The load that the options describe."""
    return Load(suite=_SUITES[suite], version=Version.V5 if mqtt == "5" else Version.V311, **options)


def run_bench(wanted: Load, where: Where, *, allow_remote: bool, json: bool) -> None:
    """Run the load, and print what came of it.

    Raises:
        GatewayError: It could not be run.
    """
    settings = None if where.url and where.devices else load(where.config)
    target = _target(settings, where.url, where.ca)
    if not target.is_loopback and not allow_remote:
        raise typer.BadParameter(f"{target.url} is not on this machine: confirm with --allow-remote")
    try:
        if where.devices:
            result = run(target, read_fleet(where.devices), wanted, on_start=_started)
        else:
            assert settings is not None
            result = _run_registered(settings, target, wanted, where)
    except BenchFailed as exc:
        raise GatewayError(str(exc)) from exc
    document = as_document(target, wanted, result)
    print_json(document) if json else print_result(document)


def _run_registered(settings: Settings, target: Target, wanted: Load, where: Where) -> Result:
    """Run with devices that exist only meanwhile."""
    made = asyncio.run(_register(settings, where.clients, where.role))
    try:
        return run(target, made, wanted, on_start=_started)
    finally:
        asyncio.run(_remove(settings, made))


def keep_devices(config: Path, file: Path | None, make: int | None, role: str) -> None:
    """Register so many devices and write them to a file, or remove those of the file.

    Raises:
        GatewayError: They cannot be registered, written or read.
    """
    if file is None:
        raise typer.BadParameter("name the file: --devices FILE")
    settings = load(config)
    try:
        if make:
            made = asyncio.run(_register(settings, make, role))
            try:
                write_fleet(file, made)
            except BaseException:
                asyncio.run(_remove(settings, made))
                raise
            print(f"{make} devices registered as {role}; their private keys are in {file}")
        else:
            asyncio.run(_remove(settings, read_fleet(file)))
            file.unlink()
            print(f"the devices of {file} are removed, and the file")
    except BenchFailed as exc:
        raise GatewayError(str(exc)) from exc


async def _register(settings: Settings, count: int, role: str) -> list[BenchDevice]:
    async with client.connect(settings) as connection:
        return await register(connection.call, count, role=role)


async def _remove(settings: Settings, devices: Sequence[BenchDevice]) -> None:
    async with client.connect(settings) as connection:
        await remove(connection.call, devices)


def _target(settings: Settings | None, url: str | None, ca: Path | None) -> Target:
    if settings is None:
        return Target(url=url or "", ca=str(ca or ""))
    if url is None:
        listeners = [urlsplit(text) for text in settings.mqtt.listen if text.startswith(("mqtt:", "mqtts:"))]
        if not listeners:
            raise GatewayError("mqtt.listen has no mqtt:// or mqtts:// address: name one with --url")
        host = _EVERYWHERE.get(listeners[0].hostname or "", listeners[0].hostname)
        url = f"{listeners[0].scheme}://{host}:{listeners[0].port}"
    beside = settings.path(settings.mqtt.certificate).with_name("ca.pem")
    return Target(url=url, ca=str(ca or beside))


def _started() -> None:
    print("everything is prepared; the clock starts", file=sys.stderr)
