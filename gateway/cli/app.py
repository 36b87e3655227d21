"""Puts the commands together, and turns every error into one line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, Final

import typer

from edge_protocol.errors import ProtocolError
from gateway.cli import bench, check, dead_letters, device, events, handlers, init, logs, service, tokens
from gateway.errors import GatewayError

_USAGE_ERROR: Final[Any] = typer.BadParameter.__base__  # typer carries a click of its own, or not, by its version
_EXPECTED: Final[Any] = (GatewayError, ProtocolError, OSError, _USAGE_ERROR.__base__)

app = typer.Typer(
    help="Lockgate gateway: events from devices, stored before they are acknowledged, delivered to cloud services.",
    epilog="Every command has an example: gateway COMMAND --help",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
init.register(app)
check.register(app)
service.register(app)
bench.register(app)
app.add_typer(device.app, name="device")
app.add_typer(tokens.app, name="token")
app.add_typer(events.app, name="events")
app.add_typer(handlers.app, name="handlers")
app.add_typer(dead_letters.app, name="dead-letters")


@app.callback()
def _before() -> None:
    logs.configure_for_commands()


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; tell its exit code."""
    try:
        code = app(args=arguments, prog_name="gateway", standalone_mode=False)
        sys.stdout.flush()
    except _USAGE_ERROR as exc:
        return _wrong_use(exc)
    except _EXPECTED as exc:
        return _failed(exc)
    except ExceptionGroup as group:  # what stopped a TaskGroup
        expected, unforeseen = group.split(_EXPECTED)
        if expected is None or unforeseen is not None:
            raise
        return _failed(_first(expected))
    except (KeyboardInterrupt, typer.Abort):
        return 130  # 128 + SIGINT, as shells have it
    return code if isinstance(code, int) else 0


def _wrong_use(exc: Any) -> int:
    message = exc.format_message()
    if message.startswith("Usage:"):  # no command at all: the help, as it is
        print(message, file=sys.stderr)
    else:
        path = exc.ctx.command_path if exc.ctx else "gateway"
        print(f"error: {message[:1].lower()}{message[1:].rstrip('.')} (see {path} --help)", file=sys.stderr)
    return 2


def _first(group: ExceptionGroup[Exception]) -> Exception:
    exc: Exception = group
    while isinstance(exc, ExceptionGroup):
        exc = exc.exceptions[0]
    return exc


def _failed(exc: Exception) -> int:
    if isinstance(exc, BrokenPipeError):  # `| head` has seen enough; nothing more can be said on stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    message = f"{exc.filename}: {exc.strerror}" if isinstance(exc, OSError) and exc.filename else str(exc)
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 1
