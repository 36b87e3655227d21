"""`gateway bench`: a load generator for one's own deployment. What the command does is in `benching`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from gateway.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, example, read_duration

_Clients = Annotated[int, typer.Option("--clients", metavar="N", min=1, help="Devices that send.")]
_Seconds = Annotated[
    str | None, typer.Option("--for", metavar="DURATION", help="Stop after this long; 10s if --count is absent.")
]
_Count = Annotated[int | None, typer.Option("--count", metavar="N", min=1, help="Stop after N publishes in all.")]
_Rate = Annotated[
    float | None,
    typer.Option(
        "--rate", metavar="N", min=0.1, help="Publishes a second in all (open loop); else as fast as it goes."
    ),
]
_Window = Annotated[
    int, typer.Option("--window", metavar="N", min=1, max=65535, help="Unacknowledged publishes a device.")
]
_Qos = Annotated[int, typer.Option("--qos", metavar="0|1", min=0, max=1, help="Quality of service.")]
_Size = Annotated[int, typer.Option("--size", metavar="BYTES", min=11, help="Data of an event.")]
_Events = Annotated[
    int, typer.Option("--events", metavar="N", min=0, max=1000, help="Seal N events an envelope; 0: plain events.")
]
_Suite = Annotated[Literal["xwing", "x25519", "p256"], typer.Option("--suite", help="Of envelopes.")]
_Mqtt = Annotated[Literal["5", "3.1.1"], typer.Option("--mqtt", help="Version of MQTT.")]
_Processes = Annotated[int, typer.Option("--processes", metavar="N", min=1, max=64, help="Processes of the generator.")]
_Role = Annotated[
    str | None,
    typer.Option("--role", metavar="ROLE", help="Of the devices: device for envelopes, else simple-device."),
]
_Url = Annotated[str | None, typer.Option("--url", metavar="URL", help="mqtt(s)://HOST:PORT; else as configured.")]
_Ca = Annotated[
    Path | None, typer.Option("--ca", metavar="FILE", help="CA certificates; else ca.pem beside the server's.")
]
_Devices = Annotated[Path | None, typer.Option("--devices", metavar="FILE", help="Play the devices of this file.")]
_MakeDevices = Annotated[
    int | None,
    typer.Option("--make-devices", metavar="N", min=1, help="Register N devices, write them to --devices, stop."),
]
_RemoveDevices = Annotated[
    bool, typer.Option("--remove-devices", help="Remove the devices of --devices from the registry, stop.")
]
_AllowRemote = Annotated[
    bool, typer.Option("--allow-remote", help="Confirm that a gateway on another machine shall be loaded.")
]


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
    clients: _Clients = 4,
    seconds: _Seconds = None,
    count: _Count = None,
    rate: _Rate = None,
    window: _Window = 64,
    qos: _Qos = 1,
    size: _Size = 256,
    events: _Events = 0,
    suite: _Suite = "xwing",
    mqtt: _Mqtt = "5",
    processes: _Processes = 1,
    role: _Role = None,
    url: _Url = None,
    ca: _Ca = None,
    devices: _Devices = None,
    make_devices: _MakeDevices = None,
    remove_devices: _RemoveDevices = False,
    allow_remote: _AllowRemote = False,
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """Load a gateway with real devices: keys, tokens, TLS, envelopes.

    Against the local gateway it registers its own devices and removes them again. A policy's rate limits each device.
    Latency counts from when a publish was due (--rate) or sent, to its PUBACK, which means stored.
    """
    from gateway.cli import benching  # noqa: PLC0415  # uvloop and the codec: only where they are needed

    role = role or ("device" if events else "simple-device")
    if make_devices or remove_devices:
        benching.keep_devices(config, devices, make_devices, role)
        return
    load = benching.load_of(
        seconds=read_duration(seconds) if seconds else (None if count else 10.0),
        count=count,
        rate=rate,
        window=window,
        qos=qos,
        size=size,
        events=events,
        suite=suite,
        mqtt=mqtt,
        processes=processes,
    )
    where = benching.Where(config=config, url=url, ca=ca, devices=devices, clients=clients, role=role)
    benching.run_bench(load, where, allow_remote=allow_remote, json=json)
