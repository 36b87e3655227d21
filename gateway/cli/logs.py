"""Where logs go: stderr always, since stdout is for results. Only the command line sets levels and format."""

from __future__ import annotations

import logging
import sys
from typing import Any, Final

import structlog

from gateway.config import LogSettings

_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def configure_for_commands() -> None:
    """Let a short-lived command show warnings only."""
    configure(LogSettings(level="warning"))


def configure(settings: LogSettings) -> None:
    """Set up logging for the process."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *_renderer(settings),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[settings.level]),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")


def _renderer(settings: LogSettings) -> list[Any]:
    """Console or JSON, for people or for programs."""
    on_terminal = sys.stderr.isatty()
    if settings.format == "console" or (settings.format == "auto" and on_terminal):
        return [structlog.dev.ConsoleRenderer(colors=on_terminal)]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
