"""`gateway bench`: a load generator for one's own deployment."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import typer

from edge_protocol.envelope_keys import Suite
from gateway.cli import client
from gateway.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, example, read_duration
from gateway.cli.output import print_json
from gateway.config import Settings, load
from gateway.errors import GatewayError

_SUITES: Final = {"xwing": Suite.XWING_AES256, "x25519": Suite.X25519_AES128, "p256": Suite.P256_AES128}
_EVERYWHERE: Final = {"0.0.0.0": "localhost", "::": "localhost"}  # noqa: S104  # what a listener may be bound to


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command(
        epilog=example(
            "gateway bench --for 10s",
            "gateway bench --events 100 --clients 8 --count 20000",
            "gateway bench --rate 2000 --for 30s --json",
            "gateway bench --make-devices 100 --devices fleet.jsonl      # beside the gateway, then elsewhere:",
            "gateway bench --url mqtts://HOST:8883 --ca ca.pem --devices fleet.jsonl --allow-remote",
            "gateway bench --remove-devices --devices fleet.jsonl        # beside the gateway",
        )
    )(bench)


def bench(
    *,
    clients: Annotated[int, typer.Option("--clients", metavar="N", min=1, help="Devices that send.")] = 4,
    seconds: Annotated[
        str | None, typer.Option("--for", metavar="DURATION", help="Stop after this long; 10s if --count is absent.")
    ] = None,
    count: Annotated[
        int | None, typer.Option("--count", metavar="N", min=1, help="Stop after N publishes in all.")
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            "--rate", metavar="N", min=0.1, help="Publishes a second in all (open loop); else as fast as it goes."
        ),
    ] = None,
    window: Annotated[
        int, typer.Option("--window", metavar="N", min=1, max=65535, help="Unacknowledged publishes a device.")
    ] = 64,
    qos: Annotated[int, typer.Option("--qos", metavar="0|1", min=0, max=1, help="Quality of service.")] = 1,
    size: Annotated[int, typer.Option("--size", metavar="BYTES", min=11, help="Data of an event.")] = 256,
    events: Annotated[
        int, typer.Option("--events", metavar="N", min=0, max=1000, help="Seal N events an envelope; 0: plain events.")
    ] = 0,
    suite: Annotated[Literal["xwing", "x25519", "p256"], typer.Option("--suite", help="Of envelopes.")] = "xwing",
    mqtt: Annotated[Literal["5", "3.1.1"], typer.Option("--mqtt", help="Version of MQTT.")] = "5",
    processes: Annotated[
        int, typer.Option("--processes", metavar="N", min=1, max=64, help="Processes of the generator.")
    ] = 1,
    role: Annotated[
        str | None,
        typer.Option("--role", metavar="ROLE", help="Of the devices: device for envelopes, else simple-device."),
    ] = None,
    url: Annotated[
        str | None, typer.Option("--url", metavar="URL", help="mqtt(s)://HOST:PORT; else as configured.")
    ] = None,
    ca: Annotated[
        Path | None, typer.Option("--ca", metavar="FILE", help="CA certificates; else ca.pem beside the server's.")
    ] = None,
    devices: Annotated[
        Path | None, typer.Option("--devices", metavar="FILE", help="Play the devices of this file.")
    ] = None,
    make_devices: Annotated[
        int | None,
        typer.Option("--make-devices", metavar="N", min=1, help="Register N devices, write them to --devices, stop."),
    ] = None,
    remove_devices: Annotated[
        bool, typer.Option("--remove-devices", help="Remove the devices of --devices from the registry, stop.")
    ] = False,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Confirm that a gateway on another machine shall be loaded.")
    ] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """Load a gateway with real devices: keys, tokens, TLS, envelopes.

    Against the local gateway it registers its own devices and removes them again. A policy's rate limits each device.
    Latency counts from when a publish was due (--rate) or sent, to its PUBACK, which means stored.
    """
    from gateway import bench as generator  # noqa: PLC0415  # uvloop and the codec: only where they are needed
    from gateway.mqtt.codec import Version  # noqa: PLC0415  # likewise

    role = role or ("device" if events else "simple-device")
    if make_devices or remove_devices:
        _keep_devices(config, devices, make_devices, role)
        return
    settings = None if url and devices else load(config)
    target = _target(settings, url, ca)
    if not target.is_loopback and not allow_remote:
        raise typer.BadParameter(f"{target.url} is not on this machine: confirm with --allow-remote")
    wanted = generator.Load(
        seconds=read_duration(seconds) if seconds else (None if count else 10.0),
        count=count,
        rate=rate,
        window=window,
        qos=qos,
        size=size,
        events=events,
        suite=_SUITES[suite],
        version=Version.V5 if mqtt == "5" else Version.V311,
        processes=processes,
    )
    try:
        if devices:
            result = generator.run(target, generator.read_fleet(devices), wanted, on_start=_started)
        else:
            result = _run_registered(settings, target, wanted, clients, role)
    except generator.BenchFailed as exc:
        raise GatewayError(str(exc)) from exc
    document = generator.as_document(target, wanted, result)
    print_json(document) if json else generator.print_result(document)


def _run_registered(settings: Settings | None, target: Any, wanted: Any, clients: int, role: str) -> Any:
    """Run with devices that exist only meanwhile."""
    from gateway import bench as generator  # noqa: PLC0415  # as above

    assert settings is not None
    made = asyncio.run(_register(settings, clients, role))
    try:
        return generator.run(target, made, wanted, on_start=_started)
    finally:
        asyncio.run(_remove(settings, made))


def _keep_devices(config: Path, file: Path | None, make: int | None, role: str) -> None:
    from gateway import bench as generator  # noqa: PLC0415  # as above

    if file is None:
        raise typer.BadParameter("name the file: --devices FILE")
    settings = load(config)
    try:
        if make:
            made = asyncio.run(_register(settings, make, role))
            try:
                generator.write_fleet(file, made)
            except BaseException:
                asyncio.run(_remove(settings, made))
                raise
            print(f"{make} devices registered as {role}; their private keys are in {file}")
        else:
            asyncio.run(_remove(settings, generator.read_fleet(file)))
            file.unlink()
            print(f"the devices of {file} are removed, and the file")
    except generator.BenchFailed as exc:
        raise GatewayError(str(exc)) from exc


async def _register(settings: Settings, count: int, role: str) -> Any:
    from gateway import bench as generator  # noqa: PLC0415  # as above

    async with client.connect(settings) as connection:
        return await generator.register(connection.call, count, role=role)


async def _remove(settings: Settings, devices: Sequence[Any]) -> None:
    from gateway import bench as generator  # noqa: PLC0415  # as above

    async with client.connect(settings) as connection:
        await generator.remove(connection.call, devices)


def _target(settings: Settings | None, url: str | None, ca: Path | None) -> Any:
    from gateway import bench as generator  # noqa: PLC0415  # as above

    if settings is None:
        return generator.Target(url=url or "", ca=str(ca or ""))
    if url is None:
        listeners = [urlsplit(text) for text in settings.mqtt.listen if text.startswith(("mqtt:", "mqtts:"))]
        if not listeners:
            raise GatewayError("mqtt.listen has no mqtt:// or mqtts:// address: name one with --url")
        host = _EVERYWHERE.get(listeners[0].hostname or "", listeners[0].hostname)
        url = f"{listeners[0].scheme}://{host}:{listeners[0].port}"
    beside = settings.path(settings.mqtt.certificate).with_name("ca.pem")
    return generator.Target(url=url, ca=str(ca or beside))


def _started() -> None:
    print("everything is prepared; the clock starts", file=sys.stderr)
