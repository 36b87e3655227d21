"""`gateway check`: is the configuration right, and are the files it names usable?"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer

from gateway.cli.certificates import check_server_certificate
from gateway.cli.options import DEFAULT_CONFIG, ConfigOption, example
from gateway.config import HandlerSettings, PolicySettings, Settings, load
from gateway.errors import ConfigError
from gateway.rules.policy import PolicyRule


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command("check", epilog=example("gateway check -c configs/gateway.toml"))(check)


def check(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Check the configuration and its files.

    What is wrong is told with the key, the value and what was expected.
    """
    print(f"ok: {check_settings(load(config), now=datetime.now(UTC))}")


def check_settings(settings: Settings, *, now: datetime) -> str:
    """Check what can be checked without starting; tell in a line what there is.

    Raises:
        ConfigError: The first setting that is wrong.
    """
    certificate = _check_certificate(settings, now)
    for n, rule in enumerate(settings.policy):
        _check_policy(rule, f"policy[{n}]")
    for n, handler in enumerate(settings.handlers):
        _check_handler(handler, f"handlers[{n}]")
    asyncio.run(_check_targets(settings))
    _check_storage(settings)
    _check_identity(settings)
    listeners = [*settings.mqtt.listen, settings.http.listen, settings.http.device_listen]
    return (
        f"audience {settings.audience}, {certificate}, listening on {' '.join(filter(None, listeners))}, "
        f"{_counted(len(settings.policy), 'role')}, {_counted(len(settings.handlers), 'handler')}"
    )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun if count == 1 else f'{noun}s'}"


def _check_certificate(settings: Settings, now: datetime) -> str:
    urls = [*settings.mqtt.listen, settings.http.device_listen]
    if not any(url.startswith(("mqtts:", "https:")) for url in urls):
        return "no TLS"
    files: tuple[Path, Path] = settings.path(settings.mqtt.certificate), settings.path(settings.mqtt.private_key)
    return f"certificate until {check_server_certificate(*files, now=now):%Y-%m-%d}"


def _check_identity(settings: Settings) -> None:
    from gateway.devices.identity import load_identity  # noqa: PLC0415  # the gateway's parts: only where needed

    load_identity(settings.state)


def _check_storage(settings: Settings) -> None:
    from gateway.parts import check_storage  # noqa: PLC0415  # likewise

    check_storage(settings)


def _check_policy(rule: PolicySettings, key: str) -> None:
    for field in ("publish", "subscribe", "deny_publish", "deny_subscribe", "emit"):
        for n, pattern in enumerate(getattr(rule, field)):
            fields: dict[str, Any] = {"role": rule.role, field: (pattern,)}
            try:
                PolicyRule(**fields)
            except ValueError as exc:
                raise ConfigError(f"{key}.{field}[{n}]", pattern, f"a pattern ({exc})") from exc


def _check_handler(handler: HandlerSettings, key: str) -> None:
    for field in ("types", "devices"):
        for n, pattern in enumerate(getattr(handler, field)):
            if not pattern or "*" in pattern[:-1]:
                raise ConfigError(f"{key}.{field}[{n}]", pattern, "exact, or with one * at the end")


async def _check_targets(settings: Settings) -> None:
    """Open every target as `serve` would: a `python:` module is imported, nothing is delivered."""
    from gateway.parts import target_config  # noqa: PLC0415  # likewise
    from gateway.targets import open_target  # noqa: PLC0415  # likewise

    for handler in settings.handlers:
        deliverer = await open_target(target_config(handler))
        await deliverer.aclose()
